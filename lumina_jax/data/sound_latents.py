"""Sounds encoded once: their spectrograms through an autoencoder of sounds, kept as `latents.py` keeps pictures.

In: a source of sounds and a `SoundVae`. Out: a source of the same records, whose `media` is the distribution of their
latents [1 1 l c]. A sound is filled up with silence to a length that the autoencoder takes, a quarter of a second at
most, and a batch of one length is encoded at once.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lumina_jax.config import DataConfig, SoundConfig
from lumina_jax.data.example import BadSample, Record, Source
from lumina_jax.data.latents import PART_SAMPLES, LatentSource, Scale, encode
from lumina_jax.data.preparation import check_kind
from lumina_jax.encoders.sound_vae import SoundVae
from lumina_jax.mel import HOP, frames_of, log_mel, seconds_of, whole_frames
from lumina_jax.modalities.decoding.media import LatentDistribution, Sound
from lumina_jax.modalities.decoding.sounds import read_sound

BATCH_FRAMES = 4096
"""Frames that each device encodes at once, or those of one sound if it has more."""


def sound_latent_data(data: DataConfig, factor: int) -> DataConfig:
    """The same settings with data.seconds as long as if each value of the latent were a frame, as a stream of latents
    needs them."""
    assert isinstance(data.media, SoundConfig)
    frames = longest_frames(data.media, factor) // factor
    return data.replace(seconds=seconds_of(frames, data.media.sample_rate))


def longest_frames(wanted: SoundConfig, factor: int) -> int:
    """Frames of the longest sound, filled up."""
    return whole_frames(frames_of(wanted.seconds, wanted.sample_rate), factor)


def encode_sounds(
    source: Source,
    vae: SoundVae,
    data: DataConfig,
    cache_folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> LatentSource:
    """The source with the latents of every sound; see `encode` of `latents.py`."""
    return encode(source, SoundEncoding(vae, data), cache_folder, shard=shard, progress=progress)


class SoundEncoding:
    """An `Encoding` of `latents.py`."""

    def __init__(self, vae: SoundVae, data: DataConfig):
        wanted = data.media
        assert isinstance(wanted, SoundConfig)
        self._vae, self._wanted = vae, wanted
        self._longest = longest_frames(wanted, vae.factor)
        self.devices, self.channels, self.part_samples = vae.devices, vae.channels, PART_SAMPLES
        self.folder = f"{vae.fingerprint}-{wanted.seconds}-{wanted.sample_rate}"
        self.scale = Scale(0.0, vae.config.scaling)

    def __call__(self, record: Record | BadSample) -> Float[np.ndarray, "t 80"] | str:
        """The spectrogram with silence after it, or why there is none."""
        if isinstance(record, BadSample):
            return record.reason
        rate = self._wanted.sample_rate
        try:
            if isinstance(record.media, LatentDistribution):
                raise ValueError("the record holds latents already")
            check_kind(record.media, self._wanted)
            assert isinstance(record.media, Sound)
            samples = read_sound(record.media, self._wanted)
        except ValueError as error:
            return str(error)
        samples = samples[: self._longest * HOP]  # resampling may round up
        frames = whole_frames(frames_of(len(samples) / rate, rate), self._vae.factor)
        return log_mel(np.pad(samples, (0, frames * HOP - len(samples))), rate)

    def samples_at_once(self, sample: Float[np.ndarray, "t 80"]) -> int:
        """See `Encoding`."""
        return self.devices * max(1, BATCH_FRAMES // len(sample))

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b 1 1 l z"]:
        """See `Encoding`; batches are filled up, so that one program serves a length."""
        at_once = self.samples_at_once(samples[0])
        filled = np.stack([*samples, *samples[-1:] * (-len(samples) % at_once)])
        moments = [
            np.concatenate([np.asarray(half) for half in self._vae.encode(filled[start : start + at_once])], axis=-1)
            for start in range(0, len(filled), at_once)
        ]
        return np.concatenate(moments)[: len(samples), None, None]
