"""A tiny run of label-conditional emoji, and pages that draw with it."""

import asyncio
import threading
import urllib.request
from pathlib import Path

import pytest

from lumina_jax.commands import train
from lumina_jax.demo.form import Form
from tests.training.tiny import label_config

SIDE = 32


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run with checkpoints at the steps 1 and 2."""
    settings = label_config(tmp_path_factory.mktemp("runs"), run={"steps": 2, "checkpoint_every": 1})
    assert train.run(settings)
    return Path(settings.run.root) / "tiny"


@pytest.fixture(scope="session")
def studio(run_folder):
    from lumina_jax.demo.runs import shown_runs
    from lumina_jax.demo.studio import Studio

    uploads = run_folder / "samples" / "uploads"
    uploads.mkdir(parents=True)
    return Studio(shown_runs([str(run_folder)]), [], uploads)


def new_form(**changes):
    """What a user has typed."""
    form = Form("tiny", 2, "", 1.0, "3", "", SIDE, SIDE, 1, None, 8, "5", 2, "euler", 4.0)
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
def served(run_folder):
    """The address of a page."""
    pytest.importorskip("gradio")
    from lumina_jax.commands.demo import Arguments, opened

    server = opened(Arguments(runs=(str(run_folder),), port=0))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.port}"
    with urllib.request.urlopen(address, timeout=60):
        pass
    yield address
    server.end()
    thread.join(timeout=30)
