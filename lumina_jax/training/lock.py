"""One training at a time in a folder.

In: the folders to which a run writes. Out: a block in which no other run, on this machine or another, writes to them. A
file `lock.json` in each folder names the process that writes, and is rewritten every few seconds.

    {"token": "6f0c41...", "host": "vm-1", "pid": 312, "started": "118423", "boot": "0b7e9a...", "processes": "pid:[4]",
     "since": "2026-11-26 02:40:11 +0000", "beats": 7, "beat_at": 1795660811.3}

A run that was killed blocks nobody on its machine: the system releases its lock on the file (flock), and its process
no longer exists. On another machine, or in a bucket, the next run waits until the file has not changed for a while.
Reading needs no lock.
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
"""Seconds between two writes of the file."""
PATIENCE = 45.0
"""Seconds without a write after which a run on another machine is considered dead."""
FORGOTTEN = 600.0
"""Seconds after the last write, by the clocks of both machines, after which there is no need to wait."""
SETTLING = 1.0
"""Seconds within which two runs that start together in a bucket see the file of the other."""
SIZE = 1024
"""Bytes of the file, padded, so that one call replaces it and nobody reads a part of it."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that writes to a folder."""

    token: str
    host: str
    pid: int
    started: str
    """The start time of the process in the system's units, since process ids are reused."""
    boot: str
    """The id of the current boot of the machine; its containers have the same."""
    processes: str
    """The namespace of `pid`, which differs between containers."""
    since: str
    beats: int
    beat_at: float


@contextlib.contextmanager
def locked(folders: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Within the block this job alone trains in these folders, which are created; a folder may be a URL. Every process
    of the job must call this; process 0 holds the locks.

    Raises:
      ValueError: another run trains there; the message names its host, process and start time.
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
      end: called with the reason if another run has taken the folder, because this one was suspended for too long.
    """

    def __init__(self, folder: str, end: Callable[[str], None] | None = None):
        self._folder, self._end = folder, end or _end_process
        self._path = located(folder) / LOCK_FILE
        self._is_local = "://" not in folder
        self._file: int | None = None
        self._holding: Holder | None = None
        self._made_folder = False
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Take the lock; raises as `locked`."""
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._made_folder = True
        this, is_certain = _this_process(), self._is_local and self._take_file()
        other = self._holder()
        if other is not None and not (is_certain and other.boot == this.boot):
            self._wait_until_gone(other, this)
        self._holding = this
        self._write(this)
        if not self._is_local:
            time.sleep(SETTLING)
            self._check_holder()
        self._beating.start()

    def release(self) -> None:
        """Release the lock and remove the file, so that the next run need not wait."""
        self._over.set()
        if self._holding is not None:
            if self._beating.is_alive():
                self._beating.join()
            with contextlib.suppress(Exception):  # buckets raise errors of any type, and none of them matters here
                self._path.unlink()
        if self._file is not None:
            os.close(self._file)
        if self._made_folder and self._is_local:
            with contextlib.suppress(OSError):  # it is no longer empty
                os.rmdir(self._path.parent)

    def _take_file(self) -> bool:
        """Take the system's lock on the file, which ends with this process. Returns whether the file system has such
        locks."""
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
            os.close(self._file)  # the previous holder has just removed this file

    def _wait_until_gone(self, other: Holder, this: Holder) -> None:
        """Return if the run in the file is dead; otherwise refuse."""
        if (other.boot, other.processes) == (this.boot, this.processes):
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
        """The process named in the file; None: there is none."""
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

    def _check_holder(self) -> None:
        """Refuse to continue if the file names another process."""
        other = self._holder()
        if other is not None and self._holding is not None and other.token != self._holding.token:
            self._holding = None  # the file belongs to the other
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
                self._check_holder()
                assert self._holding is not None
                self._holding = dataclasses.replace(self._holding, beats=self._holding.beats + 1, beat_at=time.time())
                self._write(self._holding)
            except ValueError as error:
                self._end(str(error))
                return
            except (
                Exception
            ):  # such as a full disk, or a bucket that cannot be reached, which raises errors of any type
                continue


def _this_process() -> Holder:
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
    """The start time of a process; an empty string if there is none."""
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
    """End at once, without saving: the folder belongs to another run now."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(1)
