"""The page of `lumina demo` in a browser: what a person does with it."""

import importlib.util
import time

import pytest

from lumina_jax.modalities.files.png import read_png_metadata
from tests.demo.browser import CHROMIUM, DRIVER, Browser

has_all = CHROMIUM and DRIVER and all(map(importlib.util.find_spec, ("gradio", "selenium")))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_all, reason="needs Chromium, its driver and Selenium")]
LONG = "9000"
"""Steps that take a while."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, served):
    """A page that was just opened by a browser that has drawn nothing."""
    browser.driver.get(served)
    browser.script("sessionStorage.clear(); localStorage.clear()")
    browser.open(served)
    return browser


def draw(page, prompt="3", *, steps="2", seed="0"):
    page.fill("steps", steps)
    page.fill("seed", seed)
    page.fill("prompt", prompt)
    page.press("draw")


def test_a_prompt_is_drawn_downloaded_and_dropped_back(page):
    draw(page, "4", seed="18446744073709551615", steps="3")
    page.until_state("done")
    [shown] = page.script("return Array.from(document.querySelectorAll('#picture figcaption'), one => one.innerText)")
    assert shown == "4"
    page.until(lambda: page.find("#files a"), "there is a file").click()
    file = page.downloaded("000-4*.png")
    about = read_png_metadata(file)
    assert (about["prompt"], about["seed"], about["steps"]) == ("4", 2**64 - 1, 3)
    page.fill("prompt", "something else")
    page.fill("seed", "1")
    page.upload("dropped", file)
    page.until_state("its settings are restored")
    page.until(lambda: page.value("prompt") == "4", "the prompt is restored")
    assert page.value("seed") == "18446744073709551615"
    assert page.value("steps") == "3"


def test_the_preview_changes_while_it_draws_and_cancel_ends_it(page):
    draw(page, steps=LONG)
    page.until_state("drawing")
    first = page.until(page.picture, "there is a preview")
    page.until(lambda: page.picture() not in ("", first), "the preview changes")
    share = float(page.script("return document.querySelector('#state progress').value"))
    assert 0 < share < 1
    page.press("cancel")
    page.until_state("cancelled")
    assert not page.find("#history img")


def test_a_reload_finds_what_is_being_drawn_and_what_was_drawn(page):
    draw(page, "5")
    page.until_state("done")
    draw(page, "6", steps=LONG)
    page.until_state("drawing")
    page.driver.refresh()
    page.until_state("drawing")
    page.until(page.picture, "the preview is shown again")
    page.press("cancel")
    page.until_state("cancelled")
    page.until(lambda: page.find("#history img"), "the history is there")
    page.fill("prompt", "7")
    page.find("#history .thumbnail-item, #history button img").click()
    page.until(lambda: page.value("prompt") == "5", "the settings of the history are restored")


def test_two_tabs_draw_at_once_and_each_shows_its_own(page, served):
    first = page.driver.current_window_handle
    draw(page, "8", steps=LONG)
    page.until_state("drawing")
    page.driver.switch_to.new_window("tab")
    page.open(served)
    draw(page, "9")
    page.until_state("waiting for 1 other drawing")
    page.driver.switch_to.window(first)
    page.press("cancel")
    page.until_state("cancelled")
    [other] = set(page.driver.window_handles) - {first}
    page.driver.switch_to.window(other)
    page.until_state("done")
    assert page.find("#picture figcaption").text == "9"
    page.driver.close()
    page.driver.switch_to.window(first)


def test_the_page_is_used_with_the_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    body = page.driver.switch_to.active_element
    reached = []
    for _ in range(40):
        name = page.script(
            "let one = document.activeElement; while (one && !one.id) one = one.parentElement; return one?.id ?? ''"
        )
        reached.append(name)
        if name == "draw":
            break
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert body is not None
    assert "draw" in reached, reached
    page.fill("prompt", "3")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until_state("done")


def test_prompts_with_html_and_paths_stay_text(page, run_folder):
    evil = "<img src=x onerror=document.title='gone'><script>document.title='gone'</script> ${1+1} ../../../etc"
    draw(page, evil)
    page.until(lambda: "label from 0 to 47" in page.state(), "it is refused")
    assert "<img src=x" in page.state()
    assert "${1+1}" in page.state() or "..." in page.state()
    time.sleep(0.3)
    assert page.script("return document.title") != "gone"


def test_a_drawn_prompt_with_html_and_paths_stays_text_in_the_page_and_in_names_of_files(page, folders):
    evil = "../../../etc/<img src=x onerror=document.title='gone'>\"><script>document.title='gone'</script>{{1}}"
    samples = folders[-1] / "samples"
    before = set(folders[-1].parent.rglob("*etc*"))
    page.choose("run", "sounds")
    page.until(lambda: page.find("#seconds"), "the run is chosen")
    draw(page, evil)
    page.until_state("done")
    assert page.find("#picture figcaption").text == evil
    page.until(lambda: page.find("#history img"), "it is in the history")
    time.sleep(0.3)
    assert page.script("return document.title") != "gone"
    files = set(folders[-1].parent.rglob("*etc*")) - before
    assert {file.suffix for file in files} == {".png", ".wav"}
    made = {file for file in files if not any(part.startswith("uploads-") for part in file.parts)}  # not what was sent
    assert {file.parent for file in made} == {samples / "2" / "demo"}


def test_nothing_is_asked_of_anybody_else_and_the_console_is_silent(page):
    draw(page)
    page.until_state("done")
    assert page.hosts() == {"127.0.0.1"}
    assert page.complaints() == []


def test_a_phone_shows_the_page_without_scrolling_sideways(served, tmp_path):
    phone = Browser(tmp_path, width=390, height=844)
    try:
        phone.open(served)
        draw(phone)
        phone.until_state("done")
        assert phone.script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        phone.close()
