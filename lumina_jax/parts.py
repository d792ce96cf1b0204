"""Writing the files of a cache atomically, and finding entries by digest.

In: a folder that several processes and runs may share, and the content of a file. Out: the complete file, or an error
that names the folder and a remedy. A process locks the temporary file that it writes, so that files which a killed
process left behind can be distinguished from files that are being written.
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

CACHE_VERSION = "v2"
"""The folder within a cache that holds this version of it; other versions are neither read nor deleted."""
PARTIAL = ".partial-"
"""The prefix of temporary files."""
FOREIGN_SECONDS = 24 * 3600
"""A temporary file of another machine counts as abandoned after this time, because its lock may not be visible."""
DIGEST = 16
"""The length of a digest in bytes."""
Digests = Shaped[np.ndarray, " n"]
"""An array of digests of type S16. numpy drops trailing zero bytes, but compares as if they were present."""


class UnwritableError(OSError):
    """A folder is not writable, because the disk is full or for lack of permission.

    Args:
      why: text that is put before the message.
    """

    def __init__(self, folder: Path, error: OSError, why: str = ""):
        super().__init__(
            f"{why}{folder} cannot be written to ({error.strerror or error}); complete files are kept, and the next "
            "run continues from them: free space on its disk, make it writable, or choose another folder"
        )
        self.errno = error.errno

    @property
    def is_forbidden(self) -> bool:
        """Whether writing is forbidden, for example because the file system is mounted read-only."""
        return self.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def digest(*parts: bytes) -> bytes:
    """Hash parts together with their lengths, so that different lists of parts have different digests."""
    total = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def digest_array(digests: Sequence[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), f"S{DIGEST}")


class DigestIndex:
    """Finds the position of a digest in an array; for equal digests it is the first one."""

    def __init__(self, digests: Digests):
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def __len__(self) -> int:
        return len(self._sorted)

    def positions(self, wanted: Digests) -> Int[np.ndarray, " m"]:
        """Return the position of each wanted digest, or -1 if it is missing."""
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        nearest = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[nearest] == wanted, self._order[nearest], -1)

    def position(self, wanted: bytes) -> int:
        return int(self.positions(digest_array([wanted]))[0])


def prepare_folder(folder: Path) -> None:
    """Create the folder of a cache if it is missing, and delete the temporary files of killed processes.

    Raises:
      UnwritableError: the folder is missing and cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(folder, error) from error
    for path in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # the file is gone, or has another owner
            if _is_abandoned(path, file):
                path.unlink()


def check_writable(folder: Path) -> None:
    """Raise UnwritableError if no file can be created in a folder."""
    with _errors_of(folder):
        probe = folder / _partial_name(uuid.uuid4().hex)
        probe.touch()
        probe.unlink()


def write_file(folder: Path, name: str, content: bytes | Iterable[bytes]) -> None:
    """Write a file atomically; an existing file is replaced.

    Raises:
      UnwritableError: the disk is full, or the folder is not writable. No temporary file is left behind.
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
    """Whether no process is writing a temporary file, judged by its lock or, without locks, by its age."""
    locks_are_visible = path.name.rpartition("-")[0] == _partial_name("").rpartition("-")[0]
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        locks_are_visible = False
    return locks_are_visible or time.time() - path.stat().st_mtime > FOREIGN_SECONDS


@contextlib.contextmanager
def _errors_of(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise UnwritableError(folder, error) from error


def _locked(path: Path) -> Any:
    """Open and lock a new file; try again if another process deleted it before it was locked."""
    while True:
        file = path.open("wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()


def _partial_name(ending: str) -> str:
    return f"{PARTIAL}{platform.node()}-{ending}"
