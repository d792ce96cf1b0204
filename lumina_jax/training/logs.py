"""Files that grow while a run trains, and that a full disk does not stop.

In: pieces of bytes, such as a line or a record. Out: a file of whole pieces. One that cannot be written waits and is
tried again with the next, so that nothing is lost when there is space again; a warning says so, once.
"""

import contextlib
import os
import struct
import sys
from collections import deque
from pathlib import Path
from typing import Any

WAITING_BYTES = 2**26
"""More than this is not kept in memory; the oldest pieces are then lost."""


class GrowingFile:
    """A file to which pieces are appended, each whole or not at all; nothing here raises an OSError.

    Args:
      path: its folder is created if missing.
      what: is in the file, for the warning.
    """

    def __init__(self, path: Path, what: str):
        self._path, self._what = path, what
        self._file: Any = None
        self._size: int | None = None
        self._waiting: deque[bytes] = deque()
        self._has_failed = False

    def write(self, piece: bytes) -> None:
        """Append it now, or as soon as that is possible."""
        self._waiting.append(piece)
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._release()
            self._warn(error)
            while sum(map(len, self._waiting)) > WAITING_BYTES:
                self._waiting.popleft()
        else:
            self._has_failed = False

    def close(self) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self.write(b"")
        if self._waiting:
            _say(f"warning: the last {self._what} are not in {self._path}")
        self._release()

    def _append(self, piece: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            if self._size is None or self._size > size:
                self._size = size
            self._file.truncate(self._size)  # without the half of a piece that was written before it failed
        assert self._size is not None
        done = 0
        while done < len(piece):
            done += self._file.write(piece[done:])
        self._size += done

    def _release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _warn(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            _say(
                f"warning: {self._what} cannot be written to {self._path} ({error.strerror or error}); training goes "
                "on, and they are written as soon as there is space"
            )


def record(data: bytes) -> bytes:
    """A message as TensorBoard's files hold it: length, checksum, message, checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
