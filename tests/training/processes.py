"""train.py, sample.py and the commands, each in a new process, or in this one."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lumina_jax.commands import train
from lumina_jax.failures import reported

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def training_command(settings, *flags):
    """The words that train with these settings, which are saved beside the run."""
    folder = Path(settings.run.root)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{settings.run.name}.json"
    file.write_text(settings.to_json())
    return [sys.executable, str(ROOT / "train.py"), str(file), *flags]


def finished(words):
    """The process that these words started, at its end."""
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def training(settings, *flags):
    return finished(training_command(settings, *flags))


def sampling(*words):
    return finished([sys.executable, str(ROOT / "sample.py"), *map(str, words)])


def module(*words):
    """python -m lumina_jax."""
    return finished([sys.executable, "-m", "lumina_jax", *map(str, words)])


def workers_of(process):
    """Process ids of the data workers of a run."""
    children = [file.read_text() for file in Path(f"/proc/{process.pid}/task").glob("*/children")]
    pids = map(int, " ".join(children).split())
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def here(main, *words):
    """A command in this process, which shares its compiled programs: the status, and what was printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setenv("LUMINA_ALLOCATOR", "system")  # else it would start itself again
            try:
                status = main([str(word) for word in words])
            except SystemExit as error:
                status = error.code
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), err.read())


def training_here(settings):
    """`training` in this process."""

    def main(words):
        with reported():
            train.train(settings)
        return 0

    return here(main)
