"""A cache of caption features: captions are encoded once and then read from memory-mapped files.

In: captions, a `TextEncoder` and a folder. Out: `CaptionFeatures`, a mapping from a caption to its features.

Each encoder has a folder with parts, which are safetensors files with the features and digests of some hundred
captions. A caption is found by its digest, so only new or changed captions are encoded, and a run that was killed
continues after the last complete part.
"""

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lumina_jax.encoders.text import BATCH, TextEncoder
from lumina_jax.encoders.tokenizer import CaptionError
from lumina_jax.parallel.multihost import barrier, is_first, is_shared
from lumina_jax.parts import (
    CACHE_VERSION,
    DIGEST,
    DigestIndex,
    Digests,
    UnwritableError,
    digest,
    digest_array,
    prepare_folder,
    write_file,
)
from lumina_jax.progress import counted

CHUNK = 4 * BATCH
"""The number of captions passed to the encoder in one call."""
PART_CAPTIONS, PART_BYTES, PART_SECONDS = 1024, 2**27, 60.0
"""A part is written when it has this many captions or bytes of features, or after this time."""
MAX_OPEN_PARTS = 256
"""At most this many parts are mapped into memory, because each uses a file descriptor."""
NOT_FINITE = (
    "the text encoder returned values that are not finite; set text.dtype=float32, copy the weights again, or change "
    "the caption"
)
_SUFFIX = ".safetensors"
logger = logging.getLogger(__name__)


