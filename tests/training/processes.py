"""train.py, sample.py and the commands, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

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
