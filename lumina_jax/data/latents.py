"""Pictures and sounds encoded once: a source whose records carry the latents of an autoencoder in their place.

In: a source, and an autoencoder with what it is shown of a record (an `Encoding`). Out: a source of the same records,
whose `media` is the distribution of the latents, read from a cache; training draws from it anew at every visit, as the
released code does. The frames of a clip are encoded one by one. Sounds: `sound_latents.py`.

Every picture is cropped in one way only: the middle, and with data.crop=buckets the size that keeps most of it; of a
clip longer than data.frames the middle is taken. The
cache is a folder named by the autoencoder and the crop, of one file for each so many consecutive samples, which is
renamed into place when it is complete. A file is named by what it was made from (name, size and time of a file, or the
bytes of an embedded picture), so what changed is encoded anew, what is there is not, and an interrupted run goes on.
"""

import dataclasses
import hashlib
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data.buckets import Size, best_crop, center_square, crop_sizes
from lumina_jax.data.example import BadSample, Clip, LatentDistribution, Record, Sound, Source, Views, contents
from lumina_jax.data.frames import read_pictures
from lumina_jax.data.pictures import check_resizable
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.tokens import pixels_to_unit, tile_views

PART_SAMPLES, PART_PIXELS = 1024, 2**26
"""A file of the cache holds so many samples, or fewer if they have more pixels than these."""
BATCH_PIXELS = 2**20
"""Pixels that each device encodes at once, or those of one frame if it has more."""
THREADS = 16
_CHECKSUM, _REASON = "checksum {}", "reason {}"
"""Entries of a file's metadata about one of its samples."""


class Scale(NamedTuple):
    """The scale in which latents are trained on: (z - shift) * scaling."""

    shift: float
    scaling: float


