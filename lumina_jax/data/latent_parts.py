"""The files of a cache of latents: which holds the latents of a sample, and whether they are as they were written.

In: digests of samples, and latents. Out: parts, which are safetensors files with a tensor and a checksum for each
sample, under the digest of what the sample shows. In which part a sample lies says nothing of its index in a source.
"""

import contextlib
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lumina_jax.parts import prepare_folder, write_file

_ENDING, _DAMAGED = ".safetensors", ".damaged"
_CHECKSUM = "checksum {}"
"""Entries of a file's metadata about one of its samples."""


class DamagedError(ValueError):
    """Latents that are not as they were written."""


class LatentParts:
    """The parts in a folder, to which other processes may add.

    Raises:
      UnwritableError: the folder is missing and cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        prepare_folder(folder)
        self.folder = folder
        self.names: list[str] = []
        """Of the files, in the order in which they were found."""
        self._part_of: dict[bytes, int] = {}
        self._known: set[str] = set()
        self._damaged: list[Path] = []
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._part_of

    def __len__(self) -> int:
        return len(self._part_of)

    def part_of(self, key: bytes) -> int:
        """The index in `names` of the file that holds a sample; -1: none does."""
        return self._part_of.get(key, -1)

    def refresh(self) -> None:
        """Look for parts that were added."""
        for file in sorted(self.folder.glob(f"*{_ENDING}")):
            if file.name in self._known:
                continue
            self._known.add(file.name)
            try:
                with safe_open(file, framework="numpy") as tensors:
                    keys = [bytes.fromhex(name) for name in tensors.keys()]  # noqa: SIM118
            except FileNotFoundError:
                continue
            except (OSError, SafetensorError, ValueError):
                keys = []
            if not keys or _mark(file).exists():
                self._damaged.append(file)
            else:
                self.names.append(file.name)
                for key in keys:
                    self._part_of[key] = len(self.names) - 1

    def add(self, latents: Mapping[bytes, Float[np.ndarray, "f v u z"]]) -> None:
        """A part with mean and log variance of each sample.

        Raises:
          UnwritableError: the disk is full, or the folder may not be written to.
        """
        tensors = {key.hex(): np.ascontiguousarray(moments) for key, moments in latents.items()}
        checksums = {_CHECKSUM.format(name): f"{_checksum(moments)}" for name, moments in tensors.items()}
        write_file(self.folder, f"{uuid.uuid4().hex}{_ENDING}", save(tensors, checksums))
        self.refresh()

    def remove_damaged(self) -> None:
        """Remove what was found damaged when it was opened, once what it held is encoded anew."""
        for file in self._damaged:
            with contextlib.suppress(OSError):  # a folder that may not be written to keeps it
                file.unlink(missing_ok=True)
                _mark(file).unlink(missing_ok=True)
        self._damaged = []


def read_moments(file: Path, key: bytes) -> Float[np.ndarray, "f v u z"]:
    """Mean and log variance of one sample, alone read from the file.

    Raises:
      DamagedError: they are not as they were written. `mark_damaged` has the next run encode the part anew.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            expected = (tensors.metadata() or {}).get(_CHECKSUM.format(key.hex()))
            moments = tensors.get_tensor(key.hex())
    except (OSError, SafetensorError) as error:
        raise DamagedError(str(error)) from error
    if expected != f"{_checksum(moments)}":
        raise DamagedError(f"a checksum in {file.name} does not match")
    return moments


def mark_damaged(file: Path) -> bool:
    """Have the next run encode a part anew; whether it will."""
    try:
        if file.exists():
            _mark(file).touch()
    except OSError:
        return False
    return True


def _mark(file: Path) -> Path:
    """A file beside a part that says it is damaged."""
    return file.with_suffix(_DAMAGED)


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).tobytes())
