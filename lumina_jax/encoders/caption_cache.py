"""The features of a set of captions, encoded once and then read from a memory-mapped file.

In: captions, a `TextEncoder` and a folder. Out: `CaptionFeatures`, the features of each caption by the caption.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from lumina_jax.encoders.text import BATCH, TextEncoder
from lumina_jax.parallel.multihost import barrier, gathered, is_first, is_shared

CHUNK = 4 * BATCH
"""Captions held in memory while a set is encoded."""
Chunk = tuple[Float[np.ndarray, "t c"], Int[np.ndarray, " n"]]
"""Features of the tokens of n captions one after another, and how many tokens each has."""
_FEATURES, _INDEX, _ABOUT = "features.f32", "index.npy", "about.json"


def encode_captions(
    captions: Iterable[str],
    encoder: TextEncoder,
    cache_folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> "CaptionFeatures":
    """The features of every caption of a set, read from the cache or, the first time, encoded into it.

    An entry of the cache is one folder, renamed into place when it is complete, named by the encoder and the set. A
    damaged entry is encoded anew. Memory stays bounded by CHUNK captions, whatever the size of the set. The processes
    of a job, which all call this, share the work if they share the folder, and each does all of it if they don't.

    Args:
      captions: any order; repeated ones count once. Include "" for the unconditional half of guidance.
      progress: called with (captions encoded, captions in all) after each chunk.

    Raises:
      ValueError: there are no captions.
    """
    unique = sorted(set(captions), key=_digest_of_caption)
    if not unique:
        raise ValueError('there are no captions to encode; give at least one, such as ""')
    folder = Path(cache_folder) / f"{encoder.fingerprint}-{_digest_of_set(sorted(unique))}"
    if jax.process_count() > 1 and is_shared(Path(cache_folder)):
        if not gathered(_is_intact(folder))[0]:
            _encode_together(folder, unique, encoder, progress)
    elif not _is_intact(folder):
        _complete(folder, unique, encoder, _encoded(unique, encoder, range(0, len(unique), CHUNK), progress))
    return CaptionFeatures(folder)


class CaptionFeatures:
    """Features of a set of captions, looked up by caption.

    The features lie in a memory-mapped file, so processes on one machine share them; pickling hands over the name of
    the folder only.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = json.loads((self.folder / _ABOUT).read_text())
        self.width: int = about["width"]
        self.max_tokens: int = about["max_tokens"]
        self._digests, self._ends = np.load(self.folder / _INDEX, mmap_mode="r")
        self._features = np.memmap(self.folder / _FEATURES, np.float32, "r").reshape(-1, self.width)

    def __getitem__(self, caption: str) -> Float[np.ndarray, "t c"]:
        """Features of the caption's own tokens, at most `max_tokens` of them and without padding; read-only.

        Raises:
          KeyError: the caption is not in the set.
        """
        place = self._place(caption)
        if place is None:
            raise KeyError(f"caption {caption!r} was not encoded; add it to the captions given to encode_captions")
        start = int(self._ends[place - 1]) if place else 0
        return np.asarray(self._features[start : int(self._ends[place])])

    def __contains__(self, caption: str) -> bool:
        return self._place(caption) is not None

    def __len__(self) -> int:
        return len(self._digests)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionFeatures, (self.folder,)

    def __repr__(self) -> str:
        return f"CaptionFeatures({str(self.folder)!r})"

    def _place(self, caption: str) -> int | None:
        digest = _digest_of_caption(caption)
        place = int(np.searchsorted(self._digests, digest))
        return place if place < len(self) and self._digests[place] == digest else None


def _encode_together(
    folder: Path, captions: list[str], encoder: TextEncoder, progress: Callable[[int, int], None] | None
) -> None:
    """Each process encodes every so many-th chunk into a file, and the first joins them."""
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(captions), CHUNK)
    own = [start for start in starts[jax.process_index() :: jax.process_count()] if not _part(parts, start).exists()]
    for start, (features, lengths) in zip(own, _encoded(captions, encoder, own, progress)):
        partial = parts / f"{uuid.uuid4().hex}.npz"
        np.savez(partial, features=features, lengths=lengths)
        os.replace(partial, _part(parts, start))
    barrier(f"every chunk of {folder.name} is encoded")
    if is_first():
        loaded = (np.load(_part(parts, start)) for start in starts)
        _complete(folder, captions, encoder, ((part["features"], part["lengths"]) for part in loaded))
        shutil.rmtree(parts)
    barrier(f"{folder.name} is complete")


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start:09}.part"


def _encoded(
    captions: list[str], encoder: TextEncoder, starts: Iterable[int], progress: Callable[[int, int], None] | None
) -> Iterator[Chunk]:
    """The chunks that begin at these places."""
    for start in starts:
        chunk = captions[start : start + CHUNK]
        features, segment_ids = encoder.encode(chunk)
        real = np.asarray(segment_ids) > 0
        yield np.asarray(features, np.float32)[real], real.sum(axis=1)
        if progress is not None:
            progress(start + len(chunk), len(captions))


def _complete(folder: Path, captions: list[str], encoder: TextEncoder, chunks: Iterable[Chunk]) -> None:
    """An entry of the cache from all chunks; it appears when it is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        _write(partial, captions, encoder, chunks)
        os.replace(partial, folder)
    except OSError:
        if not _is_intact(folder):  # else another process has just finished the same set
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, captions: list[str], encoder: TextEncoder, chunks: Iterable[Chunk]) -> None:
    """Features in the order of the captions' digests; the index: digests, and where each caption's tokens end."""
    digests = np.array([_digest_of_caption(caption) for caption in captions], np.uint64)
    assert np.all(digests[1:] != digests[:-1]), "two captions with one 64-bit digest"
    lengths = []
    with open(folder / _FEATURES, "wb") as file:
        for features, of_captions in chunks:
            file.write(np.asarray(features, np.float32).tobytes())
            lengths.append(of_captions)
    ends = np.cumsum(np.concatenate(lengths)).astype(np.uint64)
    np.save(folder / _INDEX, np.stack([digests, ends]))
    about = {"width": encoder.width, "max_tokens": encoder.max_tokens, "digest": _digest_of_entry(folder)}
    (folder / _ABOUT).write_text(json.dumps(about))


def _is_intact(folder: Path) -> bool:
    """Whether an entry of the cache is there, complete and as it was written."""
    try:
        return json.loads((folder / _ABOUT).read_text())["digest"] == _digest_of_entry(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest_of_entry(folder: Path) -> str:
    total = hashlib.sha256()
    for name in (_FEATURES, _INDEX):
        with open(folder / name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _digest_of_set(captions: Iterable[str]) -> str:
    total = hashlib.sha256()
    for caption in captions:
        total.update(hashlib.sha256(caption.encode()).digest())  # of equal length, so no two sets read the same
    return total.hexdigest()[:16]


def _digest_of_caption(caption: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little"))
