"""How runs end before their last step: asked to, without data, without output; nothing that was trained is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from lumina_jax.data.batches import Stream
from lumina_jax.data.example import contents
from lumina_jax.data.sources import open_source
from lumina_jax.parallel import multihost
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.feed import Feed
from lumina_jax.training.lock import locked
from lumina_jax.training.loop import restored_or_new, train_steps
from lumina_jax.training.step import train_step
from tests.training.processes import ENVIRONMENT, ROOT, training_command, workers_of
from tests.training.tiny import config, label_config

ASKED = """
import sys, time
from lumina_jax.parallel.multihost import stop_requests

with stop_requests() as is_asked:
    print("ready", flush=True)
    while not is_asked(1):
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(float(sys.argv[1]))
print("saved", flush=True)
"""


def asking(seconds=0.0, before=None):
    """A program that saves for so many seconds when it is asked to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(seconds)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_each_request_saves_and_a_second_ctrl_c_stops_at_once():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        process = asking()
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert (out, process.returncode) == ("asked\nsaved\n", 0), number
        assert ("press Ctrl-C again to stop at once" in err) == (number == signal.SIGINT)
    process = asking(seconds=60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in err


def test_signals_that_were_ignored_stay_so():
    """As after nohup, and in the background of a script."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = asking(before=ignore)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0] == "asked\nsaved\n"


def started(settings, **streams):
    return subprocess.Popen(
        training_command(settings), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, **streams
    )


def wait_until(claim, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not claim():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_whose_output_is_closed_goes_on_and_ctrl_c_saves(tmp_path):
    """As `train.py | head -1` does; nobody else may train there in the meantime."""
    settings = label_config(tmp_path, run={"steps": 10**6, "log_every": 1, "checkpoint_every": 10**6})
    with (tmp_path / "errors").open("w") as errors:
        process = started(settings, stderr=errors)
    assert any("loss" in line for line in process.stdout)
    process.stdout.close()
    printed = len(steps_of(tmp_path / "tiny"))
    wait_until(lambda: len(steps_of(tmp_path / "tiny")) > printed + 10, process)
    with pytest.raises(ValueError, match=f"in use by process {process.pid}"), locked([tmp_path / "tiny"]):
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 0
    errors = (tmp_path / "errors").read_text()
    assert "Traceback" not in errors
    assert "Broken pipe" not in errors
    assert Checkpoints(tmp_path / "tiny/checkpoints", read_only=True).latest() == steps_of(tmp_path / "tiny")[-1]
    assert not (tmp_path / "tiny/lock.json").exists()


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_run_which_says_why_and_saves(tmp_path):
    run = {"steps": 10**6, "log_every": 1, "checkpoint_every": 10**6}
    process = started(label_config(tmp_path, run=run, data={"workers": 2}), stderr=subprocess.PIPE)
    assert any("loss" in line for line in process.stdout)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: the data worker of process id {workers[0]} was ended by signal 9, as the system does when" in err
    assert "lower data.workers or data.prefetch" in err
    assert "Traceback" not in err
    assert Checkpoints(tmp_path / "tiny/checkpoints", read_only=True).latest() >= steps_of(tmp_path / "tiny")[-1]
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def trained(settings, show=None):
    """The steps that a run of these settings saves, in this process."""
    mesh = make_mesh(devices=jax.devices()[:1])
    stream = Stream(open_source(settings.data, settings.model), settings.data, settings.model, seed=0)
    with Checkpoints(Path(settings.run.root) / "checkpoints", keep=9) as checkpoints, stream:
        state = restored_or_new(settings, mesh, checkpoints, stream)
        feed = Feed(stream, mesh, settings.data.batch_rows)
        train_steps(settings, state, train_step(settings, mesh), feed, checkpoints=checkpoints, writer=None, show=show)
        return checkpoints.steps()


def test_a_sheet_that_cannot_be_drawn_or_written_stops_nothing(tmp_path, capsys):
    errors = iter([ValueError("the solver gave up at t=0.3"), OSError(28, "No space left on device"), MemoryError()])

    def show(step, parameters, base):
        raise next(errors)

    settings = label_config(tmp_path, run={"steps": 6, "log_every": 6, "checkpoint_every": 3, "sample_every": 2})
    assert trained(settings, show) == [3, 6]
    out = capsys.readouterr().out
    assert "warning: there is no sheet of step 2: the solver gave up at t=0.3" in out
    assert "warning: there is no sheet of step 4: [Errno 28] No space left on device" in out
    assert "warning: there is no sheet of step 6: out of memory" in out


def test_previews_that_cannot_be_drawn_are_refused_before_anything_is_made(tmp_path):
    from lumina_jax.commands.train import run

    wrong = {
        "guided_channels=4 must be": {"sample": {"guided_channels": 4}, "run": {"sample_prompts": ("1",)}},
        "a label from 0 to 47": {"run": {"sample_prompts": ("1", "48")}},
    }
    for message, sections in wrong.items():
        sections["run"] |= {"root": str(tmp_path / "runs"), "sample_every": 2}
        with pytest.raises(ValueError, match=message):
            run(label_config(**sections))
    assert not (tmp_path / "runs").exists()


def test_hosts_whose_captions_differ_are_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    from lumina_jax.training_data import opened_source

    def captions(text):
        (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "1.png", "caption": text}))
        settings = config(data={"source": "folder", "path": str(tmp_path)})
        return contents(open_source(settings.data, settings.model)), settings

    other = captions("a cat")[0]
    mine, settings = captions("a dog")
    monkeypatch.setattr(multihost, "gathered", lambda value: [dict(zip(value, (other.samples, other.ordered))), value])
    with pytest.raises(ValueError, match=f"digest of names.* is '{other.ordered}' in process 0 and '{mine.ordered}'"):
        opened_source(settings)
