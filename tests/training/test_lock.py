"""One training at a time in a folder; what a killed one leaves behind holds up nobody."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from lumina_jax.training import lock as locks
from lumina_jax.training.checkpoint import LOCK_FILE, is_begun
from lumina_jax.training.lock import Lock, locked

HOLDING = """
import sys, time
from lumina_jax.training.lock import locked

with locked([sys.argv[1]]):
    print("holds", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("PATIENCE", 3.0), ("SETTLING", 0.05)):
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture
def bucket(monkeypatch, quick):
    """Folders are not of this machine's file system: there is no flock."""
    init = Lock.__init__

    def remote(self, *arguments):
        init(self, *arguments)
        self._is_local = False

    monkeypatch.setattr(Lock, "__init__", remote)


@contextlib.contextmanager
def holding(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_with_host_process_and_time_and_a_killed_one_holds_up_nobody(tmp_path):
    with holding(tmp_path) as process:
        with (
            pytest.raises(ValueError, match=rf"in use by process {process.pid} on .*, since 20\d\d-.*another run.name"),
            locked([tmp_path]),
        ):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_FILE).exists(), "a killed process removes nothing"
        started = time.monotonic()
        with locked([tmp_path]):
            assert time.monotonic() - started < locks.PATIENCE / 2
    assert not list(tmp_path.iterdir())


def left_behind(folder, **changes):
    """The file of a run that was killed."""
    lock = Lock(str(folder))
    lock.take()
    text = (folder / LOCK_FILE).read_text()
    lock.release()
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_text(json.dumps(json.loads(text) | changes))


def test_a_killed_run_of_this_machine_holds_up_nobody_where_there_is_no_flock(tmp_path, bucket):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for changes in ({"pid": ended.pid}, {"started": "1"}):
        left_behind(tmp_path, **changes)
        started = time.monotonic()
        with locked([tmp_path]):
            assert time.monotonic() - started < locks.PATIENCE / 2
    left_behind(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"), locked([tmp_path]):
        pass


def test_a_run_on_another_machine_is_refused_while_its_file_changes_and_taken_over_when_it_does_not(tmp_path, quick):
    left_behind(tmp_path, host="elsewhere", boot="another")
    ending = threading.Event()

    def lives():
        beats = 0
        while not ending.wait(0.02):
            beats += 1
            text = json.dumps(json.loads((tmp_path / LOCK_FILE).read_text()) | {"beats": beats})
            (tmp_path / "new").write_text(text)
            os.replace(tmp_path / "new", tmp_path / LOCK_FILE)

    life = threading.Thread(target=lives)
    life.start()
    with pytest.raises(ValueError, match=r"in use by process .* on elsewhere"), locked([tmp_path]):
        pass
    ending.set()
    life.join()
    started = time.monotonic()
    with locked([tmp_path]):
        assert time.monotonic() - started > locks.PATIENCE / 2
    left_behind(tmp_path, host="elsewhere", boot="another", beat_at=time.time() - 3600)
    started = time.monotonic()
    with locked([tmp_path]):
        assert time.monotonic() - started < locks.PATIENCE / 2, "an hour ago needs no waiting"


@pytest.mark.parametrize("where", ["here", "bucket"])
def test_a_run_that_stood_still_and_was_taken_over_ends(tmp_path, where, quick, request):
    if where == "bucket":
        request.getfixturevalue("bucket")
    reasons, ended = [], threading.Event()
    lock = Lock(str(tmp_path), lambda why: (reasons.append(why), ended.set()))
    lock.take()
    other = dataclasses.replace(lock._holding, token="other", host="elsewhere")
    lock._write(other)
    assert ended.wait(5)
    assert "in use by process" in reasons[0]
    assert "elsewhere" in reasons[0]
    lock.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere", "the file is theirs"


def test_a_lock_that_cannot_be_read_and_is_nobodys_is_taken(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"pid": "x"')
    with locked([tmp_path]):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_lock_is_no_beginning_of_a_run_and_leaves_no_folder(tmp_path):
    with locked([tmp_path / "runs" / "new"]):
        assert not is_begun(tmp_path / "runs" / "new")
    assert not (tmp_path / "runs" / "new").exists()
    with locked([tmp_path / "runs" / "new"]):
        (tmp_path / "runs" / "new" / "1").mkdir()
        assert is_begun(tmp_path / "runs" / "new")
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["1"]
