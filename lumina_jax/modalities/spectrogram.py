"""Sounds as log mel spectrograms, of which each frame of 80 bins is a token; saved as wav."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from lumina_jax.config import SoundConfig, TextConfig
from lumina_jax.encoders.phonemes import spoken_seconds
from lumina_jax.evaluation.speech import SpeechJudge
from lumina_jax.mel import BINS, HOP, frames_of, log_mel, mel_to_unit, unit_to_mel
from lumina_jax.modalities.decoding.media import LatentDistribution, Media, Sound
from lumina_jax.modalities.decoding.sounds import read_sound
from lumina_jax.modalities.files.sounds import SoundFiles, spectrogram_picture, voice_of
from lumina_jax.modalities.modality import Asked, Files, Judge, Modality, Shape, SourceFile, TimeAxis

LENGTH_STEP = 4
"""The length of a spoken text is rounded to a multiple of this number of frames, so that few programs are compiled."""


@dataclass(frozen=True, kw_only=True)
class SpectrogramModality(Modality):
    """Sounds of data.seconds at most. A sample is a log mel spectrogram [t 80], its latents are [1 1 t 80]."""

    plural: ClassVar[str] = "sounds"
    values: ClassVar[tuple[str, int] | None] = ("mel spectrograms", BINS)
    time_axis: ClassVar[TimeAxis] = "width"
    one_sample_a_caption: ClassVar[bool] = True

    @property
    def media(self) -> SoundConfig:
        """What is taken of each sample."""
        assert isinstance(self.data.media, SoundConfig)
        return self.data.media

    @property
    def patch_extent(self) -> tuple[int, int]:
        return 1, self.factor

    @property
    def trained_shape(self) -> Shape:
        return Shape(1, frames_of(self.media.seconds, self.media.sample_rate))

    def latent_size(self, shape: Shape) -> tuple[int, int, int, int]:
        return shape.frames, 1, shape.width // self.factor, self.config.channels

    def shape_for(self, prompt: str, text: TextConfig) -> Shape:
        """As long as the text takes to say, if data.seconds_per_phoneme is given, else as in training."""
        if self.media.seconds_per_phoneme is None:
            return self.trained_shape
        heard = text.max_tokens if text.encoder == "phonemes" else None
        seconds = spoken_seconds(
            prompt, per_phoneme=self.media.seconds_per_phoneme, pause=self.media.pause, max_tokens=heard
        )
        step = math.lcm(LENGTH_STEP, self.factor)
        return Shape(1, max(step, step * round(seconds * self.media.sample_rate / (HOP * step))))

    def asked_shapes(self, asked: Asked, prompts: Sequence[str], text: TextConfig) -> list[Shape]:
        given = asked.given("size", "height", "width", "video_frames", "views")
        if given:
            raise ValueError(f"{' and '.join(given)} say how large a picture is, but this draws sounds; use --seconds")
        if asked.seconds is None:
            return [self.shape_for(prompt, text) for prompt in prompts]
        frames = frames_of(asked.seconds, self.media.sample_rate)
        return [Shape(1, -(-frames // self.factor) * self.factor)] * len(prompts)

    def samples(self, media: Media) -> Float[np.ndarray, " n"]:
        """The samples of a recording at data.sample_rate.

        Raises:
          ValueError: it cannot be read, or is no sound.
        """
        if isinstance(media, LatentDistribution):
            raise ValueError("the record holds latents already")
        if not isinstance(media, Sound):
            raise ValueError(
                "the sample is not a sound, but data.media is 'sounds'; set it to 'pictures', 'clips' or 'views'"
            )
        return read_sound(media, self.media)

    def decode(self, media: Media, draws: random.Random | None) -> Float[np.ndarray, "t 80"]:
        return log_mel(self.samples(media), self.media.sample_rate)

    def to_latents(self, decoded: Float[np.ndarray, "t 80"]) -> Float[np.ndarray, "1 1 t 80"]:
        return mel_to_unit(decoded)[None, None]

    def from_latents(self, latents: Float[np.ndarray, "b 1 1 t 80"], autoencoder: Any) -> Float[np.ndarray, "b t 80"]:
        return np.asarray(latents)[:, 0, 0]

    def shown(self, values: Float[np.ndarray, "b t 80"]) -> Float[np.ndarray, "b t 80"]:
        return unit_to_mel(values)

    def extent_of(self, sample: np.ndarray) -> Shape:
        if sample.ndim != 2 or sample.shape[1] != BINS or sample.dtype.kind != "f":
            raise ValueError(
                f"a source must be a log mel spectrogram, floats [t {BINS}], but is {sample.dtype} {sample.shape}"
            )
        return Shape(1, len(sample))

    def read_source(
        self, file: Path, mask: Path | None, shape: Shape, corner: tuple[int, int] | None = None
    ) -> SourceFile:
        """The beginning of a recording; where it is shorter than what is drawn, the rest continues it."""
        if mask is not None or corner is not None:
            what = f"{mask} cannot mask" if corner is None else f"{corner=} cannot surround"
            raise ValueError(f"{what} a sound; a sound is continued where the source is shorter")
        found = log_mel(self.samples(Sound(file)), self.media.sample_rate)
        cut = f"of the {len(found)} frames of {file} the first {shape.width} are taken"
        return SourceFile(found[: shape.width], None, (cut,) if len(found) > shape.width else ())

    def preview(self, sample: Float[np.ndarray, "t 80"]) -> UInt8[np.ndarray, "height width 3"]:
        return spectrogram_picture(sample)

    def files(self, frame_rate: float) -> Files:
        return SoundFiles(voice_of(self.vae.vocoder), self.media.sample_rate)

    def judge(self, captions: Callable[[], Sequence[str]], files: Files) -> Judge:
        """A recogniser must hear what the caption says, and so it must in true recordings."""
        assert isinstance(files, SoundFiles)
        return SpeechJudge(captions(), files.voice, self.media.sample_rate)
