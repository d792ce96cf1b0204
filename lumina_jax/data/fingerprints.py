"""A digest of what a sample shows: equal for equal bytes, whatever the names, times and order of files.

In: the `media` of records. Out: digests. Digests of files are kept in a folder with the path, size and times of each
file, so that a file is read once, and again after a change. A copied or renamed file is read, and has the same digest.
"""

import contextlib
import hashlib
import os
import stat
import uuid
from pathlib import Path

import numpy as np

from lumina_jax.modalities.decoding.media import Clip, LatentDistribution, Media, Sound, Views
from lumina_jax.parts import DIGEST, UnwritableError, digest, prepare_folder, write_file

_ENDING = ".files"
MANY_FILES = 32
"""The most files in the folder; more are joined into one."""


class Fingerprints:
    """Digests of media; the threads of a process may share it.

    Args:
      folder: where digests of files are kept; if it cannot be written to, files are read again every time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[bytes, bytes] = {}
        self._new: list[bytes] = []
        with contextlib.suppress(UnwritableError):
            prepare_folder(folder)
        files = list(folder.glob(f"*{_ENDING}"))
        for file in files:
            with contextlib.suppress(OSError):  # another process has just joined it with others
                self._learn(file.read_bytes())
        if len(files) > MANY_FILES:
            self._new = [state + known for state, known in self._known.items()]
            self.save()
            for file in files:
                with contextlib.suppress(OSError):
                    file.unlink()

    def __call__(self, media: Media) -> bytes | None:
        """The digest; None: a file is missing or cannot be read."""
        try:
            return self._digest(media)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None

    @property
    def unsaved(self) -> int:
        return len(self._new)

    def save(self) -> None:
        """Write the new digests."""
        new, self._new = self._new, []
        if new:
            content = b"".join(new)
            with contextlib.suppress(UnwritableError):
                write_file(self._folder, f"{uuid.uuid4().hex}{_ENDING}", digest(content) + content)

    def _digest(self, media: Media) -> bytes | None:
        assert not isinstance(media, LatentDistribution)
        if isinstance(media, Path):
            return digest(b"picture", self._of_file(media))
        if isinstance(media, bytes):
            return digest(b"picture", _of_bytes(media))
        if isinstance(media, np.ndarray):
            return digest(b"pixels", _of_array(media))
        if isinstance(media, Views):
            return digest(b"views", *map(self._of_file, media.files))
        part = f"{media.start!r} {media.end!r}".encode()
        if isinstance(media, Clip):
            return digest(b"clip", self._of_content(media.file), part)
        assert isinstance(media, Sound)
        return digest(b"sound", self._of_content(media.recording), f"{media.rate!r}".encode(), part)

    def _of_content(self, content: Path | bytes | np.ndarray) -> bytes:
        if isinstance(content, Path):
            return self._of_file(content)
        return _of_array(content) if isinstance(content, np.ndarray) else _of_bytes(content)

    def _of_file(self, path: Path) -> bytes:
        state = _state(path)
        found = self._known.get(state)
        if found is None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()
            if _state(path) == state:  # else the file was changed while it was read
                self._known[state] = found
                self._new.append(state + found)
        return found

    def _learn(self, content: bytes) -> None:
        """Learn the digests of a file, unless it is damaged."""
        check, pairs = content[:DIGEST], content[DIGEST:]
        if check == digest(pairs):
            for start in range(0, len(pairs), 2 * DIGEST):
                self._known[pairs[start : start + DIGEST]] = pairs[start + DIGEST : start + 2 * DIGEST]


def _state(path: Path) -> bytes:
    """Changes when the file does, as far as the file system can tell.

    Raises:
      OSError: there is no such file, or it is a folder, a pipe or a device.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no file")
    about = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return digest(os.fsencode(path.absolute()), about.encode())


def _of_bytes(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def _of_array(array: np.ndarray) -> bytes:
    return digest(f"{array.dtype.str} {array.shape}".encode(), np.ascontiguousarray(array).tobytes())
