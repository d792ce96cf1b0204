"""Jobs of several processes: they train as one does, are killed in every way, and go on in any number."""

import collections
import json
import os
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

from lumina_jax.data.batches import Stream
from lumina_jax.data.sources import open_source
from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.held_out import held_out_loss
from lumina_jax.parallel.liveness import ENDED_BY_OTHERS
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.feed import Feed
from lumina_jax.training.loop import restored_or_new, train_steps
from lumina_jax.training.state import abstract_state
from lumina_jax.training.step import train_step
from tests.parallel.test_liveness import free_port
from tests.training.processes import ENVIRONMENT, ROOT, training_command, workers_of
from tests.training.tiny import label_config

NOTING = """
import json, os, runpy, sys
from lumina_jax.data.batches import Stream

packed = Stream._packed

def noted(stream, row):
    before = [index for index, _ in row.waiting]
    chosen = packed(stream, row)
    left = {index for index, _ in row.waiting}
    line = json.dumps([row.number, [index for index in before if index not in left]])
    with open(os.environ["HANDED_OUT"], "a") as file:
        file.write(line + "\\n")
    return chosen

Stream._packed = noted
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs train.py, and notes for every row of every batch which samples it hands out."""


class Job:
    """The processes of one attempt at a run, each with other devices and a file for its output."""

    def __init__(self, settings, count, devices, *flags, cache=None, folders=None):
        folder = Path(settings.run.root) / f"attempt-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        port, words = free_port(), training_command(settings, *flags)
        self.notes = [folder / f"{index}.notes" for index in range(count)]
        self.says = [folder / f"{index}.txt" for index in range(count)]
        self.processes = []
        for index in range(count):
            environment = ENVIRONMENT | {
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
                "LUMINA_ALLOCATOR": "system",
                "HANDED_OUT": str(self.notes[index]),
                "PYTHONPATH": str(ROOT),
            }
            if cache is not None:
                environment |= {
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                }
            if count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                }
            with self.says[index].open("w") as says:
                self.processes.append(
                    subprocess.Popen(
                        [words[0], "-c", NOTING, *words[1:]],
                        cwd=ROOT if folders is None else folders[index],
                        env=environment,
                        stdout=says,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def statuses(self, timeout=900):
        """The exit status of each process, once all have ended."""
        deadline = time.monotonic() + timeout
        return [process.wait(max(1, deadline - time.monotonic())) for process in self.processes]

    def said(self, index):
        return self.says[index].read_text()

    def wait_for(self, claim, timeout=900):
        """Until `claim()` is true; the processes must not end before."""
        deadline = time.monotonic() + timeout
        while not claim():
            assert all(process.poll() is None for process in self.processes), self.said(0)
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def steps(self):
        """Steps that process 0 has reported."""
        return len(re.findall(r"loss", self.said(0)))

    def start(self):
        """The step that it continued from."""
        found = re.search(r"continuing from step (\d+)", self.said(0))
        return int(found[1]) if found else 0

    def handed_out(self):
        """Samples by (step, row)."""
        found = {}
        for file in self.notes:
            turns = collections.Counter()
            for line in file.read_text().splitlines():
                row, indices = json.loads(line)
                turns[row] += 1
                found[self.start() + turns[row], row] = indices
        return found


def folder_of(settings):
    return Path(settings.run.root) / settings.run.name


def state_at(settings, step=None):
    """The newest step or that of the argument, its state but for the random key, and its position in the data."""
    with Checkpoints(folder_of(settings) / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest() if step is None else step
        state = checkpoints.restore(step, abstract_state(settings, make_mesh(devices=jax.devices()[:1])))
        return step, jax.device_get(state._replace(key=None)), checkpoints.restore_data(step)


def largest_difference(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def packed_config(root, **sections):
    """Rows of one or two pictures, of which some always wait."""
    data = {"batch_rows": 8, "crop": "buckets", "row_tokens": 34, "samples_per_row": 2}
    return label_config(root, **{"data": data, "optimizer": {"learning_rate": 1e-4}, **sections})


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({}, id="rows of their own"),
        pytest.param({"tensor": 2}, id="the same rows", marks=pytest.mark.slow),
        pytest.param({"fsdp": 2}, id="parameters divided", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_and_one_goes_on_from_their_checkpoint(tmp_path, mesh):
    run = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "keep_checkpoints": 9, "evaluate_every": 4}
    settings = packed_config(tmp_path, run=run, mesh=mesh)
    with Job(settings, 2, 1, cache=tmp_path / "cache") as job:
        assert job.statuses() == [0, 0], job.said(0) + job.said(1)
    assert job.steps() == 4
    assert "loss" not in job.said(1), "one process speaks for all"
    reported = [json.loads(line)["step"] for line in (folder_of(settings) / "metrics.jsonl").read_text().splitlines()]
    assert reported == [1, 2, 3, 4]
    _, theirs, data_state = state_at(settings)
    assert data_state["waiting"]
    assert data_state["rows"] is None

    shutil.rmtree(folder_of(settings) / "checkpoints" / "4")
    mesh = make_mesh(devices=jax.devices()[:1])
    stream = Stream(open_source(settings.data, settings.model), settings.data, settings.model, seed=0)
    with Checkpoints(folder_of(settings) / "checkpoints", keep=9) as checkpoints, stream:
        state = restored_or_new(settings, mesh, checkpoints, stream)
        assert int(state.step) == 2
        feed = Feed(stream, mesh, settings.data.batch_rows)
        state = train_steps(settings, state, train_step(settings, mesh), feed, checkpoints=checkpoints, writer=None)
    assert largest_difference(jax.device_get(state._replace(key=None)), theirs) < 1e-6
    assert stream.state() == data_state
    alone = held_out_loss(new_pipeline(settings, state.ema, None))
    assert reports(settings, "held_out_loss")[-1] == pytest.approx(alone.loss, rel=1e-5)


def assert_every_sample_once(attempts, settings):
    """The rows of each step, in its last attempt, hold each index once, up to the position of the checkpoint."""
    final = {}
    for attempt in attempts:
        final.update(attempt.handed_out())
    step, _, data_state = state_at(settings)
    rows = settings.data.batch_rows
    given = [index for at in range(1, step + 1) for row in range(rows) for index in final[at, row]]
    assert len(given) == len(set(given)), "a sample was seen twice"
    assert set(given) == set(range(data_state["position"])) - set(data_state["waiting"]), "a sample was skipped"
    samples = data_state["samples"]
    whole_epochs = min(data_state["waiting"], default=data_state["position"]) // samples
    assert whole_epochs >= 5
    counts = collections.Counter(index // samples for index in given)
    assert [counts[epoch] for epoch in range(whole_epochs)] == [samples] * whole_epochs
    return {key: final[key] for key in final if key[0] <= step}


def one_is_killed(settings, cache):
    """One of 4 processes is killed: the others say so and end."""
    with Job(settings, 4, 2, cache=cache) as job:
        job.wait_for(lambda: job.steps() >= 12)
        job.processes[2].kill()
        killed = time.monotonic()
        statuses = job.statuses(60)
        seconds = time.monotonic() - killed
    print(f"one of 4 killed at step {job.steps()}: the others ended {seconds:.1f} s later")
    assert statuses[2] == -signal.SIGKILL
    assert [statuses[index] for index in (0, 1, 3)] == [ENDED_BY_OTHERS] * 3
    assert all(re.search(r"process 2 of 4 \(.*\) is gone", job.said(index)) for index in (0, 1, 3)), job.said(0)
    assert seconds < 20
    return job


def all_are_killed_while_saving(settings, cache):
    """All 4 are killed when the folder of an unfinished checkpoint appears."""
    checkpoints = folder_of(settings) / "checkpoints"
    with Job(settings, 4, 2, cache=cache) as job:
        job.wait_for(lambda: job.steps() >= 8)
        known = {path.name for path in checkpoints.iterdir()}
        job.wait_for(lambda: any("tmp" in name for name in {path.name for path in checkpoints.iterdir()} - known))
        for process in job.processes:
            process.kill()
        assert job.statuses(60) == [-signal.SIGKILL] * 4
    torn = [path.name for path in checkpoints.iterdir() if "tmp" in path.name]
    print(f"continued from step {job.start()}; all killed while saving: {torn}")
    assert torn
    assert job.start() > 0
    return job


def one_process_is_stopped(settings, cache):
    with Job(settings, 1, 8, cache=cache) as job:
        job.wait_for(lambda: job.steps() >= 4)
        job.processes[0].send_signal(signal.SIGTERM)
        assert job.statuses() == [0], job.said(0)
    print(f"1 process x 8 devices from step {job.start()} to {state_at(settings)[0]}")
    return job


def one_of_two_is_asked_to_stop(settings, cache):
    """As by a notice of preemption: both save, after the same step."""
    with Job(settings, 2, 1, "--hosts.stopped-status", "143", cache=cache) as job:
        job.wait_for(lambda: job.steps() >= 4)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.statuses() == [143, 143], job.said(0) + job.said(1)
    print(f"2 processes x 1 device from step {job.start()} to {state_at(settings)[0]}, SIGTERM to one")
    assert state_at(settings)[0] < settings.run.steps
    return job


def two_finish(settings, cache):
    stopped = state_at(settings)[0]
    with Job(settings, 2, 1, cache=cache) as job:
        assert job.statuses() == [0, 0], job.said(0) + job.said(1)
    assert job.start() == stopped
    return job


def reports(settings, name):
    lines = (folder_of(settings) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get(name) for line in lines]


@pytest.mark.slow
def test_a_job_killed_in_every_way_ends_as_the_undisturbed_one(tmp_path):
    run = {"steps": 60, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 99}
    whole, broken = (packed_config(tmp_path / name, run=run) for name in ("whole", "broken"))
    cache = tmp_path / "cache"
    with Job(whole, 4, 2, cache=cache) as undisturbed:
        assert undisturbed.statuses() == [0] * 4, undisturbed.said(0)

    attempts = [one_is_killed(broken, cache), all_are_killed_while_saving(broken, cache)]
    step, ours, data_state = state_at(broken)
    _, theirs, their_data_state = state_at(whole, step)
    assert largest_difference(ours, theirs) == 0, "the same processes must give the same bits"
    assert data_state == their_data_state

    for attempt in (one_process_is_stopped, one_of_two_is_asked_to_stop, two_finish):
        attempts.append(attempt(broken, cache))
    expected = assert_every_sample_once([undisturbed], whole)
    assert assert_every_sample_once(attempts, broken) == expected, "every row of every batch must be the same"
    (step, ours, data_state), (_, theirs, their_data_state) = state_at(broken), state_at(whole)
    difference = largest_difference(ours, theirs)
    print(f"largest difference at step {step}: {difference:.2e}")
    assert step == 60
    assert difference < 1e-6
    assert data_state == their_data_state
    assert reports(broken, "step") == list(range(1, 61))
    np.testing.assert_allclose(reports(broken, "loss"), reports(whole, "loss"), atol=1e-6)


def captions_config(root):
    """Numbered pictures of the folder where each process is started, with labels."""
    return label_config(root, data={"source": "folder", "path": "pictures", "workers": 1, "image_size": 16})


def pictures(folder, labels):
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for index, label in enumerate(labels):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / "pictures" / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "label": label}) + "\n")
    (folder / "pictures" / "captions.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_hosts_of_other_labels_are_refused_a_lost_worker_ends_all_and_ctrl_c_saves_in_all(tmp_path):
    hosts = [pictures(tmp_path / f"host{index}", range(10)) for index in range(2)]
    other = pictures(tmp_path / "other", [0, 1, 2, 3, 4, 5, 6, 7, 9, 8])
    run = {"steps": 10**6, "log_every": 1, "checkpoint_every": 10**6}
    settings = captions_config(tmp_path).replace(run=run)
    cache = tmp_path / "cache"
    with Job(settings, 2, 1, cache=cache, folders=[hosts[0], other]) as job:
        statuses = job.statuses()
        assert all("the digest of names, captions and labels is" in job.said(index) for index in range(2)), job.said(0)
        assert 1 in statuses
        assert set(statuses) <= {1, ENDED_BY_OTHERS}
    with Job(settings, 2, 1, cache=cache, folders=hosts) as job:
        job.wait_for(lambda: job.steps() >= 2)
        (worker,) = workers_of(job.processes[1])
        os.kill(worker, signal.SIGKILL)
        assert job.statuses(180) == [ENDED_BY_OTHERS, 1], job.said(0) + job.said(1)
        assert "was ended by signal 9" in job.said(1)
        assert "process 1 of 2" in job.said(0)
    with Job(settings, 2, 1, cache=cache, folders=hosts) as job:
        job.wait_for(lambda: job.steps() >= 2)
        job.processes[1].send_signal(signal.SIGINT)
        assert job.statuses(180) == [0, 0], job.said(0) + job.said(1)
    assert state_at(settings)[0] > 0
