"""Serves the page of `lumina demo` from this computer, by the rules of `lumina watch`.

In: runs, an address and perhaps a password. Out: a server. The page loads nothing from elsewhere, and tells nobody of
its use. What browsers upload lies in a folder of the first run until the server ends.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lumina_jax.demo.runs import ShownRun
from lumina_jax.generation.gallery import writable
from lumina_jax.page_access import GUESS_SECONDS, PageAccess, Refusal, address_of, family_of, not_served
from lumina_jax.run import samples_folder

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
)
"""What the page may load; Gradio makes scripts and styles of its own within it."""
FILES = "/gradio_api/file="
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""What a file that is opened by itself may do: nothing."""
WITHOUT_CALLS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


class DemoServer:
    """Serves the page of some runs until it is told to end.

    Args:
      runs: in the order of the page.
      adapters: folders of adapters that may be chosen, each with the strength that it begins with.
      access: who may open the page.
      port: 0 chooses a free one.

    Raises:
      OSError: the port is taken, or nothing can be written to the folder of the first run.
    """

    def __init__(self, runs: Sequence[ShownRun], adapters: Mapping[str, float], access: PageAccess, port: int):
        self._uploads = Path(tempfile.mkdtemp(prefix="uploads-", dir=_own_folder(runs[0])))
        try:
            self._socket = socket.create_server((access.host, port), family=family_of(access.host))
        except OSError as error:
            self._uploads.rmdir()
            raise not_served(access.host, port, error) from error
        self.port: int = self._socket.getsockname()[1]
        self.address = address_of(access.host, self.port)
        os.environ |= WITHOUT_CALLS | {"GRADIO_TEMP_DIR": str(self._uploads.resolve())}
        import uvicorn

        app = Guarded(_app(runs, adapters, self._uploads), access)
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
        self._server = uvicorn.Server(settings)
        logging.getLogger("uvicorn.error").addFilter(self._is_told)

    def _is_told(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows a message: pages that are still open when the server ends are no errors."""
        return not self._server.should_exit

    def serve(self) -> None:
        """Answer until Ctrl-C, SIGTERM or `end`; uploads are removed then."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has ended
        try:
            self._server.run(sockets=[self._socket])
        finally:
            logging.getLogger("uvicorn.error").removeFilter(self._is_told)
            shutil.rmtree(self._uploads, ignore_errors=True)

    def end(self) -> None:
        self._server.should_exit = True


class Guarded:
    """Answers only those who may open the page, and says what it may load."""

    def __init__(self, app: Any, access: PageAccess):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        refusal = self._access.refusal(host, headers.get("authorization", ""))
        if refusal is None and "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            refusal = Refusal(403, "pages from elsewhere may not use this page")  # type: ignore[arg-type]
        if refusal is not None:
            await _refuse(refusal, scope, send)
            return
        policy = FILE_POLICY if scope["path"].startswith(FILES) else POLICY
        added = [(b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff")]

        async def sent(event: Any) -> None:
            if event["type"] == "http.response.start":
                event = {**event, "headers": [*event.get("headers", []), *added]}
            await send(event)

        await self._app(scope, receive, sent)


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    if refusal.headers:
        await asyncio.sleep(GUESS_SECONDS)
    headers = {"content-type": "text/plain; charset=utf-8", **refusal.headers}
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": lines})
    await send({"type": "http.response.body", "body": f"{refusal.reason}\n".encode()})


def _app(runs: Sequence[ShownRun], adapters: Mapping[str, float], uploads: Path) -> Any:
    """The application; Gradio is imported here, after its environment was settled."""
    import fastapi
    import gradio as gr

    from lumina_jax.demo.page import new_page
    from lumina_jax.demo.studio import Studio
    from lumina_jax.demo.tabs import TABS
    from lumina_jax.demo.uploads import MOST_MEGABYTES

    system = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Default(font=system, font_mono=("ui-monospace", "monospace"))
    blocks = new_page(Studio(runs, adapters, uploads), TABS)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        "/",
        footer_links=[],
        allowed_paths=[str(samples_folder(run.folder).resolve()) for run in runs],
        max_file_size=f"{MOST_MEGABYTES}mb",
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        css=(resources.files("lumina_jax.demo") / "static" / "page.css").read_text(),
    )
    blocks.has_launched = True  # only then does Gradio refuse paths that were not uploaded
    return app


def _own_folder(run: ShownRun) -> Path:
    """The folder of a run for all that is drawn; the page writes nowhere else."""
    try:
        return writable(samples_folder(run.folder))
    except OSError as error:
        raise OSError(
            f"the page writes to the folder of its run, but {error}".replace(
                "name another folder with --out", "copy the run to a folder of yours"
            )
        ) from error