class LatentSource:
    """The records of `source` with latents from the cache; made by `encode`.

    A record whose latents turn out to be damaged when they are read is a bad sample, and is encoded anew when the
    next run starts. Pickling hands over names of files only.
    """

    def __init__(self, source: Source, parts: Sequence[Path], part_samples: int, scale: Scale, channels: int) -> None:
        self.channels = channels
        self._source, self._parts, self._part_samples, self._scale = source, tuple(parts), part_samples, scale
        self.contents = contents(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | BadSample:
        record = self._source[index]
        if isinstance(record, BadSample):
            return record
        part, place = divmod(index, self._part_samples)
        try:
            moments = _moments(self._parts[part], place)
        except (OSError, SafetensorError, DamagedError) as error:
            _mark(self._parts[part]).touch()
            return BadSample(record.name, f"its cached latents are damaged ({error}); the next run encodes them anew")
        if isinstance(moments, str):
            return BadSample(record.name, moments)
        mean, log_variance = np.split(moments, 2, axis=-1)
        shift, scaling = self._scale
        return record._replace(media=LatentDistribution((mean - shift) * scaling, np.exp(log_variance / 2) * scaling))

    def __repr__(self) -> str:
        return f"LatentSource({self._source!r})"


class DamagedError(ValueError):
    """Latents that are not as they were written."""


@runtime_checkable
class Encoding(Protocol):
    """How records become latents."""

    folder: str
    """Name of the cache: all that the latents depend on besides the records."""
    part_samples: int
    """Samples of a file of the cache."""
    devices: int
    """That share what is encoded at once."""
    scale: Scale
    channels: int

    def __call__(self, record: Record | BadSample) -> np.ndarray | str:
        """What the autoencoder is shown of a record, or why there is nothing."""
        ...

    def samples_at_once(self, sample: np.ndarray) -> int:
        """How many such samples are gathered for a call of `encode`."""
        ...

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b f v u z"]:
        """Mean and log variance of samples of one shape."""
        ...


def latent_data(data: DataConfig, factor: int) -> DataConfig:
    """The same settings with data.image_size counted in values of the latent, as a stream of latents needs them."""
    return dataclasses.replace(data, image_size=data.image_size // factor)


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

    Memory stays bounded by the samples of one part, whatever the size of the source.

    Args:
      shard: (index, count) of this process, each of which begins at another place. So they share the work if they
        share the folder, since none encodes what is there already; and each does all of it if they don't.
      progress: called with (samples seen to, samples in all) after each part that was encoded.
    """
    folder, part_samples = Path(cache_folder) / encoding.folder, encoding.part_samples
    folder.mkdir(parents=True, exist_ok=True)
    parts = [range(start, min(start + part_samples, len(source))) for start in range(0, len(source), part_samples)]
    files = [folder / f"{_digest(source, part)}.safetensors" for part in parts]
    offset = shard[0] * len(parts) // shard[1]
    for done, place in enumerate([*range(offset, len(parts)), *range(offset)], start=1):
        if not _is_complete(files[place], len(parts[place])):
            _encode_part(source, parts[place], encoding, files[place])
            if progress is not None:
                progress(min(done * part_samples, len(source)), len(source))
    return LatentSource(source, files, part_samples, encoding.scale, encoding.channels)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The one crop of a sample: from a record to pixels whose sides the autoencoder and the patches divide."""

    data: DataConfig
    unit: int
    """Pixels of a patch."""
    sizes: tuple[Size, ...]
    """What to choose from; none: a square."""

    @staticmethod
    def of(data: DataConfig, model: ModelConfig, factor: int) -> "Crop":
        unit = model.patch_size * factor
        sizes = crop_sizes((data.image_size // unit) ** 2, unit) if data.crop == "buckets" else []
        return Crop(data, unit, tuple(sizes))

    def __call__(self, record: Record | BadSample) -> UInt8[np.ndarray, "f h w 3"] | str:
        """The pixels, or why there are none."""
        if isinstance(record, BadSample):
            return record.reason
        try:
            if isinstance(record.media, LatentDistribution):
                raise ValueError("the record holds latents already")
            frames = np.stack([self._of_picture(picture) for picture in read_pictures(record.media, self.data, None)])
            return frames if self.data.grid_columns is None else tile_views(frames, self.data.grid_columns)
        except ValueError as error:
            return str(error)

    def _of_picture(self, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        side = self.data.image_size
        check_resizable(picture, least=self.unit, side=side)
        return np.asarray(best_crop(picture, self.sizes) if self.sizes else center_square(picture, side))


class PictureEncoding:
    """Pictures and clips, cropped alike, through an image autoencoder."""

    def __init__(self, vae: ImageVae, data: DataConfig, model: ModelConfig):
        self._vae, self._crop = vae, Crop.of(data, model, vae.factor)
        self.devices, self.channels = vae.devices, vae.channels
        frames = f"{data.frames}x{data.frame_rate or 'all'}"
        frames += "" if data.grid_columns is None else f"-grid{data.grid_columns}"
        self.folder = f"{vae.fingerprint}-{data.crop}-{data.image_size}-{self._crop.unit}-{frames}"
        self.part_samples = max(1, min(PART_SAMPLES, PART_PIXELS // (data.frames * data.image_size**2)))
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


def _encode_part(source: Source, part: range, encoding: Encoding, file: Path) -> None:
    """Encode the samples of `part` into `file`, which appears when it is complete."""
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for places, samples in _batches(source, part, encoding, metadata):
        for place, moments in zip(places, encoding.encode(samples)):
            tensors[f"{place}"] = moments
            metadata[_CHECKSUM.format(place)] = f"{_checksum(moments)}"
    partial = file.with_name(f"{file.name}.partial-{uuid.uuid4().hex}")
    try:
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, file)
        _mark(file).unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def _batches(
    source: Source, part: range, encoding: Encoding, reasons: dict[str, str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Places in the part and samples of one shape, about as many as are encoded at once; `reasons` receives the bad
    ones."""
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for place, sample in enumerate(threads.map(lambda index: encoding(source[index]), part)):
            if isinstance(sample, str):
                reasons[_REASON.format(place)] = sample
                continue
            group = waiting.setdefault(sample.shape, [])
            group.append((place, sample))
            if len(group) >= encoding.samples_at_once(sample):
                yield tuple(map(list, zip(*waiting.pop(sample.shape))))  # type: ignore[misc]
    for group in waiting.values():
        yield tuple(map(list, zip(*group)))  # type: ignore[misc]


def _moments(file: Path, place: int) -> Float[np.ndarray, "f v u z"] | str:
    """Mean and log variance of one sample, alone read from the file, or why it has none."""
    with safe_open(file, framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
        if reason := metadata.get(_REASON.format(place)):
            return reason
        moments = tensors.get_tensor(f"{place}")
    if metadata.get(_CHECKSUM.format(place)) != f"{_checksum(moments)}":
        raise DamagedError(f"a checksum in {file.name} does not match")
    return moments


def _is_complete(file: Path, samples: int) -> bool:
    """Whether a part is there, of the length it was written in, and was not found damaged."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            reasons = [name for name in tensors.metadata() or {} if name.startswith(_REASON.format(""))]
            return len(list(tensors.keys())) + len(reasons) == samples and not _mark(file).exists()
    except (OSError, SafetensorError):
        return False


def _mark(file: Path) -> Path:
    """A file beside a part that says it is damaged."""
    return file.with_suffix(".damaged")


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def _digest(source: Source, part: range) -> str:
    """Changes with any picture of the part."""
    total = hashlib.blake2b(digest_size=16)
    for index in part:
        record = source[index]
        total.update(hashlib.blake2b(f"{record.name}\n{_state(record)}".encode()).digest())
    return total.hexdigest()


def _state(record: Record | BadSample) -> str:
    if isinstance(record, BadSample):
        return f"bad {record.reason}"
    media = record.media
    if isinstance(media, Sound):
        recording = media.recording
        whole = _file_state(recording if isinstance(recording, Path) else recording.tobytes())
        return f"{whole} {media.rate} {media.start} {media.end}"
    if isinstance(media, Clip):
        return f"{_file_state(media.file)} {media.start} {media.end}"
    if isinstance(media, Views):
        return " ".join(map(_file_state, media.files))
    if isinstance(media, Path | bytes):
        return _file_state(media)
    return hashlib.blake2b(np.asarray(media).tobytes()).hexdigest()


def _file_state(file: Path | bytes) -> str:
    if isinstance(file, bytes):
        return hashlib.blake2b(file).hexdigest()
    try:
        status = file.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
