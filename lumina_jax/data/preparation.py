"""A record to an example: decoding, cropping (a sound: its spectrogram), and dropping the caption or label for
classifier-free guidance.

Runs inside grain's threads or worker processes. Every random choice depends on the run's seed and the sample's global
index alone, so neither the number of workers nor that of hosts changes it.
"""

import dataclasses
import random

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lumina_jax.config import DataConfig, MediaConfig, ModelConfig, SoundConfig, VisualConfig
from lumina_jax.data.example import BadSample, Example, Record, reason_of
from lumina_jax.mel import frames_of, log_mel, mel_to_unit
from lumina_jax.modalities.decoding.buckets import Size, bucket_crop, center_square, crop_sizes
from lumina_jax.modalities.decoding.frames import read_pictures
from lumina_jax.modalities.decoding.media import LatentDistribution, Media, Sound
from lumina_jax.modalities.decoding.pictures import check_resizable
from lumina_jax.modalities.decoding.sounds import read_sound
from lumina_jax.tokens import pixels_to_unit, tile_views


def possible_sizes(data: DataConfig, model: ModelConfig) -> list[Size]:
    """All (width, height) that a sample may have after cropping; of sounds the greatest."""
    media = data.media
    if isinstance(media, SoundConfig):
        return [(frames_of(media.seconds, media.sample_rate), 1)]
    assert isinstance(media, VisualConfig)
    if media.crop == "square":
        _, height, width = media.extent()
        return [(width, height)]
    patch_size = model.modality_of(data.modality).patch_size
    return crop_sizes((media.image_size // patch_size) ** 2, patch_size)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The map of the pipeline: (global index, record) to (global index, Example or BadSample)."""

    data: DataConfig
    model: ModelConfig
    seed: int
    sizes: tuple[Size, ...]
    """What `possible_sizes` returns for these settings."""

    def __call__(self, numbered: tuple[int, Record | BadSample]) -> tuple[int, Example | BadSample]:
        index, record = numbered
        if isinstance(record, BadSample):
            return index, record
        draws = random.Random(f"{self.seed} {index}")
        try:
            caption, label = self._condition(record, is_dropped=draws.random() < self.data.caption_dropout)
            latents = self._latents(record.media, draws)
        except Exception as error:  # whatever a decoder raises ends no run
            return index, BadSample(record.name, reason_of(error))
        return index, Example(record.name, latents, caption, label, self.model.place(self.data.modality))

    def _condition(self, record: Record, *, is_dropped: bool) -> tuple[str | None, int | None]:
        if self.model.conditioning == "text":
            if not record.caption:
                raise ValueError("there is no caption" if record.caption is None else "the caption is empty")
            return "" if is_dropped else record.caption, record.label
        classes = self.model.classes
        if record.label is None:
            raise ValueError("there is no label")
        if not 0 <= record.label < classes:
            raise ValueError(f"the label {record.label} is not in 0..{classes - 1}; see model.classes")
        return record.caption, classes if is_dropped else record.label

    def _latents(self, media: Media, draws: random.Random) -> Float[np.ndarray, "f h w c"]:
        if isinstance(media, LatentDistribution):
            return _drawn(media, draws)
        wanted = self.data.media
        check_kind(media, wanted)
        if isinstance(media, Sound):
            assert isinstance(wanted, SoundConfig)
            return mel_to_unit(log_mel(read_sound(media, wanted), wanted.sample_rate))[None, None]
        assert isinstance(wanted, VisualConfig)
        return pixels_to_unit(self._pixels(media, wanted, draws))

    def _pixels(self, media: Media, wanted: VisualConfig, draws: random.Random) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames that are trained on, all cropped alike, or the grid of an object's views."""
        state: list[object] = []

        def cropped(picture: Image.Image) -> Image.Image:
            state.append(draws.getstate())
            draws.setstate(state[0])  # type: ignore[arg-type]
            return self._crop(picture, wanted, draws)

        frames = [np.asarray(picture) for picture in read_pictures(media, wanted, draws, cropped)]
        columns = wanted.grid_columns
        return np.stack(frames) if columns is None else tile_views(np.stack(frames), columns)

    def _crop(self, picture: Image.Image, wanted: VisualConfig, draws: random.Random) -> Image.Image:
        patch_size = self.model.modality_of(self.data.modality).patch_size
        check_resizable(picture, least=patch_size, side=wanted.image_size)
        if wanted.crop == "square":
            return center_square(picture, wanted.image_size)
        return bucket_crop(picture, self.sizes, draws)


def check_kind(media: Media, wanted: MediaConfig) -> None:
    """Refuse sounds in a source of pictures, and pictures in one of sounds.

    Raises:
      ValueError: it is one.
    """
    if isinstance(media, Sound) and not isinstance(wanted, SoundConfig):
        raise ValueError(f"the sample is a sound, but data.media is {wanted.kind!r}; set it to 'sounds'")
    if not isinstance(media, Sound) and isinstance(wanted, SoundConfig):
        raise ValueError(
            "the sample is not a sound, but data.media is 'sounds'; set it to 'pictures', 'clips' or 'views'"
        )


def _drawn(latents: LatentDistribution, draws: random.Random) -> Float[np.ndarray, "f h w c"]:
    noise = np.random.default_rng(draws.getrandbits(128)).standard_normal(latents.mean.shape, np.float32)
    return latents.mean + latents.deviation * noise
