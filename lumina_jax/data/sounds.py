"""Recordings to samples: one channel, at the rate that is trained on.

In: a sound file of any rate and number of channels, or samples. Out: float samples in -1..1. Only the part that counts
is decoded. Librosa (the extra `sound`) reads and resamples.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from lumina_jax.config import DataConfig
from lumina_jax.data.example import Sound
from lumina_jax.mel import load_librosa

SILENCE = 1e-4
"""Amplitude (-80 dB) below which a whole recording counts as silent."""
SHORTEST = 0.02
"""Seconds: about one window of the spectrogram."""


def read_sound(sound: Sound, data: DataConfig) -> Float[np.ndarray, " n"]:
    """The samples of a recording at data.sample_rate, channels averaged.

    Raises:
      ValueError: no such file, not a sound, nothing between start and end, silent, or longer than data.seconds.
    """
    assert data.seconds is not None
    samples, rate = _samples(sound, data.seconds)
    if not np.isfinite(samples).all():
        raise ValueError("the recording holds samples that are not finite numbers")
    if len(samples) < SHORTEST * rate:
        raise ValueError(f"the recording has {len(samples) / rate:.3f} s, but must have {SHORTEST} s at least")
    if np.abs(samples).max() < SILENCE:
        raise ValueError("the recording is silent; leave it out")
    return load_librosa().resample(samples, orig_sr=rate, target_sr=data.sample_rate)


def _samples(sound: Sound, most: float) -> tuple[Float[np.ndarray, " n"], int]:
    """The part of a recording that counts, and its rate; refused by its length before it is decoded."""
    if isinstance(sound.recording, np.ndarray):
        assert sound.rate is not None
        span = _span(sound, len(sound.recording), sound.rate, most)
        return sound.recording[span].astype(np.float32) / 32768, sound.rate
    return _samples_of_file(sound, sound.recording, most)


def _samples_of_file(sound: Sound, path: Path, most: float) -> tuple[Float[np.ndarray, " n"], int]:
    load_librosa()
    import soundfile  # comes with librosa

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with soundfile.SoundFile(path) as file:
            span = _span(sound, file.frames, file.samplerate, most)
            file.seek(span.start)
            samples = file.read(span.stop - span.start, dtype="float32", always_2d=True)
            if len(samples) < span.stop - span.start:
                raise ValueError(
                    f"the recording breaks off after {(span.start + len(samples)) / file.samplerate:.2f} s, but says "
                    f"that it has {file.frames / file.samplerate:.2f} s"
                )
            return samples.mean(axis=1), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"the sound cannot be read ({error})") from error


def _span(sound: Sound, samples: int, rate: int, most: float) -> slice:
    """The samples that count, of so many."""
    whole = samples / rate
    end = whole if sound.end is None else min(sound.end, whole)
    if not 0 <= sound.start < end:
        raise ValueError(f"a sound must start before it ends, but start={sound.start} and it ends at {end:.2f} s")
    if end - sound.start > most + 0.5 / rate:
        raise ValueError(
            f"a recording of {end - sound.start:.2f} s is longer than data.seconds={most}; give the part that its "
            "caption speaks of as start and end, or raise data.seconds"
        )
    return slice(round(sound.start * rate), round(end * rate))