def encode_captions(
    captions: Iterable[str],
    encoder: TextEncoder,
    cache_folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> "CaptionFeatures":
    """Encode the captions that are not in the cache yet, and return the features of all.

    Captions of damaged parts are encoded again. Memory is bounded by the features of one part. All processes of a job
    must call this; they divide the work if they share the folder, otherwise each encodes all captions. Captions that
    the tokenizer fails on, or whose features are not finite, are skipped with a warning.

    Args:
      captions: the captions, in any order and possibly repeated. Include "" for classifier-free guidance.
      progress: called with (captions encoded, captions to encode) after each part.

    Raises:
      ValueError: there are no captions, or there are no finite features for "", for any of the first captions, or for
        any caption at all.
      UnwritableError: captions must be encoded, but the folder is not writable.
    """
    wanted = {caption_digest(caption): caption for caption in captions}
    if not wanted:
        raise ValueError('there are no captions to encode; pass at least one, such as ""')
    index, count = 0, 1
    if jax.process_count() > 1 and is_shared(Path(cache_folder)):
        index, count = jax.process_index(), jax.process_count()
    folder = Path(cache_folder) / CACHE_VERSION / encoder.fingerprint
    prepare_folder(folder)
    found = DigestIndex(_digests_of(_intact(folder, wanted)))
    missing = [key for key in sorted(wanted) if found.position(key) < 0]
    assigned = [wanted[key] for key in missing if int.from_bytes(key[:8], "little") % count == index]
    refused = _encode(assigned, encoder, folder, progress)
    barrier(f"captions {digest(*wanted).hex()} are encoded")
    if refused and ("" in refused or len(refused) == len(wanted)):
        raise ValueError(_without_features(refused))
    if refused:
        logger.warning(_without_features(refused))
    return CaptionFeatures(folder)


def encoded(captions: list[str], encoder: TextEncoder) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield each caption with its features [t c] without padding, or with the reason why it has none."""
    try:
        features, segment_ids = (np.asarray(part) for part in encoder.encode(captions))
    except CaptionError as error:
        if len(captions) == 1:
            yield captions[0], str(error)
        else:  # one by one, to skip only the caption that failed
            for caption in captions:
                yield from encoded([caption], encoder)
        return
    for caption, row, is_token in zip(captions, features, segment_ids > 0):
        unpadded = row[is_token].astype(np.float32)
        yield caption, unpadded if np.isfinite(unpadded).all() else NOT_FINITE


class CaptionFeatures:
    """The features of all captions in a folder of the cache, by caption.

    The files are memory-mapped, so that processes on one machine share them. A pickle contains only the path of the
    folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._parts = [part for file in sorted(self.folder.glob(f"*{_SUFFIX}")) if (part := _open(file)) is not None]
        if not self._parts:
            raise ValueError(f"{folder} must contain features of captions, but contains none; start the run again")
        self.width, self.max_tokens = self._parts[0].width, self._parts[0].max_tokens
        self._index = DigestIndex(_digests_of(self._parts))
        self._offsets = np.cumsum([0, *(len(part.ends) for part in self._parts)])
        self._parts = [part._replace(digests=part.digests[:0].copy()) for part in self._parts]  # the index has a copy
        self._mapped: dict[int, np.ndarray] = {}

    def __getitem__(self, caption: str) -> Float[np.ndarray, "t c"]:
        """Return the read-only features of a caption, at most `max_tokens` tokens without padding.

        Raises:
          KeyError: the caption is not in the cache, has no features, or its file is no longer readable.
        """
        position = self._index.position(caption_digest(caption))
        if position < 0:
            raise KeyError(
                f"caption {caption!r} was not encoded: either it was not passed to encode_captions, or the text "
                "encoder failed on it; see the warning at the start of the run"
            )
        part = int(np.searchsorted(self._offsets, position, side="right")) - 1
        ends, row = self._parts[part].ends, position - int(self._offsets[part])
        start = int(ends[row - 1]) if row else 0
        try:
            return np.asarray(self._features(part)[start : int(ends[row])])
        except (OSError, ValueError) as error:
            raise KeyError(
                f"the features of {caption!r} are no longer readable ({error}); start the run again"
            ) from error

    def __contains__(self, caption: str) -> bool:
        return self._index.position(caption_digest(caption)) >= 0

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionFeatures, (self.folder,)

    def __repr__(self) -> str:
        return f"CaptionFeatures({str(self.folder)!r})"

    def _features(self, part: int) -> Float[np.ndarray, "l c"]:
        """Map the features of a part into memory; the oldest mapping is dropped when there are too many."""
        found = self._mapped.get(part)
        if found is None:
            found = self._mapped[part] = self._parts[part].features()
            if len(self._mapped) > MAX_OPEN_PARTS:
                del self._mapped[next(iter(self._mapped))]
        return found


def caption_digest(caption: str) -> bytes:
    return digest(caption.encode("utf-8", "surrogatepass"))


class _Part(NamedTuple):
    """A file of the cache; `ends` has the offset after the last token of each caption."""

    file: Path
    width: int
    max_tokens: int
    checksum: str
    digests: Digests
    ends: Int[np.ndarray, " n"]

    def features(self) -> Float[np.ndarray, "l c"]:
        """Map the features into memory."""
        with self.file.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            stored = json.loads(file.read(length))["features"]
        if not all(stored["shape"]):
            return np.zeros(stored["shape"], np.float32)  # an empty array cannot be mapped
        start = 8 + length + stored["data_offsets"][0]
        return np.memmap(self.file, np.float32, "r", offset=start, shape=tuple(stored["shape"]))

    @property
    def is_intact(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return self.checksum == _checksum(self.digests, self.ends, self.features())
        return False


def _open(file: Path) -> _Part | None:
    """Read a part without its features; return None if it is damaged or missing."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            metadata = tensors.metadata()
            digests, ends = tensors.get_tensor("digests"), tensors.get_tensor("ends")
        digests = np.frombuffer(digests.tobytes(), f"S{DIGEST}")
        return _Part(file, int(metadata["width"]), int(metadata["max_tokens"]), metadata["checksum"], digests, ends)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _intact(folder: Path, wanted: Iterable[bytes]) -> list[_Part]:
    """Return the parts of a folder. Parts with a wanted digest are verified, and deleted if they are damaged."""
    index, kept = DigestIndex(digest_array(list(wanted))), []
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        part = _open(file)
        if part is not None and (not (index.positions(part.digests) >= 0).any() or part.is_intact):
            kept.append(part)
            continue
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UnwritableError(folder, error, f"{file.name} is damaged, and ") from error
    return kept


def _encode(
    captions: list[str], encoder: TextEncoder, folder: Path, progress: Callable[[int, int], None] | None
) -> dict[str, str]:
    """Encode captions into parts. Return the captions that have no features, with the reason."""
    refused: dict[str, str] = {}
    waiting: list[tuple[bytes, np.ndarray]] = []
    begun = time.monotonic()
    with counted("encoding captions", len(captions), is_shown=is_first()) as show:
        for start in range(0, len(captions), CHUNK):
            done = min(start + CHUNK, len(captions))
            for caption, features in encoded(captions[start:done], encoder):
                if isinstance(features, str):
                    refused[caption] = features
                else:
                    waiting.append((caption_digest(caption), features))
            if len(refused) == done >= CHUNK:
                raise ValueError(_without_features(refused))
            size = sum(features.nbytes for _, features in waiting)
            is_full = len(waiting) >= PART_CAPTIONS or size >= PART_BYTES or time.monotonic() - begun > PART_SECONDS
            if is_full or done == len(captions):
                _write(folder, encoder, waiting)
                waiting, begun = [], time.monotonic()
                if progress is not None:
                    progress(done, len(captions))
            show(done)
    return refused


def _write(folder: Path, encoder: TextEncoder, encoded: list[tuple[bytes, np.ndarray]]) -> None:
    """Write a part under a unique name, so that deleting a damaged part never deletes a newer one."""
    if not encoded:
        return
    digests = digest_array([key for key, _ in encoded])
    ends = np.cumsum([len(features) for _, features in encoded])
    features = np.concatenate([features for _, features in encoded])
    metadata = {"width": f"{encoder.width}", "max_tokens": f"{encoder.max_tokens}"}
    metadata["checksum"] = _checksum(digests, ends, features)
    tensors = {"digests": np.frombuffer(digests.tobytes(), np.uint8), "ends": ends, "features": features}
    write_file(folder, f"{uuid.uuid4().hex}{_SUFFIX}", save(tensors, metadata))


def _checksum(digests: Digests, ends: Int[np.ndarray, " n"], features: Float[np.ndarray, "l c"]) -> str:
    total = hashlib.sha256(digests.tobytes())
    total.update(ends.tobytes())
    total.update(np.ascontiguousarray(features).data)
    return total.hexdigest()


def _digests_of(parts: list[_Part]) -> Digests:
    return np.concatenate([np.zeros(0, f"S{DIGEST}"), *(part.digests for part in parts)])


def _without_features(refused: Mapping[str, str]) -> str:
    caption, reason = next(iter(refused.items()))
    return f"{len(refused)} captions have no features, and their samples are skipped, such as {caption!r}: {reason}"
