"""The files of a cache: each appears when it is complete, and holds what it was made from by digest.

In: a folder that several processes and runs may share, and the content of a file. Out: the file under its name, or an
error that names the folder and what can be done. A process that writes locks its temporary file, so what a killed one
left behind is told from what is being written at this moment.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

LAYOUT = "v2"
"""Folder within a cache of what is written like this; what lies beside it is of earlier versions, and not read."""
PARTIAL = ".partial-"
"""Beginning of the names of files that are being written."""
FOREIGN_SECONDS = 24 * 3600
"""Age from which a temporary file of another machine, whose locks may not be seen here, counts as left behind."""
DIGEST = 16
Digests = Shaped[np.ndarray, " n"]
"""Digests as strings of DIGEST bytes, type S16; zeros at their ends are dropped by numpy, and compare as if there."""


class UnwritableError(OSError):
    """A folder that cannot be written to, for want of room or of permission; `why` comes before the message."""

    def __init__(self, folder: Path, error: OSError, why: str = ""):
        super().__init__(
            f"{why}{folder} cannot be written to ({error.strerror or error}); what is complete there is kept, and the "
            "next start goes on from it: free space on its disk, make it writable, or name another folder"
        )
        self.errno = error.errno

    @property
    def is_forbidden(self) -> bool:
        """Whether nothing may be written at all, as on a file system that is mounted read-only."""
        return self.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def digest(*parts: bytes) -> bytes:
    """The digest of parts, each with its length, so that no two lists of parts read the same."""
    total = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def as_array(digests: Sequence[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), f"S{DIGEST}")


class Table:
    """Positions in an array of digests by digest, as it came; of several equal ones the first."""

    def __init__(self, digests: Digests):
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def __len__(self) -> int:
        return len(self._sorted)

    def positions(self, wanted: Digests) -> Int[np.ndarray, " m"]:
        """The position of each; -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1)

    def position(self, wanted: bytes) -> int:
        return int(self.positions(as_array([wanted]))[0])


def ready_folder(folder: Path) -> None:
    """Make the folder of a cache if it is missing, and remove what killed processes left in it.

    Raises:
      UnwritableError: it is missing and cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(folder, error) from error
    for path in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # an error: it is gone, or belongs to someone else
            if _is_abandoned(path, file):
                path.unlink()


def check_writable(folder: Path) -> None:
    """Raises UnwritableError if no file can be made in a folder."""
    with _errors_of(folder):
        probe = folder / _partial_name(uuid.uuid4().hex)
        probe.touch()
        probe.unlink()


def write(folder: Path, name: str, content: bytes | Iterable[bytes]) -> None:
    """A file under its name, complete; one that is there is replaced.

    Raises:
      UnwritableError: the disk is full, or the folder may not be written to; nothing is left behind then.
    """
    partial = folder / _partial_name(uuid.uuid4().hex)
    with _errors_of(folder):
        try:
            with _locked(partial) as file:
                for piece in (content,) if isinstance(content, bytes) else content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, folder / name)
        finally:
            partial.unlink(missing_ok=True)


def _is_abandoned(path: Path, file: Any) -> bool:
    """Whether no process is writing a temporary file, as far as locks and, where they say nothing, its age tell."""
    locks_tell = path.name.rpartition("-")[0] == _partial_name("").rpartition("-")[0]
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        locks_tell = False
    return locks_tell or time.time() - path.stat().st_mtime > FOREIGN_SECONDS


@contextlib.contextmanager
def _errors_of(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise UnwritableError(folder, error) from error


def _locked(path: Path) -> Any:
    """A new file, locked; again if another process took it for one left behind, before the lock."""
    while True:
        file = path.open("wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()


def _partial_name(ending: str) -> str:
    return f"{PARTIAL}{platform.node()}-{ending}"
