"""Tiny runs of all kinds, and pages that draw with them."""

import asyncio
import threading
import urllib.request

import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.demo.form import Form
from lumina_jax.demo.more_settings import LABELS
from tests.demo.saved_runs import saved_adapters, saved_run

SIDE = 32


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run of pictures with checkpoints at the steps 1 and 2."""
    return saved_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def folders(run_folder):
    """Runs of all kinds."""
    kinds = ("clips", "views", "grids", "several", "sounds")
    return [run_folder, *(saved_run(run_folder.parent, kind) for kind in kinds)]


@pytest.fixture(scope="session")
def adapters(run_folder, tmp_path_factory):
    """The words of two adapters for the run of pictures; the second begins with the strength 0.5."""
    first, second = saved_adapters(run_folder, tmp_path_factory.mktemp("adapters"))
    return f"{first}", f"{second}:0.5"


@pytest.fixture(scope="session")
def studio(run_folder, folders, adapters):
    from lumina_jax.demo.runs import shown_adapters, shown_runs
    from lumina_jax.demo.studio import Studio

    uploads = run_folder / "samples" / "uploads"
    uploads.mkdir(parents=True)
    return Studio(shown_runs([str(folder) for folder in folders]), shown_adapters(adapters), uploads)


def new_form(**changes):
    """What a user has typed."""
    settings = {name: getattr(SampleConfig(), name) for name in LABELS}
    form = Form("pictures", None, 2, "3", "", SIDE, SIDE, 1, None, 8, "5", 2, "euler", 4.0, "", settings, {})
    return form._replace(**changes)


def drawn(studio, page, *forms, **more):
    """The last view of a page whose forms are drawn."""
    studio.submit(page, "browser", forms or [new_form()], **more)
    return last_view(studio, page)


def last_view(studio, page):
    async def last():
        async for view in studio.views(page):
            found = view
        return found

    return asyncio.run(last())


@pytest.fixture(scope="session")
def served(folders, adapters):
    """The address of a page."""
    pytest.importorskip("gradio")
    from lumina_jax.commands.demo import Arguments, opened
    from lumina_jax.page_access import PageFlags

    server = opened(Arguments(runs=tuple(map(str, folders)), adapter=adapters, page=PageFlags(port=0)))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.port}"
    with urllib.request.urlopen(address, timeout=60):
        pass
    yield address
    server.end()
    thread.join(timeout=30)
