"""Headless Chromium that uses the page as a person does."""

import contextlib
import json
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 90.0


class Browser:
    """One window.

    Args:
      downloads: the folder of files that it downloads.
    """

    def __init__(self, downloads, width=1280, height=1500):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(word)
        options.add_argument(f"--window-size={width},{height}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.downloads = Path(downloads)
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.requests = []

    def open(self, address):
        self.driver.get(address)
        self.complaints()  # those about pages before
        self.until(lambda: self.find("#draw"), "the page is there")
        self.until(lambda: self.state(), "the state is shown")

    def close(self):
        self.driver.quit()

    def find(self, selector):
        """The first element that is shown, or None."""
        from selenium.common.exceptions import StaleElementReferenceException

        while True:
            try:
                found = [one for one in self.driver.find_elements("css selector", selector) if one.is_displayed()]
            except StaleElementReferenceException:  # the page replaced it in between
                continue
            return found[0] if found else None

    def until(self, condition, what):
        """Wait for a condition; returns what it gives. It may look at elements that the page replaces meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE:.0f} s for this: {what}; the state is {self.state()!r}")

    def state(self):
        return self.script("return document.querySelector('#state')?.innerText ?? ''").strip()

    def until_state(self, *words):
        return self.until(lambda: next((word for word in words if self.state().startswith(word)), None), f"{words}")

    def picture(self):
        """The data of the first picture that is drawn."""
        return self.script("return document.querySelector('#picture img')?.src ?? ''")

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def fill(self, name, text):
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"#{name} textarea, #{name} input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text) if text else field.send_keys(Keys.DELETE)
        return field

    def value(self, name):
        return self.script(f"return document.querySelector('#{name} textarea, #{name} input').value")

    def press(self, name):
        button = self.until(lambda: self.find(f"button#{name}, #{name} button"), f"there is {name}")
        self.script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def choose(self, name, text):
        """Choose what a dropdown offers."""
        self.find(f"#{name} input").click()

        def option():
            options = self.driver.find_elements("css selector", "[role=option]")
            return next((one for one in options if one.is_displayed() and one.text.strip().endswith(text)), None)

        self.until(option, f"{text} is offered").click()

    def choose_tab(self, title):
        found = [tab for tab in self.driver.find_elements("css selector", "button[role=tab]") if tab.text == title]
        self.script("arguments[0].scrollIntoView({block: 'center'})", found[0])
        found[0].click()

    def upload(self, name, file):
        """Give a file to a field, as dropping it there does."""
        self.driver.find_element("css selector", f"#{name} input[type=file]").send_keys(str(file))

    def downloaded(self, pattern):
        """The file that a download ends with."""
        return self.until(lambda: next(iter(self.downloads.glob(pattern)), None), f"{pattern} is downloaded")

    def hosts(self):
        """Whom the browser has asked for anything since it was started."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        schemes = ("http://", "https://", "ws://", "wss://")
        return {urlsplit(url).hostname for url in self.requests if url.startswith(schemes)}

    def complaints(self):
        """What the console of the browser says of errors."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
