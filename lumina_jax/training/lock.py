"""One training at a time in a folder.

In: the folders that a run writes to. Out: a block in which no other run writes there, from this machine or another. A
file `lock.json` in each folder says who writes, and changes every few seconds.

    {"token": "6f0c41...", "host": "vm-1", "pid": 312, "started": "118423", "boot": "0b7e9a...", "processes": "pid:[4]",
     "since": "2026-11-26 02:40:11 +0000", "beats": 7, "beat_at": 1795660811.3}

A run that was killed holds up nobody on its machine: the system gives back its lock of the file (flock), and its
process is no longer there. On another machine, or in a bucket, the next run waits until it is sure that the file does
not change any more. Those who only read need no lock.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lumina_jax.documents import parse_json
from lumina_jax.failures import written_to
from lumina_jax.parallel.multihost import barrier, is_first, say
from lumina_jax.training.checkpoint import LOCK_FILE, located

BEAT = 10.0
"""Seconds between two changes of the file."""
PATIENCE = 45.0
"""Seconds without one after which a run on another machine is taken for gone."""
FORGOTTEN = 600.0
"""A last change so many seconds ago, by the clocks of both machines, needs no waiting."""
SETTLING = 1.0
"""Seconds in which two runs that start together in a bucket see each other's file."""
SIZE = 1024
"""Bytes of the file, filled up, so that it is replaced in one call and nobody reads a half."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who writes to a folder."""

    token: str
    host: str
    pid: int
    started: str
    """When its process started, as the system counts; numbers of processes are given again."""
    boot: str
    """Of the machine, another one each time it starts; containers on it share it."""
    processes: str
    """The container in which `pid` means anything."""
    since: str
    beats: int
    beat_at: float


@contextlib.contextmanager
def locked(folders: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Within the block this job alone trains in these folders, which are created; a folder may be a URL. Every process
    of the job must come here, and the first holds the locks.

    Raises:
      ValueError: another run trains there; it names the host, the process and since when.
      OSError: a folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        if is_first():
            for folder in dict.fromkeys(map(str, folders)):
                lock = Lock(folder)
                stack.callback(lock.release)
                with written_to(folder, "a lock", "run.root"):
                    lock.take()
        barrier("the folders of the run are locked")
        yield


class Lock:
    """The lock of one folder.

    Args:
      end: called with the reason when another run has taken over, since this one stood still for long.
    """

    def __init__(self, folder: str, end: Callable[[str], None] | None = None):
        self._folder, self._end = folder, end or _end_process
        self._path = located(folder) / LOCK_FILE
        self._is_local = "://" not in folder
        self._file: int | None = None
        self._own: Holder | None = None
        self._made_folder = False
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Errors as `locked`."""
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._made_folder = True
        own, is_certain = _myself(), self._is_local and self._take_file()
        other = self._holder()
        if other is not None and not (is_certain and other.boot == own.boot):
            self._wait_until_gone(other, own)
        self._own = own
        self._write(own)
        if not self._is_local:
            time.sleep(SETTLING)
            self._check_own()
        self._beating.start()

    def release(self) -> None:
        """The folder is free; the file goes, so that nobody need wait to be sure of that."""
        self._over.set()
        if self._own is not None:
            if self._beating.is_alive():
                self._beating.join()
            with contextlib.suppress(Exception):  # a bucket has errors of any type, and none of them matters here
                self._path.unlink()
        if self._file is not None:
            os.close(self._file)
        if self._made_folder and self._is_local:
            with contextlib.suppress(OSError):  # it is no longer empty
                os.rmdir(self._path.parent)

    def _take_file(self) -> bool:
        """Take the system's lock of the file, which ends with this process; whether the file system has such locks."""
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse(self._holder())
            except OSError:
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                    return True
            os.close(self._file)  # who had it has just removed it

    def _wait_until_gone(self, other: Holder, own: Holder) -> None:
        """Return when the run that the file names is taken for gone; else refuse."""
        if (other.boot, other.processes) == (own.boot, own.processes):
            if _start_of(other.pid) == other.started:
                self._refuse(other)
            return
        if time.time() - other.beat_at > FORGOTTEN:
            return
        say(f"{self._folder} was last used by {_described(other)}; waiting to see whether it still is")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(PATIENCE / 45)
            now = self._holder()
            if now is None:
                return
            if (now.token, now.beats) != (other.token, other.beats):
                self._refuse(now)

    def _holder(self) -> Holder | None:
        """Who the file names; None: nobody."""
        try:
            return parse_json(self._path.read_bytes(), Holder, str(self._path))
        except (ValueError, FileNotFoundError):
            return None

    def _refuse(self, other: Holder | None) -> None:
        who = "another run" if other is None else _described(other)
        raise ValueError(
            f"only one run may train in {self._folder}, but it is in use by {who}; wait for its end, stop it, or "
            "choose another run.name (and run.checkpoints)"
        )

    def _check_own(self) -> None:
        """Refuse to go on if the file names another."""
        other = self._holder()
        if other is not None and self._own is not None and other.token != self._own.token:
            self._own = None  # the file is theirs
            self._refuse(other)

    def _write(self, holder: Holder) -> None:
        text = json.dumps(dataclasses.asdict(holder)).ljust(SIZE - 1) + "\n"
        if self._file is not None:
            os.pwrite(self._file, text.encode(), 0)
            os.truncate(self._file, SIZE)
        else:
            self._path.write_text(text)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._check_own()
                assert self._own is not None
                self._own = dataclasses.replace(self._own, beats=self._own.beats + 1, beat_at=time.time())
                self._write(self._own)
            except ValueError as error:
                self._end(str(error))
                return
            except Exception:  # the disk is full, or the bucket away for a while, which has errors of any type
                continue


def _myself() -> Holder:
    now = datetime.datetime.now(datetime.UTC)
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        boot=_first_line("/proc/sys/kernel/random/boot_id") or f"{uuid.getnode():x}",
        processes=_link("/proc/self/ns/pid"),
        since=f"{now:%Y-%m-%d %H:%M:%S %z}",
        beats=0,
        beat_at=time.time(),
    )


def _start_of(pid: int) -> str:
    """When a process started; nothing if there is none."""
    after_name = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return after_name[19] if len(after_name) > 19 else ""


def _first_line(file: str) -> str:
    try:
        return Path(file).read_text(errors="replace").split("\n")[0]
    except OSError:
        return ""


def _link(file: str) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


def _described(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}, since {holder.since}"


def _end_process(why: str) -> None:
    """End at once: what this run would save is no longer its business."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(1)
