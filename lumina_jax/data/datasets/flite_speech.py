"""Spoken words: English words, said by Debian's flite (CMU) at several speeds and pitches.

The words are common enough for a recogniser's dictionary, and no two of them sound alike. The first 48 are far apart;
those after them are from the names of emoji, and one in twelve of them is held out in every manner.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lumina_jax.data.datasets.packages import fetch_debian, run
from lumina_jax.data.held_out import digest_of_name
from lumina_jax.data.prepared import TRAIN, Card, PreparedSample
from lumina_jax.mel import load_librosa
from lumina_jax.modalities.decoding.media import Sound

PACKAGES = ("flite", "libflite1", "libasound2")
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "red", "green", "blue",
    "yellow", "orange", "purple", "left", "right", "forward", "backward", "yes", "no", "stop", "open",
    "morning", "evening", "coffee", "water", "apple", "banana", "tomato", "garden", "window", "kitchen",
    "mountain", "river", "summer", "winter", "elephant", "tiger", "music", "guitar", "monday", "friday",
    "doctor", "hello", "thank", "please",
)  # fmt: skip
VOICE, RATE = "slt", 16_000
STRETCHES, PITCHES = (0.9, 1.0, 1.15), (130, 170, 210)
TRIM_DECIBELS = 40
HELD_OUT = 12
"""One in so many words after the first 48 is held out."""
MEDIA = "sounds"
"""The kind of data.media."""
SETTINGS = {"words": len(WORDS)}


def card(words: int) -> Card:
    chosen = vocabulary(words)
    held_out = sum(map(is_held_out, chosen))
    of_words = "1 word" if held_out == 1 else f"{held_out} words"
    split = f" The split held_out has {of_words} that train has in no manner." if held_out else ""
    return Card(
        name="flite-speech",
        about=f"{words} English words, each spoken at {len(STRETCHES)} speeds and {len(PITCHES)} pitches.{split}",
        origin="Debian flite 2.2",
        licence="CMU Flite (BSD-like)",
        attribution="Language Technologies Institute, Carnegie Mellon University; voice slt of CMU ARCTIC",
        settings={"voice": VOICE, "samples a second": RATE, "words": words},
    )


def vocabulary(words: int) -> list[str]:
    """The first so many words.

    Raises:
      ValueError: there are fewer, or none are wanted.
    """
    known = [*WORDS, *(Path(__file__).parent / "spoken_words.txt").read_text().split()]
    if not 1 <= words <= len(known):
        raise ValueError(f"{words=} must be between 1 and {len(known)}, the words that flite-speech has")
    return known[:words]


def is_held_out(word: str) -> bool:
    """Whether no recording of the word is for training."""
    return word not in WORDS and digest_of_name(word) % HELD_OUT == 0


def samples(words: int) -> Iterator[PreparedSample]:
    """Every word in every way, without the silence around it, int16 at 16 kHz, with its mean pitch."""
    librosa, chosen = load_librosa(), vocabulary(words)
    with tempfile.TemporaryDirectory() as folder:
        flite = _flite(Path(folder))
        for stretch in STRETCHES:
            for pitch in PITCHES:
                for word in chosen:
                    split = "held_out" if is_held_out(word) else TRAIN
                    spoken = flite(word, stretch, pitch)
                    trimmed, _ = librosa.effects.trim(spoken.astype(np.float32), top_db=TRIM_DECIBELS)
                    sound = Sound(trimmed.astype(np.int16), RATE)
                    yield PreparedSample(f"{word} {stretch} {pitch}", word, sound, float(pitch), split=split)


Speak = Callable[[str, float, int], np.ndarray]


def _flite(folder: Path) -> Speak:
    """Says a word with a stretch of its durations and a mean pitch in Hz: samples int16. The flite of the system, or
    one that is fetched into `folder`."""
    import soundfile

    program, environment = shutil.which("flite"), dict(os.environ)
    if program is None:
        root = fetch_debian(PACKAGES, folder)
        program = str(root / "usr" / "bin" / "flite")
        environment["LD_LIBRARY_PATH"] = str(root / "usr" / "lib" / f"{platform.machine()}-linux-gnu")

    def speak(word: str, stretch: float, pitch: int) -> np.ndarray:
        file = folder / "spoken.wav"
        manner = ["--setf", f"duration_stretch={stretch}", "--setf", f"int_f0_target_mean={pitch}"]
        command = [program, "-voice", VOICE, *manner, "-t", word, "-o", str(file)]
        run(command, "flite (Debian: apt install flite)", environment=environment)
        recorded, rate = soundfile.read(file, dtype="int16")
        if rate != RATE:
            raise ValueError(f"the voice {VOICE} of flite must have {RATE} samples a second, but has {rate}")
        return recorded

    return speak
