"""The page that shows runs while they train, served from this computer.

In: runs, who may open the page, and a port. Out: a server of one page, its curves as JSON, and the sheets of samples.
The page loads nothing from elsewhere. Requests read; none writes, and no file is served but the page's own and sheets
that a run lists.
"""

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

from lumina_jax.page_access import GUESS_SECONDS, PageAccess, Refusal, address_of, family_of
from lumina_jax.watching.runs import WatchedRun

STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'"
"""What the page may load; Plotly writes styles of its own into it."""


class WatchServer(ThreadingHTTPServer):
    """Serves the page of some runs until it is shut down.

    Args:
      runs: their folders, in the order of the page.
      access: who may open the page.
      port: 0 chooses a free one.

    Raises:
      OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[WatchedRun], access: PageAccess, port: int):
        self.runs, self.access = runs, access
        self._reading = threading.Lock()
        self.address_family = family_of(access.host)
        super().__init__((access.host, port), _Page)

    @property
    def address(self) -> str:
        return address_of(self.access.host, self.server_port)

    def state(self) -> bytes:
        """All that the page shows besides sheets, as JSON."""
        with self._reading:
            names = [run.name for run in self.runs]
            shown = [name if names.count(name) == 1 else run.folder for name, run in zip(names, self.runs)]
            states = [{"name": name, **_state(run)} for name, run in zip(shown, self.runs)]
            return json.dumps({"runs": states}, allow_nan=False).encode()


def _state(run: WatchedRun) -> dict[str, Any]:
    """What is known of a run; where a file of it cannot be read, the rest and why."""
    problems: list[str] = []

    def read(part: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return part()
        except (OSError, ValueError) as error:
            problems.append(str(error))
            return otherwise

    for part in (run.read_metrics, run.read_config, run.read_sheets):
        read(part, None)
    return {
        "folder": run.folder,
        "steps": run.steps(),
        "curves": run.curves(),
        "sheets": [{"step": sheet.step, "name": sheet.name} for sheet in run.sheets],
        "settings": read(run.settings, {}),
        "problems": [*problems, *run.problems],
    }


class _Page(BaseHTTPRequestHandler):
    """The answer to one request."""

    server: WatchServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        path = urlsplit(self.path).path
        if path in STATIC:
            name, kind = STATIC[path]
            self._send((resources.files("lumina_jax.watching") / "static" / name).read_bytes(), kind)
        elif path == "/plotly.js":
            self._send(_plotly(), "text/javascript; charset=utf-8")
        elif path == "/state":
            self._send(self.server.state(), "application/json")
        else:
            self._send_sheet(path)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not printed."""

    def _is_allowed(self) -> bool:
        """Whether the page is for whoever asks; if not, they are told why."""
        refusal = self.server.access.refusal(self.headers.get("Host", ""), self.headers.get("Authorization", ""))
        if refusal is None:
            return True
        if refusal.status is HTTPStatus.UNAUTHORIZED:
            time.sleep(GUESS_SECONDS)
        self._refuse(refusal)
        return False

    def _send_sheet(self, path: str) -> None:
        try:
            sheet = self._sheet(path)
        except OSError as error:
            self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)))
            return
        if sheet is None:
            self._refuse(Refusal(HTTPStatus.NOT_FOUND, "there is no such page"))
        else:
            self._send(sheet, "image/png")

    def _sheet(self, path: str) -> bytes | None:
        """The sheet of /sheet/RUN/NAME, where RUN is the number of a run."""
        parts = path.split("/")
        if len(parts) != 4 or parts[1] != "sheet" or not parts[2].isdecimal() or int(parts[2]) >= len(self.server.runs):
            return None
        return self.server.runs[int(parts[2])].sheet(unquote(parts[3]))

    def _send(self, content: bytes, kind: str) -> None:
        """Send content, or only that it has not changed since the browser read it."""
        version = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        has_it = self.headers.get("If-None-Match") == version
        self.send_response(HTTPStatus.NOT_MODIFIED if has_it else HTTPStatus.OK)
        self._headers({"Content-Type": kind, "ETag": version}, 0 if has_it else len(content))
        if not has_it:
            self.wfile.write(content)

    def _refuse(self, refusal: Refusal) -> None:
        self.send_response(refusal.status)
        content = f"{refusal.reason}\n".encode()
        self._headers({"Content-Type": "text/plain; charset=utf-8", **refusal.headers}, len(content))
        self.wfile.write(content)

    def _headers(self, headers: dict[str, str], length: int) -> None:
        always = {
            "Content-Length": str(length),
            "Cache-Control": "no-cache",
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in (always | headers).items():
            self.send_header(name, value)
        self.end_headers()


@functools.cache
def _plotly() -> bytes:
    """The script of Plotly, from its package."""
    from plotly.offline import get_plotlyjs  # slow to import

    script: str = get_plotlyjs()
    return script.encode()
