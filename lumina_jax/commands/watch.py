"""lumina watch RUN...: one page that shows runs while they train.

Losses, smoothed, with those on held-out samples; speed, gradients, packing and samples that could not be used; the
sheets of samples, with a slider over the steps; and the settings in which the runs differ. The page reads the folders
of the runs every few seconds and writes nothing. Other computers see it only with --host and --password.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.failures import reported
from lumina_jax.page_access import PageFlags, not_served

if TYPE_CHECKING:
    from lumina_jax.watching.server import WatchServer


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs: local, or gs:// URLs."""
    page: Annotated[PageFlags, tyro.conf.arg(name="")] = PageFlags(port=6007)  # noqa: RUF009 (an immutable value)


def main(words: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina watch", description=__doc__)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors come back as exceptions, which we report
    with reported():
        server = opened(arguments)
        print(f"watching {len(arguments.runs)} runs at {server.address} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()
    return 0


def opened(arguments: Arguments) -> "WatchServer":
    """The server, which answers once it is started.

    Raises:
      ValueError: there is no run, a folder is none, the page would be open to everybody, or Plotly is missing.
      OSError: the port is taken.
    """
    if not arguments.runs:
        raise ValueError("watch needs at least one run; name its folder, such as runs/emoji")
    if importlib.util.find_spec("plotly") is None:
        raise ValueError("watch draws with Plotly; pip install 'lumina_jax[watch]'")
    from lumina_jax.watching.runs import WatchedRun
    from lumina_jax.watching.server import WatchServer

    runs = [WatchedRun(folder) for folder in arguments.runs]
    try:
        return WatchServer(runs, arguments.page.access(), arguments.page.port)
    except OSError as error:
        raise not_served(arguments.page.host, arguments.page.port, error) from error
