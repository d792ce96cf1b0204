"""Items of .json and .jsonl files, by index, as they were when the file was opened.

A .jsonl file stays on disk: opening it records the offset and a checksum of each line, and an item is parsed when it is
read. A small file is copied to a temporary file without a name; a large one is kept open, by worker processes too. So
neither editing a small file nor replacing a large one changes what is read. Lines that are overwritten in a large file
itself are lost: reading one raises a ChangedSourceError.
"""

import array
import bisect
import errno
import hashlib
import json
import logging
import os
import resource
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterable
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

from lumina_jax.data.example import ChangedSourceError, Contents, printable

logger = logging.getLogger(__name__)

COPIED_BYTES = 2**28
"""The largest file that is copied, of some million lines."""
SECONDS_BETWEEN_LOOKS = 10.0
"""How often a file is checked for changes."""
MARKS = (b"\xff\xfe", b"\xfe\xff")
"""How files in UTF-16 and UTF-32 begin."""


@runtime_checkable
class Annotations(Protocol):
    """Random access to the items of one file."""

    path: Path
    contents: Contents

    def __len__(self) -> int: ...

    def item_name(self, index: int) -> str:
        """The file and the line of an item, for reports."""
        ...

    def item(self, index: int) -> dict[str, Any]:
        """One item.

        Raises:
          ValueError: it is not a JSON object.
          ChangedSourceError: the file was overwritten since it was opened.
        """
        ...


