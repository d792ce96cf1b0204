"""lumina demo [RUN...]: a page that draws with trained runs, as `lumina sample` does.

Prompt, size, seed and solver; the sample while it is drawn; a history whose settings come back, also from a PNG that is
dropped; editing with a mask, regions, sets in one style, and two runs or checkpoints side by side. Samples are written
to samples/STEP/demo in the folder of the run. Other computers see the page only with --host and --password.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.page_access import PageFlags

if TYPE_CHECKING:
    from lumina_jax.demo.server import DemoServer


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs; default: the one below ./runs that was written to last, or else the model in the package."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An adapter that may be chosen, as FOLDER or FOLDER:STRENGTH; may be given several times."""
    page: Annotated[PageFlags, tyro.conf.arg(name="")] = PageFlags(port=6008)  # noqa: RUF009 (an immutable value)


def main(words: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina demo", description=__doc__)
    with reported():
        keep_memory_on_cpu()
        server = opened(arguments)
        print(f"drawing at {server.address} (Ctrl-C ends)", flush=True)
        server.serve()
    return 0


def opened(arguments: Arguments) -> "DemoServer":
    """The server, which answers once it is started.

    Raises:
      ValueError: there is no run, a folder is none, the page would be open to everybody, or Gradio is missing.
      OSError: the port is taken, or samples cannot be written.
    """
    access = arguments.page.access()
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("demo draws its page with Gradio; pip install 'lumina_jax[demo]'")
    from lumina_jax.demo.runs import shown_adapters, shown_runs
    from lumina_jax.demo.server import DemoServer

    runs, adapters = shown_runs(arguments.runs), shown_adapters(arguments.adapter)
    return DemoServer(runs, adapters, access, arguments.page.port)
