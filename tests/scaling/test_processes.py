"""The processes of a grid, with programs that take no time instead of training."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lumina_jax.scaling import devices
from lumina_jax.scaling.devices import DeviceSet, device_sets
from lumina_jax.scaling.processes import train_cells
from tests.scaling.tiny_grid import tiny_grid
from tests.training.processes import ENVIRONMENT, ROOT

CORES = tuple(sorted(os.sched_getaffinity(0)))


def program(text):
    """The words that run a program, of which {name} is the name of its cell."""
    return lambda cell: [sys.executable, "-S", "-c", textwrap.dedent(text).replace("{name}", cell.name)]


def train(cells, folder, sets, text):
    ends = []
    failures = train_cells(
        cells, folder, sets, program(text), dict(os.environ) | {"FOLDER": str(folder)},
        ended=lambda cell, is_over: ends.append((cell.seed, is_over)), shown=lambda steps: None,
    )  # fmt: skip
    return failures, ends


def test_as_many_runs_as_sets_of_devices_are_trained_at_a_time(tmp_path):
    """Each program counts those that run beside it."""
    cells = tiny_grid(seeds=range(4)).cells
    text = """
        import os, pathlib, time
        folder = pathlib.Path(os.environ["FOLDER"])
        (folder / "{name}.running").touch()
        time.sleep(0.3)
        print(len(list(folder.glob("*.running"))), os.environ["NUMBER"])
        (folder / "{name}.running").unlink()
    """
    sets = [DeviceSet(CORES, {"NUMBER": str(index)}) for index in range(2)]
    failures, ends = train(cells, tmp_path, sets, text)
    said = [(tmp_path / "runs" / cell.name / "log.txt").read_text().split() for cell in cells]
    assert failures == []
    assert sorted(seed for seed, _ in ends) == [0, 1, 2, 3]
    assert max(int(count) for count, _ in said) == 2
    assert {number for _, number in said} == {"0", "1"}


def test_a_run_that_fails_is_named_with_the_end_of_its_log_and_the_others_go_on(tmp_path):
    cells = tiny_grid(seeds=range(3)).cells
    text = "print('before'); assert '{name}' != '" + cells[1].name + "', 'no space on the disk'"
    (failure,), ends = train(cells, tmp_path, [DeviceSet(CORES, {})], text)
    assert ends == [(0, True), (1, False), (2, True)]
    assert failure.cell == cells[1]
    assert f"{cells[1].name} ended with status 1" in str(failure)
    assert "AssertionError: no space on the disk" in str(failure)


def test_a_run_has_the_cores_of_its_set_and_the_grid_keeps_its_own(tmp_path):
    cells = tiny_grid(seeds=range(2)).cells
    train(cells, tmp_path, [DeviceSet(CORES[-1:], {})], "import os; print(sorted(os.sched_getaffinity(0)))")
    for cell in cells:
        assert (tmp_path / "runs" / cell.name / "log.txt").read_text() == f"[{CORES[-1]}]\n"
    assert tuple(sorted(os.sched_getaffinity(0))) == CORES


def test_a_run_ends_when_the_process_of_its_grid_is_killed(tmp_path):
    child = """
        import os, pathlib, time
        from lumina_jax.scaling.processes import end_with_parent
        end_with_parent()
        pathlib.Path(os.environ["FOLDER"], "pid").write_text(str(os.getpid()))
        time.sleep(60)
    """
    parent = f"""
        import os, sys, pathlib
        from lumina_jax.scaling.devices import DeviceSet
        from lumina_jax.scaling.processes import train_cells
        from tests.scaling.tiny_grid import tiny_grid
        words = [sys.executable, "-c", {textwrap.dedent(child)!r}]
        train_cells(tiny_grid().cells, pathlib.Path({str(tmp_path)!r}), [DeviceSet({CORES!r}, {{}})],
                    lambda cell: words, dict(os.environ), ended=print, shown=print)
    """
    environment = ENVIRONMENT | {"FOLDER": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], cwd=ROOT, env=environment)
    pid = int(waited_for(lambda: (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert waited_for(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def waited_for(claim, seconds=60.0):
    """The first value of `claim` that is true."""
    deadline = time.monotonic() + seconds
    while not (found := claim()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_the_machine_is_divided_equally_or_the_jobs_are_refused(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert device_sets(None, None, on_cpu=True) == [DeviceSet((0, 1, 2, 3, 4), {})]
    assert device_sets(2, None, on_cpu=True) == [DeviceSet((0, 1), {}), DeviceSet((2, 3), {})]
    with pytest.raises(ValueError, match="--jobs=6 runs needs a core of its own, but there are 5"):
        device_sets(6, None, on_cpu=True)
    with pytest.raises(ValueError, match="--jobs=0 must be at least 1"):
        device_sets(0, None, on_cpu=True)


def test_runs_have_the_cores_of_the_grid_however_many_are_trained_at_a_time(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert [found.cores for found in device_sets(1, 2, on_cpu=True)] == [(0, 1)]
    assert [found.cores for found in device_sets(None, 2, on_cpu=True)] == [(0, 1), (2, 3)]
    with pytest.raises(
        ValueError, match="--jobs=3 runs needs 2 cores of its own, but there are 5 cores; give at most 2"
    ):
        device_sets(3, 2, on_cpu=True)
    with pytest.raises(ValueError, match="each run of the grid has 8 cores, but there are 5"):
        device_sets(None, 8, on_cpu=True)


def test_each_run_sees_its_accelerators_only(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    files = [f"/dev/accel{index}" for index in range(8)]
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: files if pattern == "/dev/accel*" else [])
    first, second = device_sets(2, 1, on_cpu=False)
    assert first.variables["TPU_VISIBLE_CHIPS"] == "0,1,2,3"
    assert second.variables["TPU_VISIBLE_CHIPS"] == "4,5,6,7"
    assert second.variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert (first.cores, second.cores) == ((0, 1, 2, 3), (4, 5, 6, 7))
    gpus = ["/dev/nvidia0", "/dev/nvidia1"]
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: gpus if "nvidia" in pattern else [])
    found = [found.variables for found in device_sets(2, None, on_cpu=False)]
    assert found == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with pytest.raises(ValueError, match="--jobs=3 must divide the 2 accelerators"):
        device_sets(3, None, on_cpu=False)
