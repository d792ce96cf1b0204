"""Samples encoded once: a source whose records carry the latents of an autoencoder instead of media.

In: a source, and an autoencoder with what it is shown of a record (an `Encoding`). Out: a source of the same records,
whose `media` is the distribution of the latents, read from a cache; training draws from it anew at every visit, as the
released code does. What is encoded of a sample its modality says (`modalities/`).

The cache has a folder for each autoencoder and crop, in which latents are found by what the sample shows
(`fingerprints.py`): names, order and index of samples may change, what was changed is encoded alone, and an interrupted
run goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lumina_jax.data.example import BadSample, Record, Source, contents
from lumina_jax.data.fingerprints import Fingerprints
from lumina_jax.data.latent_encoding import NO_DIGEST, WINDOW, EncodingWork, distribution
from lumina_jax.data.latent_parts import DamagedError, LatentParts, mark_damaged, read_moments
from lumina_jax.data.sources import MixedSource
from lumina_jax.modalities import Modality
from lumina_jax.modalities.decoding.media import LatentDistribution
from lumina_jax.modalities.encoding import Encoding, LatentScale
from lumina_jax.parallel.multihost import is_first
from lumina_jax.parts import CACHE_VERSION, Digests, digest_array
from lumina_jax.progress import counted


class LatentSource:
    """The records of `source` with latents from the cache; made by `encode`.

    A record whose latents turn out to be damaged when they are read is a bad sample, and is encoded anew when the
    next run starts.
    """

    def __init__(
        self,
        source: Source,
        parts: LatentParts,
        keys: Digests,
        reasons: Mapping[int, str],
        scale: LatentScale,
        channels: int,
    ) -> None:
        self.channels = channels
        self.contents = contents(source)
        self._source, self._folder, self._names = source, parts.folder, tuple(parts.names)
        self._keys, self._reasons, self._scale = keys, dict(reasons), scale
        part_of = (parts.part_of(keys[index : index + 1].tobytes()) for index in range(len(keys)))
        self._part_of: Int[np.ndarray, " n"] = np.fromiter(part_of, np.int32, len(keys))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | BadSample:
        record = self._source[index]
        if isinstance(record, BadSample):
            return record
        if index in self._reasons:
            return BadSample(record.name, self._reasons[index])
        file = self._folder / self._names[self._part_of[index]]
        try:
            mean, deviation = distribution(read_moments(file, self._keys[index : index + 1].tobytes()), self._scale)
        except DamagedError as error:
            is_marked = mark_damaged(file)
            remedy = "the next run encodes them anew" if is_marked else f"delete {file}, which this program may not"
            return BadSample(record.name, f"its cached latents are damaged ({error}); {remedy}")
        return record._replace(media=LatentDistribution(mean, deviation))

    def __repr__(self) -> str:
        return f"LatentSource({self._source!r})"


def encode_sources(
    source: Source,
    modalities: Sequence[Modality],
    autoencoders: Mapping[str, Any],
    cache_folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
) -> Source:
    """The source with the latents of every sample whose modality has an autoencoder; a mixture part by part.

    Args:
      modalities: of each part.
      autoencoders: by the name of the modality.
      shard: see `encode`.
    """
    parts = source.parts if isinstance(source, MixedSource) else (source,)
    encoded = [
        encode(part, modality.encoding(autoencoders[modality.config.name]), cache_folder, shard=shard)
        if modality.config.name in autoencoders
        else part
        for part, modality in zip(parts, modalities, strict=True)
    ]
    return MixedSource(encoded) if isinstance(source, MixedSource) else encoded[0]


def encode(
    source: Source,
    encoding: Encoding,
    cache_folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> LatentSource:
    """The source with the latents of every sample, read from the cache or, the first time, encoded into it.

    A sample that cannot be encoded, or whose latents are not finite, is a bad one of the result, and is tried again by
    the next call. Memory holds the samples of one part, and a few hundred bytes for each sample of the source.

    Args:
      shard: (index, count) of this process, each of which begins at another sample. So they share the work if they
        share the folder, since none encodes what is there already; and each does all of it if they don't.
      progress: called with (samples seen to, samples in all) after each part that was encoded.

    Raises:
      UnwritableError: the disk is full, or there is nothing in the cache and it may not be written to. Where only some
        samples are missing in a folder that may not be written to, they are bad ones.
      ValueError: the autoencoder gives no finite latents at all.
    """
    parts = LatentParts(Path(cache_folder) / CACHE_VERSION / encoding.folder)
    work = EncodingWork(source, encoding, parts, Fingerprints(Path(cache_folder) / CACHE_VERSION / "files"))
    keys = [NO_DIGEST] * len(source)
    offset = shard[0] * len(source) // shard[1]
    order = [*range(offset, len(source)), *range(offset)]
    with counted("encoding samples", len(source), is_shown=is_first()) as show:
        for done, (index, key) in enumerate(work.keys(order), start=1):
            keys[index] = key
            is_due = len(work.missing) == encoding.part_samples or done == len(source)
            if is_due and work.encode_missing(keys) and progress is not None:
                progress(done, len(source))
            if is_due or done % WINDOW == 0:
                show(done)
    parts.remove_damaged()
    return LatentSource(source, parts, digest_array(keys), work.reasons, encoding.scale, encoding.channels)
