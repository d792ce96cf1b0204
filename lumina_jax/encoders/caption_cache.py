"""The features of captions, encoded once and then read from memory-mapped files.

In: captions, a `TextEncoder` and a folder. Out: `CaptionFeatures`, the features of each caption by the caption.

An encoder has a folder, and in it parts: safetensors files of some hundred captions with the digest of each. A caption
is looked for by its digest in all of them, so a caption that is new or was changed is encoded alone, and a run that was
killed goes on after the last complete part.
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
from lumina_jax.parts import DIGEST, LAYOUT, Digests, Table, UnwritableError, as_array, digest, ready_folder, write
from lumina_jax.progress import counted

CHUNK = 4 * BATCH
"""Captions that are encoded at once."""
PART_CAPTIONS, PART_BYTES, PART_SECONDS = 1024, 2**27, 60.0
"""A part is complete with this many captions, or bytes of features, or after this time."""
OPEN_PARTS = 256
"""Parts mapped into memory at once: each takes a file descriptor."""
NOT_FINITE = (
    "the text encoder makes values of it that are not finite; set text.dtype=float32, copy the weights again, or "
    "change the caption"
)
_ENDING = ".safetensors"
logger = logging.getLogger(__name__)


def encode_captions(
    captions: Iterable[str],
    encoder: TextEncoder,
    cache_folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> "CaptionFeatures":
    """The features of every caption of a set, read from the cache or, the first time, encoded into it.

    A damaged part is encoded anew. Memory stays bounded by the features of one part. The processes of a job, which all
    call this, share the work if they share the folder, and each does all of it if they don't. Captions that the
    tokenizer cannot cut, or whose features are not finite, are left out, with a warning.

    Args:
      captions: any order; repeated ones count once. Include "" for the unconditional half of guidance.
      progress: called with (captions encoded, captions to encode) after each part.

    Raises:
      ValueError: there are no captions; or none of them, none of the first ones, or not "" has finite features.
      UnwritableError: captions are to be encoded, and the folder cannot be written to.
    """
    wanted = {caption_digest(caption): caption for caption in captions}
    if not wanted:
        raise ValueError('there are no captions to encode; give at least one, such as ""')
    index, count = 0, 1
    if jax.process_count() > 1 and is_shared(Path(cache_folder)):
        index, count = jax.process_index(), jax.process_count()
    folder = Path(cache_folder) / LAYOUT / encoder.fingerprint
    ready_folder(folder)
    found = Table(_digests_of(_intact(folder, wanted)))
    missing = [mark for mark in sorted(wanted) if found.position(mark) < 0]
    own = [wanted[mark] for mark in missing if int.from_bytes(mark[:8], "little") % count == index]
    refused = _encode(own, encoder, folder, progress)
    barrier(f"captions {digest(*wanted).hex()} are encoded")
    if refused and ("" in refused or len(refused) == len(wanted)):
        raise ValueError(_without_features(refused))
    if refused:
        logger.warning(_without_features(refused))
    return CaptionFeatures(folder)


class CaptionFeatures:
    """Features of all captions in a folder of the cache, looked up by caption.

    The features lie in memory-mapped files, so processes on one machine share them; pickling hands over the name of
    the folder only.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._parts = [part for file in sorted(self.folder.glob(f"*{_ENDING}")) if (part := _opened(file)) is not None]
        if not self._parts:
            raise ValueError(f"{folder} must hold features of captions, but holds none; start the run anew")
        self.width, self.max_tokens = self._parts[0].width, self._parts[0].max_tokens
        self._table = Table(_digests_of(self._parts))
        self._first = np.cumsum([0, *(len(part.ends) for part in self._parts)])
        self._parts = [part._replace(digests=part.digests[:0].copy()) for part in self._parts]  # the table has them
        self._mapped: dict[int, np.ndarray] = {}

    def __getitem__(self, caption: str) -> Float[np.ndarray, "t c"]:
        """Features of the caption's own tokens, at most `max_tokens` of them and without padding; read-only.

        Raises:
          KeyError: the caption is not in the cache, has no features, or they can no longer be read.
        """
        position = self._table.position(caption_digest(caption))
        if position < 0:
            raise KeyError(
                f"caption {caption!r} was not encoded: it was not among those given to encode_captions, or the text "
                "encoder cannot encode it, of which a warning at the start of the run says more"
            )
        which = int(np.searchsorted(self._first, position, side="right")) - 1
        ends, place = self._parts[which].ends, position - int(self._first[which])
        start = int(ends[place - 1]) if place else 0
        try:
            return np.asarray(self._features(which)[start : int(ends[place])])
        except (OSError, ValueError) as error:
            raise KeyError(
                f"the features of {caption!r} can no longer be read ({error}); start the run again"
            ) from error

    def __contains__(self, caption: str) -> bool:
        return self._table.position(caption_digest(caption)) >= 0

    def __len__(self) -> int:
        return len(self._table)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionFeatures, (self.folder,)

    def __repr__(self) -> str:
        return f"CaptionFeatures({str(self.folder)!r})"

    def _features(self, which: int) -> Float[np.ndarray, "l c"]:
        """Those of a part; the part mapped first is forgotten when too many are."""
        found = self._mapped.get(which)
        if found is None:
            found = self._mapped[which] = self._parts[which].features()
            if len(self._mapped) > OPEN_PARTS:
                del self._mapped[next(iter(self._mapped))]
        return found


