"""What each browser has drawn, the newest first, for as long as the page is served."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from pathlib import Path

MOST_BROWSERS, MOST_PICTURES = 256, 60


class History:
    """The PNG files of browsers, by a name that each has made up for itself."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Path]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, browser: str, files: Iterable[Path]) -> None:
        with self._lock:
            found = self._of.setdefault(browser, deque(maxlen=MOST_PICTURES))
            self._of.move_to_end(browser)
            for file in files:
                if file in found:
                    found.remove(file)
                found.appendleft(file)
            while len(self._of) > MOST_BROWSERS:
                self._of.popitem(last=False)

    def of(self, browser: str) -> list[Path]:
        with self._lock:
            return [file for file in self._of.get(browser, ()) if file.is_file()]

    def chosen(self, browser: str, index: int) -> Path:
        """Raises ValueError: it has no such picture."""
        found = self.of(browser)
        if not 0 <= index < len(found):
            raise ValueError("this picture is no longer in the history; choose another one")
        return found[index]
