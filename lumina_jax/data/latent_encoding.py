"""The work of encoding a source: which samples are missing in the cache, and their latents.

In: a source, an `Encoding`, and the parts of the cache. Out: parts that were added, and for each sample the digest of
what it shows, or the reason why it has no latents.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from lumina_jax.data.example import BadSample, Record, Source, reason_of
from lumina_jax.data.fingerprints import Fingerprints
from lumina_jax.data.latent_parts import LatentParts
from lumina_jax.modalities.decoding.media import LatentDistribution
from lumina_jax.modalities.encoding import Encoding, LatentScale
from lumina_jax.parts import DIGEST, UnwritableError, check_writable

THREADS = 16
WINDOW, SHARE = 256, 16
"""Samples whose digests are made at once, and those that a thread makes."""
MANY_UNSAVED = 4096
"""Digests of files after which they are written down."""
HOPELESS = 32
"""So many samples without one finite latent are a fault of the autoencoder, not of the samples."""
NOT_FINITE = "the autoencoder makes values of it that are not finite; set vae.dtype=float32, or leave the sample out"
NO_DIGEST = bytes(DIGEST)


def distribution(
    moments: Float[np.ndarray, "*b z"], scale: LatentScale
) -> tuple[Float[np.ndarray, "*b c"], Float[np.ndarray, "*b c"]]:
    """Mean and deviation in the scale that is trained on, of mean and log variance as the autoencoder gives them."""
    mean, log_variance = np.split(moments, 2, axis=-1)
    return (mean - scale.shift) * scale.scaling, np.exp(log_variance / 2) * scale.scaling


class EncodingWork:
    """What one call of `encode` has found and has still to do."""

    def __init__(self, source: Source, encoding: Encoding, parts: LatentParts, fingerprints: Fingerprints):
        self._source, self._encoding, self._parts, self._fingerprints = source, encoding, parts, fingerprints
        self.missing: dict[bytes, list[int]] = {}
        """Samples that are not in the cache: the indices of all that show the same."""
        self.reasons: dict[int, str] = {}
        """Why there are no latents of a sample, by its index."""
        self._can_write: bool | None = None

    def keys(self, order: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Each index with the digest of what it shows, which is noted if it is missing in the cache."""
        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(order), WINDOW):
                window = order[start : start + WINDOW]
                shares = [window[at : at + SHARE] for at in range(0, len(window), SHARE)]
                found = threads.map(lambda share: [self._key(index) for index in share], shares)
                for index, key in zip(window, itertools.chain.from_iterable(found)):
                    if isinstance(key, str):
                        self.reasons[index] = key
                    elif key not in self._parts:
                        self.missing.setdefault(key, []).append(index)
                    yield index, key if isinstance(key, bytes) else NO_DIGEST
                if self._fingerprints.unsaved > MANY_UNSAVED:
                    self._fingerprints.save()
        self._fingerprints.save()

    def encode_missing(self, keys: Sequence[bytes]) -> bool:
        """Encode what is missing into a part; whether there was anything to keep."""
        self._parts.refresh()  # another process may have encoded some of it
        missing = {key: indices for key, indices in self.missing.items() if key not in self._parts}
        self.missing = {}
        if not missing or not self._is_writable(missing):
            return False
        latents: dict[bytes, np.ndarray] = {}
        encoded = 0
        for indices, samples in self._batches([indices[0] for indices in missing.values()], keys):
            for index, moments in zip(indices, self._encoding.encode(samples)):
                encoded += 1
                if all(np.isfinite(part).all() for part in distribution(moments, self._encoding.scale)):
                    latents[keys[index]] = moments
                else:
                    self.reasons[index] = NOT_FINITE
        if encoded >= HOPELESS and not latents and not len(self._parts):
            raise ValueError(f"of the first {encoded} samples {NOT_FINITE.replace('sample', 'samples')}")
        for indices in missing.values():  # others that show the same
            self.reasons.update(dict.fromkeys(indices, self.reasons[indices[0]]) if indices[0] in self.reasons else {})
        if latents:
            self._parts.add(latents)
        return bool(latents)

    def _is_writable(self, missing: Mapping[bytes, list[int]]) -> bool:
        """Whether the cache may be written to, asked before anything is encoded; if not, what is missing is bad."""
        try:
            check_writable(self._parts.folder)
        except UnwritableError as error:
            if not error.is_forbidden or not len(self._parts):
                raise
            for index in itertools.chain.from_iterable(missing.values()):
                self.reasons[index] = f"its latents are not in the cache, and {error}"
            return False
        return True

    def _batches(self, wanted: Sequence[int], keys: Sequence[bytes]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Indices and samples of one shape, about as many as are encoded at once; bad ones are noted."""
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            for index, sample in zip(wanted, threads.map(lambda index: self._sample(index, keys[index]), wanted)):
                if isinstance(sample, str):
                    self.reasons[index] = sample
                    continue
                group = waiting.setdefault(sample.shape, [])
                group.append((index, sample))
                if len(group) >= self._encoding.batch_size(sample):
                    yield _unzipped(waiting.pop(sample.shape))
        for group in waiting.values():
            yield _unzipped(group)

    def _key(self, index: int) -> bytes | str:
        """The digest of what a sample shows, or why it cannot be used."""
        record = self._source[index]
        if isinstance(record, BadSample):
            return record.reason
        if isinstance(record.media, LatentDistribution):
            return "the record holds latents already"
        key = self._fingerprints(record.media)
        if key is not None:
            return key
        sample = self._shown(record)
        return sample if isinstance(sample, str) else "its file cannot be read"

    def _sample(self, index: int, key: bytes) -> np.ndarray | str:
        """What the autoencoder is shown of a sample, or why there is nothing."""
        record = self._source[index]
        sample = self._shown(record)
        if isinstance(sample, str) or isinstance(record, BadSample):
            return sample
        is_same = self._fingerprints(record.media) == key
        return sample if is_same else "it was changed while it was read; start the run again"

    def _shown(self, record: Record | BadSample) -> np.ndarray | str:
        if isinstance(record, BadSample):
            return record.reason
        try:
            return self._encoding(record.media)
        except Exception as error:  # decoders raise all sorts of things
            return reason_of(error)


def _unzipped(group: list[tuple[int, np.ndarray]]) -> tuple[list[int], list[np.ndarray]]:
    return [index for index, _ in group], [sample for _, sample in group]