def caption_digest(caption: str) -> bytes:
    return digest(caption.encode("utf-8", "surrogatepass"))


class _Part(NamedTuple):
    """A file of the cache: digests of its captions, and where the tokens of each end among its features."""

    file: Path
    width: int
    max_tokens: int
    checksum: str
    digests: Digests
    ends: Int[np.ndarray, " n"]

    def features(self) -> Float[np.ndarray, "l c"]:
        """Mapped into memory."""
        with self.file.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            stored = json.loads(file.read(length))["features"]
        if not all(stored["shape"]):
            return np.zeros(stored["shape"], np.float32)  # nothing cannot be mapped
        start = 8 + length + stored["data_offsets"][0]
        return np.memmap(self.file, np.float32, "r", offset=start, shape=tuple(stored["shape"]))

    @property
    def is_intact(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return self.checksum == _checksum(self.digests, self.ends, self.features())
        return False


def _opened(file: Path) -> _Part | None:
    """A part, its features unread; None if it is damaged or gone."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            about = tensors.metadata()
            digests, ends = tensors.get_tensor("digests"), tensors.get_tensor("ends")
        digests = np.frombuffer(digests.tobytes(), f"S{DIGEST}")
        return _Part(file, int(about["width"]), int(about["max_tokens"]), about["checksum"], digests, ends)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _intact(folder: Path, wanted: Iterable[bytes]) -> list[_Part]:
    """The parts of a folder; those that hold what is wanted and are damaged are removed."""
    table, kept = Table(as_array(list(wanted))), []
    for file in sorted(folder.glob(f"*{_ENDING}")):
        part = _opened(file)
        if part is not None and (not (table.positions(part.digests) >= 0).any() or part.is_intact):
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
    """Encode captions into parts; returns those that have no features, with the reason."""
    refused: dict[str, str] = {}
    waiting: list[tuple[bytes, np.ndarray]] = []
    begun = time.monotonic()
    with counted("encoding captions", len(captions), is_shown=is_first()) as show:
        for start in range(0, len(captions), CHUNK):
            done = min(start + CHUNK, len(captions))
            for caption, features in _encoded(captions[start:done], encoder):
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


def _encoded(captions: list[str], encoder: TextEncoder) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each caption with the features of its own tokens, or why it has none."""
    try:
        features, segment_ids = (np.asarray(part) for part in encoder.encode(captions))
    except CaptionError as error:
        if len(captions) == 1:
            yield captions[0], str(error)
        else:  # the others can be encoded
            for caption in captions:
                yield from _encoded([caption], encoder)
        return
    for caption, row, is_token in zip(captions, features, segment_ids > 0):
        own = row[is_token].astype(np.float32)
        yield caption, own if np.isfinite(own).all() else NOT_FINITE


def _write(folder: Path, encoder: TextEncoder, encoded: list[tuple[bytes, np.ndarray]]) -> None:
    """A part under a name that no other has: who finds an older one damaged, removes that one only."""
    if not encoded:
        return
    digests = as_array([mark for mark, _ in encoded])
    ends = np.cumsum([len(features) for _, features in encoded])
    features = np.concatenate([features for _, features in encoded])
    about = {"width": f"{encoder.width}", "max_tokens": f"{encoder.max_tokens}"}
    about["checksum"] = _checksum(digests, ends, features)
    tensors = {"digests": np.frombuffer(digests.tobytes(), np.uint8), "ends": ends, "features": features}
    write(folder, f"{uuid.uuid4().hex}{_ENDING}", save(tensors, about))


def _checksum(digests: Digests, ends: Int[np.ndarray, " n"], features: Float[np.ndarray, "l c"]) -> str:
    total = hashlib.sha256(digests.tobytes())
    total.update(ends.tobytes())
    total.update(np.ascontiguousarray(features).data)
    return total.hexdigest()


def _digests_of(parts: list[_Part]) -> Digests:
    return np.concatenate([np.zeros(0, f"S{DIGEST}"), *(part.digests for part in parts)])


def _without_features(refused: Mapping[str, str]) -> str:
    caption, reason = next(iter(refused.items()))
    return f"{len(refused)} captions have no features, and their samples are skipped; such as {caption!r}: {reason}"
