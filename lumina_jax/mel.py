"""Sound as a log mel spectrogram, and back: the front end of HiFi-GAN and BigVGAN, and of the released audio models.

In: samples of one channel. Out: natural logarithms of 80 mel bins for each hop of 256 samples, cut off at 1e-5; for
training shifted and scaled to about -1..1. Librosa, the extra `sound`, computes every number.
"""

import functools
import math
from types import ModuleType

import numpy as np
from jaxtyping import Float

BINS, FFT, HOP = 80, 1024, 256
WHOLE = 16
"""Frames, of which the length of a sound that is encoded is a multiple."""
HIGHEST = 8000.0
"""Hz of the upper end of the last bin (half the sampling rate, where that is less)."""
QUIET, LOUD = math.log(1e-5), 2.0
"""Log amplitudes that become -1 and 1."""
GRIFFIN_LIM_STEPS = 60


def load_librosa() -> ModuleType:
    """The module.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import librosa
    except ImportError:
        raise ValueError("sound needs librosa; install it with: pip install 'lumina_jax[sound]'") from None
    return librosa


def frames_of(seconds: float, rate: int) -> int:
    """Frames of a mel spectrogram of a sound of `seconds`; the last may be filled up with silence."""
    return max(1, math.ceil(round(seconds * rate) / HOP))


def whole_frames(frames: int, factor: int) -> int:
    """So many frames, filled up with silence to a length that an autoencoder of `factor` frames a value takes.

    Lengths are multiples of WHOLE frames (a quarter of a second), so that few programs are compiled.
    """
    unit = math.lcm(WHOLE, factor)
    return -(-frames // unit) * unit


def seconds_of(frames: int, rate: int) -> float:
    return frames * HOP / rate


def log_mel(samples: Float[np.ndarray, " n"], rate: int) -> Float[np.ndarray, "t 80"]:
    """The spectrogram of samples in -1..1, filled up with silence to whole hops: t = ceil(n / 256).

    Windows of 1024 samples (Hann) are centred on hops, and the sound is mirrored at its ends; amplitudes, not powers,
    go through Slaney's mel filters up to 8 kHz.
    """
    whole = np.pad(np.asarray(samples, np.float32), (0, -len(samples) % HOP))
    margin = (FFT - HOP) // 2
    mirrored = np.pad(whole, margin, mode="reflect" if len(whole) > margin else "symmetric")
    amplitudes = load_librosa().feature.melspectrogram(
        y=mirrored, sr=rate, n_fft=FFT, hop_length=HOP, center=False, power=1.0, n_mels=BINS, fmax=_highest(rate)
    )
    return np.log(np.maximum(amplitudes, math.exp(QUIET))).T.astype(np.float32)


def griffin_lim(spectrogram: Float[np.ndarray, "t 80"], rate: int) -> Float[np.ndarray, " n"]:
    """Samples whose log mel spectrogram is about this one, n = 256 t: phases are found by Griffin and Lim's iteration
    (1984), always the same ones. Amplitudes come from the filters' pseudo-inverse: non-negative least squares sounds no
    better to a recogniser, and takes minutes for a second of noise."""
    librosa = load_librosa()
    amplitudes = np.maximum(_inverse_filters(rate) @ np.exp(spectrogram.T), 0)
    around = np.pad(amplitudes, ((0, 0), (1, 1)), mode="edge")
    samples = librosa.griffinlim(around, n_iter=GRIFFIN_LIM_STEPS, hop_length=HOP, n_fft=FFT, random_state=0)
    # its frame i is centred on sample 256 i, ours on sample 256 i + 128; and one was put before the first
    return samples[HOP // 2 : HOP // 2 + HOP * len(spectrogram)]


def mel_to_unit(spectrogram: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Log amplitudes to about -1..1, the range in which a model without an autoencoder sees them."""
    return (spectrogram - QUIET) * (2 / (LOUD - QUIET)) - 1


def unit_to_mel(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The inverse of `mel_to_unit`; what is quieter than the cut-off becomes the cut-off."""
    return np.maximum((values + 1) * ((LOUD - QUIET) / 2) + QUIET, QUIET)


@functools.lru_cache
def _inverse_filters(rate: int) -> Float[np.ndarray, "f 80"]:
    return np.linalg.pinv(load_librosa().filters.mel(sr=rate, n_fft=FFT, n_mels=BINS, fmax=_highest(rate)))


def _highest(rate: int) -> float:
    return min(HIGHEST, rate / 2)
