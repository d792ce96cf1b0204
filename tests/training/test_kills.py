"""A run killed a hundred times, at random moments of its start, its steps, its saves and its sheets, ends as one that
nobody disturbed: bit for bit.

    python -m pytest -n 0 -s -m slow tests/training/test_kills.py       KILLS=5 in the environment: only so many
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lumina_jax.config import VaeConfig
from lumina_jax.training.checkpoint import Checkpoints
from tests.training.processes import ENVIRONMENT, ROOT, training_command, workers_of
from tests.training.tiny import config

GOLDEN = ROOT / "tests" / "golden"
KILLS = int(os.environ.get("KILLS", "100"))
STEPS_OF_AN_ATTEMPT = 12
"""About as many as one has time for before it is killed, on a fast machine."""


def pictures(folder):
    """Pictures of several aspect ratios with captions."""
    folder.mkdir()
    random_pixels = np.random.default_rng(0)
    lines = []
    for index in range(24):
        size = ((32, 32), (24, 48), (48, 24))[index % 3]
        Image.fromarray(random_pixels.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{index:02}.png")
        lines.append(json.dumps({"image": f"{index:02}.png", "caption": f"noise number {index}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def settings_of(root, data, steps):
    """Captions and latents in caches, packed rows of which some samples wait, two workers, sheets; all of it tiny."""
    settings = config(
        root,
        model={"channels": 4, "patch_size": 2, "text_width": 24, "nextframe": False},
        text={"encoder": str(GOLDEN / "bert_tiny"), "max_tokens": 8, "cache": str(root / "cache" / "text")},
        data={
            "source": "folder", "path": str(data), "crop": "buckets", "row_tokens": 50, "samples_per_row": 2,
            "workers": 2, "prefetch": 8,
        },
        run={
            "steps": steps, "log_every": 1, "checkpoint_every": 2, "sample_every": 5,
            "sample_prompts": ("noise number 1", "something else"),
        },
    )  # fmt: skip
    vae = VaeConfig(path=str(GOLDEN / "vae_tiny"), cache=str(root / "cache" / "latents"))
    return settings.replace(vae=vars(vae))


class Attempt:
    """One start of a run, in a new process group."""

    def __init__(self, settings, environment):
        self.says = Path(settings.run.root) / "says.txt"
        command = training_command(settings)
        with self.says.open("w") as says:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=says, stderr=subprocess.STDOUT, start_new_session=True
            )

    def said(self):
        return self.says.read_text(errors="replace")

    def steps(self):
        return len(re.findall(r"\bloss ", self.said()))

    def wait_for_steps(self, count, seconds=600.0):
        """Until so many are done, the run has ended, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        while self.steps() < count and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)


def killed(attempt, moments, start):
    """Kill it in some way at some moment, its start taking so many seconds; returns what was done."""
    when = moments.choices(["at its start", "between steps", "by its worker"], [4, 5, 1])[0]
    if when == "at its start":
        attempt.wait_for_steps(1, moments.uniform(0, start))
    else:
        attempt.wait_for_steps(moments.randint(1, 4))
        time.sleep(moments.uniform(0, 0.3))
    assert attempt.process.poll() is None, f"it must not end before it is killed: {attempt.said()}"
    if when == "by its worker" and (workers := workers_of(attempt.process)):
        os.kill(moments.choice(workers), signal.SIGKILL)
        assert attempt.process.wait(timeout=120) == 1, attempt.said()
        assert "was ended by signal 9" in attempt.said()
        return when
    if moments.random() < 0.5:
        os.killpg(attempt.process.pid, signal.SIGKILL)
        when += ", the group"
    else:
        os.kill(attempt.process.pid, signal.SIGKILL)
        when += ", alone"
    assert attempt.process.wait(timeout=60) == -signal.SIGKILL, attempt.said()
    assert not re.search(r"error:|Traceback", attempt.said()), attempt.said()
    return when


def final(settings):
    """The newest step, every array of its state as it is stored, and its position in the data."""
    import orbax.checkpoint as ocp

    folder = Path(settings.run.root) / settings.run.name / "checkpoints"
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        state = ocp.PyTreeCheckpointer().restore(folder.absolute() / f"{step}" / "state")
        words = {name: jax.random.key_data(leaf) if name == "key" else leaf for name, leaf in state.items()}
        return step, jax.device_get(words), checkpoints.restore_data(step)


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    began, moments = time.monotonic(), random.Random(int(os.environ.get("SEED", "0")))
    environment = ENVIRONMENT | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "LUMINA_ALLOCATOR": "system",
    }
    data, steps = pictures(tmp_path / "pictures"), STEPS_OF_AN_ATTEMPT * KILLS + 20
    whole, broken = (settings_of(tmp_path / name, data, steps) for name in ("whole", "broken"))
    for settings in (settings_of(tmp_path / "first", data, 5), whole):  # the second finds its programs compiled
        attempt, started = Attempt(settings, environment), time.monotonic()
        attempt.wait_for_steps(1)
        start = time.monotonic() - started
        assert attempt.process.wait() == 0, attempt.said()
        print(f"undisturbed: {start:.1f} s to the first step, {time.monotonic() - started:.1f} s in all", flush=True)

    groups, reached = [], 0
    for number in range(1, KILLS + 1):
        if moments.random() < 0.15:
            shutil.rmtree(tmp_path / "broken" / "cache", ignore_errors=True)
        attempt = Attempt(broken, environment)
        groups.append(attempt.process.pid)
        how = killed(attempt, moments, start)
        if found := re.search(r"continuing from step (\d+)", attempt.said()):
            assert int(found[1]) >= reached, "a checkpoint was lost"
            reached = int(found[1])
        print(
            f"{number:3} of {KILLS} {time.monotonic() - began:5.0f} s  from step {reached:3}: killed {how}", flush=True
        )
    attempt = Attempt(broken, environment)
    assert attempt.process.wait() == 0, attempt.said()

    (last, ours, data_state), (_, theirs, their_data_state) = final(broken), final(whole)
    assert last == steps
    assert data_state == their_data_state
    assert data_state["waiting"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)
    reports = [json.loads(line)["step"] for line in (tmp_path / "broken/tiny/metrics.jsonl").read_text().splitlines()]
    assert reports == list(range(1, steps + 1))
    deadline = time.monotonic() + 20
    while any(map(is_alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, groups)), "a worker outlived its run"
    print(f"{KILLS} kills in {time.monotonic() - began:.0f} s; {len(ours)} arrays are the same")
