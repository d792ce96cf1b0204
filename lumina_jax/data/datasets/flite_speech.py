"""Spoken words: 48 English words, said by Debian's flite (CMU) at several speeds and pitches.

The words are far enough apart for a recogniser, and common enough for its dictionary.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lumina_jax.data.datasets.packages import fetch_debian, run
from lumina_jax.data.prepared import Card, PreparedSample
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
MEDIA = "sounds"
"""The kind of data.media."""
SETTINGS: dict[str, int] = {}


def card() -> Card:
    return Card(
        name="flite-speech",
        about=f"{len(WORDS)} English words, each spoken at {len(STRETCHES)} speeds and {len(PITCHES)} pitches.",
        origin="Debian flite 2.2",
        licence="CMU Flite (BSD-like)",
        attribution="Language Technologies Institute, Carnegie Mellon University; voice slt of CMU ARCTIC",
        settings={"voice": VOICE, "samples a second": RATE},
    )


def samples() -> Iterator[PreparedSample]:
    """Every word in every way, without the silence around it, int16 at 16 kHz, with its mean pitch."""
    librosa = load_librosa()
    with tempfile.TemporaryDirectory() as folder:
        flite = _flite(Path(folder))
        for stretch in STRETCHES:
            for pitch in PITCHES:
                for word in WORDS:
                    spoken = flite(word, stretch, pitch)
                    trimmed, _ = librosa.effects.trim(spoken.astype(np.float32), top_db=TRIM_DECIBELS)
                    sound = Sound(trimmed.astype(np.int16), RATE)
                    yield PreparedSample(f"{word} {stretch} {pitch}", word, sound, float(pitch))


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
