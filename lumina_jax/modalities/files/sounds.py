"""Sounds on disk: wav, and a picture of the spectrogram.

In: log mel spectrograms, as `mel.py` makes them. Out: samples, by a vocoder or by Griffin and Lim's iteration.
Files appear complete or not at all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from lumina_jax.encoders.vocoder import vocoder
from lumina_jax.mel import LOUD, QUIET, griffin_lim, load_librosa
from lumina_jax.modalities.files.png import written_whole

Spectrogram = Float[np.ndarray, "t 80"]
AnySpectrogram = Float[np.ndarray, "_ 80"]
"""A spectrogram whose length has nothing to do with that of others."""
Voice = Callable[[Spectrogram, int], Float[np.ndarray, " n"]]
"""From a spectrogram and its sampling rate to samples."""
ZOOM = 2
"""Pixels of a picture along each side of a bin."""
PEAK = 0.9
"""Louder samples than these are turned down."""
COLOURS = ("#07051b", "#b6367a", "#fcfdbf")


def voice_of(vocoder_path: str) -> Voice:
    """What makes samples of spectrograms: the vocoder of a folder or repository, or without one Griffin and Lim's
    iteration.

    Raises:
      ValueError: librosa is not installed, or the files of the vocoder are missing or damaged.
    """
    load_librosa()
    return vocoder(vocoder_path) if vocoder_path else griffin_lim


class SoundFiles(NamedTuple):
    """Sounds as wav; see `Files`."""

    voice: Voice
    rate: float

    def frames(self, sample: AnySpectrogram) -> UInt8[np.ndarray, "1 _ _ 3"]:
        return spectrogram_picture(sample)[None]

    def save(self, path: Path, sample: AnySpectrogram) -> None:
        save_wav(path.with_suffix(".wav"), self.voice(sample, round(self.rate)), round(self.rate))

    def plural(self, *, is_moving: bool) -> str:
        return "sounds"

    def about(self, asked: Any, shape: Any) -> dict[str, Any]:
        return {"seconds": asked.seconds}


def spectrogram_picture(spectrogram: Spectrogram) -> UInt8[np.ndarray, "height width 3"]:
    """Time goes right and frequency up; dark is quiet."""
    level = np.clip((spectrogram - QUIET) / (LOUD - QUIET), 0, 1)
    grey = Image.fromarray(np.rint(level.T[::-1] * 255).astype(np.uint8))
    black, middle, white = COLOURS
    coloured = ImageOps.colorize(grey, black=black, mid=middle, white=white)
    return np.asarray(coloured.resize((ZOOM * grey.width, ZOOM * grey.height), Image.Resampling.NEAREST))


def save_wav(path: str | Path, samples: Float[np.ndarray, " n"], rate: int) -> None:
    """16-bit samples of one channel; a sound that is too loud is turned down as a whole."""
    import soundfile  # comes with librosa, the extra `sound`

    peak = float(np.abs(samples).max(initial=0))
    with written_whole(path) as temporary:
        soundfile.write(temporary, samples * min(1.0, PEAK / max(peak, 1e-9)), rate, subtype="PCM_16", format="WAV")
