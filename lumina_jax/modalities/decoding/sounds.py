"""Recordings to samples: one channel, at the rate that is trained on.

In: a sound file of any rate and number of channels, or samples. Out: float samples in -1..1. Librosa (the extra
`sound`) resamples. What libsndfile knows (wav, flac, ogg, mp3) it reads, only the part that counts; all else (m4a, opus
in webm, the sound of a video) PyAV does (the extra `media`), from its start on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lumina_jax.config import SoundConfig
from lumina_jax.mel import load_librosa
from lumina_jax.modalities.decoding.containers import load_av, open_container
from lumina_jax.modalities.decoding.kinds import check_file, file_kind, mistaken
from lumina_jax.modalities.decoding.media import Sound

SILENCE = 1e-4
"""Amplitude (-80 dB) below which a whole recording counts as silent."""
SHORTEST = 0.02
"""Seconds: about one window of the spectrogram."""
RUN_UP = 1.0
"""Seconds before the part that counts at which reading begins: the first sound of an mp3 after seeking is wrong."""
HEADERLESS = "raw samples do not say their rate; give them a header: `ffmpeg -f s16le -ar RATE -ac 1 -i IN OUT.wav`"
UNRECOGNISED = 1
"""Code of libsndfile's error for a format that it does not know."""
ESTIMATED = ("aac", "mp3", "amr", "loas")
"""Formats without a length, at which PyAV guesses."""
SLACK = 0.1
"""Seconds by which a file that PyAV reads may end before it says it does."""


def read_sound(sound: Sound, wanted: SoundConfig) -> Float[np.ndarray, " n"]:
    """The samples of a recording at data.sample_rate, channels averaged.

    Raises:
      ValueError: no such file, not a sound, nothing between start and end, silent, or longer than data.seconds.
    """
    samples, rate = _samples(sound, wanted.seconds)
    if not np.isfinite(samples).all():
        raise ValueError("the recording holds samples that are not finite numbers")
    if len(samples) < SHORTEST * rate:
        raise ValueError(f"the recording has {len(samples) / rate:.3f} s, but must have {SHORTEST} s at least")
    if np.abs(samples).max() < SILENCE:
        raise ValueError("the recording is silent; leave it out")
    return load_librosa().resample(samples, orig_sr=rate, target_sr=wanted.sample_rate)


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

    check_file(path)
    try:
        with path.open("rb") as opened, soundfile.SoundFile(opened.fileno(), closefd=False) as file:  # not by its name
            span = _span(sound, file.frames, file.samplerate, most)
            begin = max(0, span.start - round(RUN_UP * file.samplerate))
            file.seek(begin)
            samples = file.read(span.stop - begin, dtype="float32", always_2d=True)
            if len(samples) < span.stop - begin:
                raise _broken_off(begin + len(samples), file.frames, file.samplerate)
            return samples[span.start - begin :].mean(axis=1), file.samplerate
    except soundfile.LibsndfileError as error:
        if error.code != UNRECOGNISED:
            raise ValueError(f"the sound cannot be read ({error.error_string})") from error
        return _samples_by_av(sound, path, most, error.error_string)


def _samples_by_av(sound: Sound, path: Path, most: float, refusal: str) -> tuple[Float[np.ndarray, " n"], int]:
    """The same for a file that libsndfile refuses."""
    try:
        av = load_av()
    except ImportError:
        raise ValueError(f"the sound cannot be read ({mistaken(path, 'audio') or refusal})") from None
    try:
        with open_container(path) as container:
            stream = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
            if stream is None:
                raise _unreadable(path, "it holds no sound that PyAV knows")
            rate, chunks, count = stream.rate, [], 0
            last = rate * min(sound.start + most + 1, np.inf if sound.end is None else sound.end)
            for chunk in _chunks(container, stream):
                chunks.append(chunk)
                count += len(chunk)
                if count > last:
                    break
            claimed = stream.duration * (stream.time_base or 0) if stream.duration else (container.duration or 0) / 1e6
            is_sure = count > last or container.format.name not in ESTIMATED
    except av.error.FFmpegError as error:
        raise _unreadable(path, error.strerror or refusal) from None
    whole = max(count, round(float(claimed) * rate) if is_sure else 0)
    span = _span(sound, whole, rate, most)
    if count + rate * SLACK < span.stop:
        raise _broken_off(count, whole, rate)
    return np.concatenate(chunks)[span], rate


def _chunks(container: Any, stream: Any) -> Iterator[Float[np.ndarray, " n"]]:
    """The samples of a stream, channels averaged."""
    from av.audio.resampler import AudioResampler

    resampler = AudioResampler(format="fltp")
    for frame in container.decode(stream):
        for part in resampler.resample(frame):
            yield part.to_ndarray().mean(axis=0, dtype=np.float32)


def _unreadable(path: Path, refusal: str) -> ValueError:
    """What is said of a file that no reader knows."""
    kind = file_kind(path)
    what = refusal if kind is not None and kind.medium == "audio" else mistaken(path, "audio")
    if what is None:
        what = HEADERLESS if path.suffix.lower() in (".raw", ".pcm") else refusal
    return ValueError(f"the sound cannot be read ({what})")


def _broken_off(samples: int, whole: int, rate: int) -> ValueError:
    return ValueError(
        f"the recording breaks off after {samples / rate:.2f} s, but says that it has {whole / rate:.2f} s"
    )


def _span(sound: Sound, samples: int, rate: int, most: float) -> slice:
    """The indices of the samples that count, of a recording of `samples`."""
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
