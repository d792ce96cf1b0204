"""Files to which a run appends while it trains, even if the disk is full for a while.

In: pieces of bytes, such as a line or a record. Out: a file of whole pieces. A piece that cannot be written is kept in
memory and tried again with the next, so that nothing is lost when there is space again; a warning is printed once.
"""

import contextlib
import os
import struct
import sys
from collections import deque
from pathlib import Path
from typing import Any

WAITING_BYTES = 2**26
"""The most that is kept in memory; beyond it the oldest pieces are lost."""


class GrowingFile:
    """A file to which pieces are appended, each whole or not at all; nothing here raises an OSError.

    Args:
      path: its folder is created if missing.
      content: the name of the content, for the warning.
    """

    def __init__(self, path: Path, content: str):
        self._path, self._content = path, content
        self._file: Any = None
        self._size: int | None = None
        self._waiting: deque[bytes] = deque()
        self._has_failed = False

    def write(self, piece: bytes) -> None:
        """Append a piece now, or as soon as that is possible."""
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
        """Try once more to write the pieces in memory, and close the file."""
        if self._waiting:
            self.write(b"")
        if self._waiting:
            _say(f"warning: the last {self._content} are not in {self._path}")
        self._release()

    def _append(self, piece: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            if self._size is None or self._size > size:
                self._size = size
            self._file.truncate(self._size)  # removes a part of a piece from before an error
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
                f"warning: {self._content} cannot be written to {self._path} ({error.strerror or error}); training "
                "continues, and they are written as soon as there is space"
            )


def record(data: bytes) -> bytes:
    """A message in the format of TensorBoard's files: length, checksum, message, checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