class JsonLines:
    """A file with one JSON object a line; blank lines do not count.

    Args:
      content: read instead of the file `path`, which then only gives the name.

    Raises:
      ValueError: it is not in UTF-8.
    """

    def __init__(self, path: Path, content: IO[bytes] | None = None) -> None:
        self.path = path
        self._starts, self._checks, self._blanks = array.array("q"), array.array("I"), array.array("q")
        self._is_watched, self._next_look = content is None, 0.0
        self._state = _state(path)
        self._hold(_held(path) if content is None else os.dup(content.fileno()))
        with open(self._descriptor, "rb", closefd=False) as file:
            check_encoding(file.read(4), path)
            file.seek(0)
            self._read(file)
        self.contents = _contents(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    def item_name(self, index: int) -> str:
        return f"{printable(self.path.name)}, line {self._number(index)}"

    def item(self, index: int) -> dict[str, Any]:
        if self._is_watched and time.monotonic() >= self._next_look:
            self._look()
        text = self._text(index)
        if zlib.crc32(text) != self._checks[index]:
            raise ChangedSourceError(self._changed(f"line {self._number(index)} is not what it was"))
        return parsed(text)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_closing"}
        return state | {"_descriptor": reduction.DupFd(self._descriptor), "_next_look": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._hold(state["_descriptor"].detach())

    def _hold(self, descriptor: int) -> None:
        """Keep the file open, so that it stays readable when another file takes its name."""
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)
        self._closing.atexit = False  # threads may still read then

    def _read(self, file: IO[bytes]) -> None:
        position = 0
        for line in file:
            if text := line.strip():
                self._starts.append(position)
                self._checks.append(zlib.crc32(text))
            else:
                self._blanks.append(len(self._checks))
            position += len(line)
        self._starts.append(position)

    def _number(self, index: int) -> int:
        """The number of a line, where blank ones count."""
        return index + 1 + bisect.bisect_right(self._blanks, index)

    def _text(self, index: int) -> bytes:
        position, end = self._starts[index], self._starts[index + 1]
        text = b""
        try:
            while position < end and (read := os.pread(self._descriptor, end - position, position)):
                text, position = text + read, position + len(read)
        except OSError as error:
            raise ChangedSourceError(self._changed(f"it can no longer be read ({error})")) from error
        return text.strip()

    def _look(self) -> None:
        """Log once when the file has changed, in the process that sees it first.

        Lines are read at explicit offsets, so the position of the descriptor, which all processes share, serves as a
        flag: it is set back to 0 when the change has been logged.
        """
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        before, self._state = self._state, _state(self.path)
        if self._state == before or self._is_touched(before, self._state):
            return
        self._is_watched = False
        if os.lseek(self._descriptor, 0, os.SEEK_CUR) == 0:
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        logger.warning(
            "%s was changed or removed; what was started with it goes on with the lines that it had then, and reads "
            "the new ones when it is started again",
            self.path,
        )

    def _is_touched(self, before: "_State | None", now: "_State | None") -> bool:
        """Whether only the time of the file has changed. Lines of a large file are checked when they are read."""
        if before is None or now is None:
            return False
        if now.size > COPIED_BYTES:
            return now._replace(changed=before.changed) == before
        try:
            with self.path.open("rb") as file:
                return _contents(zlib.crc32(text) for line in file if (text := line.strip())) == self.contents
        except OSError:
            return False

    def _changed(self, what: str) -> str:
        return (
            f"{self.path} was overwritten while it was in use: {what}. Nothing more is read from it, so that no sample "
            "gets another one's caption; start the same command again, which reads the file as it is now"
        )


class JsonList:
    """A file that is one JSON list of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes()
        check_encoding(text[:4], path)
        try:
            self._items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        if not isinstance(self._items, list):
            raise ValueError(f"{path} must hold a list of samples, but holds a {type(self._items).__name__}")
        self.contents = _contents(zlib.crc32(json.dumps(item).encode()) for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def item_name(self, index: int) -> str:
        return f"{printable(self.path.name)}, item {index}"

    def item(self, index: int) -> dict[str, Any]:
        return _checked(self._items[index])


def open_annotations(path: Path) -> Annotations:
    """The items of a .json or .jsonl file.

    Raises:
      ValueError: no such file, another ending, not in UTF-8, or a .json file that is no list.
    """
    kinds: dict[str, Callable[[Path], Annotations]] = {".json": JsonList, ".jsonl": JsonLines}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path} must end in {' or '.join(kinds)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return kinds[path.suffix.lower()](path)


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
      ValueError: it holds none.
    """
    try:
        item = json.loads(text)
    except RecursionError:
        raise ValueError("the line is nested too deeply to be read") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ValueError(f"the line is not JSON ({error}); each line must be a whole object") from error
    return _checked(item)


def check_encoding(start: bytes, path: Path) -> None:
    """Refuse a file by its first bytes.

    Raises:
      ValueError: it is in UTF-16 or UTF-32.
    """
    if start.startswith(MARKS) or b"\0" in start:
        raise ValueError(f"{path} must be text in UTF-8, but is in UTF-16 or not text at all; save it as UTF-8")


class _State(NamedTuple):
    """What changes when a file does."""

    device: int
    inode: int
    size: int
    changed: int
    """Nanoseconds."""


def _state(path: Path) -> _State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _held(path: Path) -> int:
    """A descriptor of a copy of the file, or of the file itself if it is large or there is no room for a copy."""
    descriptor = _opened(path)
    if os.fstat(descriptor).st_size > COPIED_BYTES:
        return descriptor
    try:
        with open(descriptor, "rb", closefd=False) as file, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            held = os.dup(copy.fileno())
    except OSError:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor
    os.close(descriptor)
    os.lseek(held, 0, os.SEEK_SET)
    return held


def _opened(path: Path) -> int:
    """A descriptor of the file, even if thousands are open already."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, os.O_RDONLY)


def _contents(checks: Iterable[int]) -> Contents:
    """The contents that the checksums of all items describe."""
    array_of_checks = array.array("I", checks)
    ordered = hashlib.blake2b(array_of_checks.tobytes(), digest_size=16).hexdigest()
    return Contents(len(array_of_checks), ordered, f"{sum(array_of_checks):x}")


def _checked(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"a sample must be a JSON object, but this is a {type(item).__name__}")
    return item
