"""Writing safetensors files piece by piece.

In: an ordered plan of tensors, each with a function that yields its values in pieces. Out: NAME.safetensors, or several
NAME-00001-of-0000N.safetensors and their index. The header, which is written first, has the offsets of all tensors, so
that memory never holds more than one piece and one converted block of it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lumina_jax.weights.files import DTYPES

BLOCK = 32 * 2**20
"""About this many bytes are converted and written at a time."""
ALIGNMENT = 8
STORED_NAMES = {np.dtype(ours): stored for stored, ours in DTYPES.items()}


class Planned(NamedTuple):
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]
    """Yields the values in order, whole or split along the first axis; a piece of another type is converted."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


class WrittenFile(NamedTuple):
    """A file that was written."""

    path: Path
    sha256: str


def total_bytes(plan: Sequence[Planned]) -> int:
    return sum(tensor.bytes for tensor in plan)


def write_tensors(
    folder: Path,
    name: str,
    plan: Sequence[Planned],
    *,
    shard_bytes: int | None,
    metadata: dict[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[WrittenFile]:
    """Write a plan to files called `name` in `folder`.

    Args:
      shard_bytes: the greatest size of a file, unless it has a single tensor; None: never split the file.
      progress: called with the number of bytes written since its last call.

    Raises:
      ValueError: values are not finite, or a function yields more or fewer values than planned; the message names the
        tensor.
      OSError: the disk is full or not writable. Files that were written before the error are not deleted.
    """
    shards = _shards(sorted(plan, key=lambda tensor: -tensor.dtype.itemsize), shard_bytes)
    names = [f"{name}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{name}.safetensors"]
    labels = {"format": "pt"} | (metadata or {})
    written = [_write_file(folder / file, shard, labels, progress) for file, shard in zip(names, shards)]
    if len(shards) > 1:
        files = {tensor.name: file for file, shard in zip(names, shards) for tensor in shard}
        index = {"metadata": {"total_size": total_bytes(plan)}, "weight_map": dict(sorted(files.items()))}
        write_text(folder / f"{name}.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return written


def write_text(path: Path, text: str) -> None:
    """Write a small file and flush it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _shards(plan: Sequence[Planned], limit: int | None) -> list[list[Planned]]:
    """Split the plan in order, so that no shard exceeds the limit unless it has a single tensor."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in plan:
        if shards[-1] and limit is not None and size + tensor.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_file(
    path: Path, plan: Sequence[Planned], metadata: dict[str, str], progress: Callable[[int], object]
) -> WrittenFile:
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for tensor in plan:
        start, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": STORED_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)
            progress(len(data))

        write(len(text).to_bytes(8, "little") + text)
        for tensor in plan:
            for block in _blocks(tensor):
                write(block.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(path, digest.hexdigest())


def _blocks(tensor: Planned) -> Iterator[np.ndarray]:
    """Yield the values in their stored order and type, at most about `BLOCK` bytes at a time."""
    left = tensor.size
    for piece in tensor.pieces():
        rows = np.atleast_1d(piece)
        row_bytes = max(1, rows[:1].size) * max(tensor.dtype.itemsize, rows.dtype.itemsize)
        step = max(1, BLOCK // row_bytes)
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step])
            if not np.isfinite(block).all():
                raise ValueError(f"{tensor.name} contains values that are not finite; copy the checkpoint again")
            stored = block.astype(tensor.dtype, copy=False)
            if stored is not block and not np.isfinite(stored).all():
                raise ValueError(f"{tensor.name} contains values outside the range of {tensor.dtype}; choose float32")
            left -= stored.size
            yield stored
    if left:
        raise ValueError(
            f"{tensor.name} must have {tensor.size} values, but has {tensor.size - left}; copy the checkpoint again"
        )
