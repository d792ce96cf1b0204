"""Sounds as the latents of an autoencoder of spectrograms; saved as wav."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from lumina_jax.encoders.sound_vae import SoundVae, read_sound_vae_config, sound_vae
from lumina_jax.mel import HOP, QUIET, frames_of, log_mel, whole_frames
from lumina_jax.modalities.decoding.media import Media
from lumina_jax.modalities.encoding import PART_SAMPLES, LatentScale
from lumina_jax.modalities.modality import Shape
from lumina_jax.modalities.spectrogram import SpectrogramModality

BATCH_FRAMES = 4096
"""Frames that each device encodes at once, or those of one sound if it has more."""


@dataclass(frozen=True, kw_only=True)
class SoundLatents(SpectrogramModality):
    """Sounds whose latents are [1 1 l c]. A sample is a log mel spectrogram [t 80] here as well."""

    @property
    def trained_shape(self) -> Shape:
        """The longest sound, filled up with silence to a length that the autoencoder takes."""
        return Shape(1, whole_frames(super().trained_shape.width, self.factor))

    def from_latents(
        self, latents: Float[np.ndarray, "b 1 1 l c"], autoencoder: SoundVae
    ) -> Float[np.ndarray, "b t 80"]:
        return np.asarray(autoencoder.decode(np.asarray(latents)[:, 0, 0]))

    def shown(self, values: Float[np.ndarray, "b t 80"]) -> Float[np.ndarray, "b t 80"]:
        return np.maximum(values, np.float32(QUIET))

    def filled(self, sample: Float[np.ndarray, "t 80"]) -> Float[np.ndarray, "l 80"]:
        return np.pad(sample, ((0, -len(sample) % self.factor), (0, 0)), mode="edge")

    def read_autoencoder(self) -> tuple[int, int]:
        found = read_sound_vae_config(self.vae.path)
        return found.factor, found.channels

    def load_autoencoder(self, mesh: Mesh | None) -> SoundVae:
        return sound_vae(self.vae.path, mesh, self.vae.dtype)

    def encoding(self, autoencoder: SoundVae) -> "SoundEncoding":
        return SoundEncoding(self, autoencoder)


class SoundEncoding:
    """Spectrograms through an autoencoder of sounds; see `Encoding`.

    A sound is filled up with silence to a length that the autoencoder takes, a quarter of a second at most, and a batch
    of one length is encoded at once.
    """

    def __init__(self, modality: SoundLatents, autoencoder: SoundVae):
        self._modality, self._vae = modality, autoencoder
        self.devices, self.channels, self.part_samples = autoencoder.devices, autoencoder.channels, PART_SAMPLES
        self.folder = f"{autoencoder.fingerprint}-{modality.media.seconds}-{modality.media.sample_rate}"
        self.scale = LatentScale(0.0, autoencoder.config.scaling)

    def __call__(self, media: Media) -> Float[np.ndarray, "t 80"]:
        """The spectrogram with silence after it."""
        rate, longest = self._modality.media.sample_rate, self._modality.trained_shape.width
        samples = self._modality.samples(media)[: longest * HOP]  # resampling may round up
        frames = whole_frames(frames_of(len(samples) / rate, rate), self._vae.factor)
        return log_mel(np.pad(samples, (0, frames * HOP - len(samples))), rate)

    def batch_size(self, sample: Float[np.ndarray, "t 80"]) -> int:
        return self.devices * max(1, BATCH_FRAMES // len(sample))

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b 1 1 l z"]:
        """Batches are filled up, so that one program serves a length."""
        at_once = self.batch_size(samples[0])
        filled = np.stack([*samples, *samples[-1:] * (-len(samples) % at_once)])
        moments = [
            np.concatenate([np.asarray(half) for half in self._vae.encode(filled[start : start + at_once])], axis=-1)
            for start in range(0, len(filled), at_once)
        ]
        return np.concatenate(moments)[: len(samples), None, None]
