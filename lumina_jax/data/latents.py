"""Pictures and sounds encoded once: a source whose records carry the latents of an autoencoder in their place.

In: a source, and an autoencoder with what it is shown of a record (an `Encoding`). Out: a source of the same records,
whose `media` is the distribution of the latents, read from a cache; training draws from it anew at every visit, as the
released code does. The frames of a clip are encoded one by one. Sounds: `sound_latents.py`.

Every picture is cropped in one way only: the middle, and with data.crop=buckets the size that keeps most of it; of a
clip longer than data.frames the middle is taken. The cache has a folder for each autoencoder and crop, in which latents
are found by what the sample shows (`fingerprints.py`): names, order and place of samples may change, what was changed
is encoded alone, and an interrupted run goes on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from lumina_jax.config import DataConfig, ModelConfig, VisualConfig
from lumina_jax.data.example import BadSample, Record, Source, contents
from lumina_jax.data.fingerprints import Fingerprints
from lumina_jax.data.latent_encoding import NO_DIGEST, WINDOW, Encoding, Scale, Work, distribution
from lumina_jax.data.latent_parts import DamagedError, LatentParts, mark_damaged, read_moments
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.modalities.decoding.buckets import Size, best_crop, center_square, crop_sizes
from lumina_jax.modalities.decoding.frames import read_pictures
from lumina_jax.modalities.decoding.media import LatentDistribution
from lumina_jax.modalities.decoding.pictures import check_resizable
from lumina_jax.parallel.multihost import is_first
from lumina_jax.parts import CACHE_VERSION, Digests, digest_array
from lumina_jax.progress import counted
from lumina_jax.tokens import pixels_to_unit, tile_views

PART_SAMPLES, PART_PIXELS = 1024, 2**26
"""A file of the cache holds so many samples, or fewer if they have more pixels than these."""
BATCH_PIXELS = 2**20
"""Pixels that each device encodes at once, or those of one frame if it has more."""


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
        scale: Scale,
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


def latent_data(data: DataConfig, factor: int) -> DataConfig:
    """The same settings with data.image_size counted in values of the latent, as a stream of latents needs them."""
    assert isinstance(data.media, VisualConfig)
    return data.replace(image_size=data.media.image_size // factor)


def encode_pictures(
    source: Source,
    vae: ImageVae,
    data: DataConfig,
    model: ModelConfig,
    cache_folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> LatentSource:
    """The source with the latents of every picture; see `encode`. `data`: image_size and crop, in pixels."""
    return encode(source, PictureEncoding(vae, data, model), cache_folder, shard=shard, progress=progress)


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
    work = Work(source, encoding, parts, Fingerprints(Path(cache_folder) / CACHE_VERSION / "files"))
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


@dataclasses.dataclass(frozen=True)
class Crop:
    """The one crop of a sample: from a record to pixels whose sides the autoencoder and the patches divide."""

    wanted: VisualConfig
    unit: int
    """Pixels of a patch."""
    sizes: tuple[Size, ...]
    """What to choose from; none: a square."""

    @staticmethod
    def of(data: DataConfig, model: ModelConfig, factor: int) -> "Crop":
        wanted, unit = data.media, model.patch_size * factor
        assert isinstance(wanted, VisualConfig)
        sizes = crop_sizes((wanted.image_size // unit) ** 2, unit) if wanted.crop == "buckets" else []
        return Crop(wanted, unit, tuple(sizes))

    def __call__(self, record: Record | BadSample) -> UInt8[np.ndarray, "f h w 3"] | str:
        """The pixels, or why there are none."""
        if isinstance(record, BadSample):
            return record.reason
        try:
            if isinstance(record.media, LatentDistribution):
                raise ValueError("the record holds latents already")
            frames = np.stack([*map(np.asarray, read_pictures(record.media, self.wanted, None, self._cropped))])
            return frames if self.wanted.grid_columns is None else tile_views(frames, self.wanted.grid_columns)
        except ValueError as error:
            return str(error)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        side = self.wanted.image_size
        check_resizable(picture, least=self.unit, side=side)
        return best_crop(picture, self.sizes) if self.sizes else center_square(picture, side)


class PictureEncoding:
    """Pictures and clips, cropped alike, through an image autoencoder."""

    def __init__(self, vae: ImageVae, data: DataConfig, model: ModelConfig):
        self._vae, self._crop = vae, Crop.of(data, model, vae.factor)
        self.devices, self.channels = vae.devices, vae.channels
        wanted = self._crop.wanted
        frames = f"{wanted.frames}x{wanted.frame_rate or 'all'}"
        frames += "" if wanted.grid_columns is None else f"-grid{wanted.grid_columns}"
        self.folder = f"{vae.fingerprint}-{wanted.crop}-{wanted.image_size}-{self._crop.unit}-{frames}"
        self.part_samples = max(1, min(PART_SAMPLES, PART_PIXELS // (wanted.frames * wanted.image_size**2)))
        self.scale = Scale(vae.config.shift, vae.config.scaling)

    def __call__(self, record: Record | BadSample) -> UInt8[np.ndarray, "f h w 3"] | str:
        """The pixels; see `Encoding`."""
        return self._crop(record)

    def samples_at_once(self, sample: UInt8[np.ndarray, "f h w 3"]) -> int:
        """See `Encoding`."""
        return -(-self._frames_at_once(sample) // len(sample))

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b f v u z"]:
        """See `Encoding`; the last batch of frames is filled up, so that one program serves a size."""
        frames = np.concatenate(samples)
        at_once = self._frames_at_once(frames)
        filled = np.concatenate([frames, *[frames[-1:]] * (-len(frames) % at_once)])
        moments = []
        for start in range(0, len(filled), at_once):
            posterior = self._vae.encode(pixels_to_unit(filled[start : start + at_once]))
            moments.append(np.concatenate([np.asarray(half) for half in posterior], axis=-1))
        kept = np.concatenate(moments)[: len(frames)]
        return kept.reshape(len(samples), -1, *kept.shape[1:])

    def _frames_at_once(self, frames: UInt8[np.ndarray, "f h w 3"]) -> int:
        return self.devices * max(1, BATCH_PIXELS // (frames.shape[1] * frames.shape[2]))
