"""Text to the sounds of speech: a front end whose features a trained encoder reads (`ModelConfig.text_layers`).

In: captions in English, perhaps with a pitch: "[180 Hz] seven". Out: `TextFeatures` with one token for each phoneme,
word boundary and pause, between a first and a last one, and no learned number: columns say which symbol it is, how it
is stressed, and the pitch asked for. gruut (the extra `sound`) turns text, numbers and unknown words into phonemes.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from lumina_jax.tokens import TextFeatures

FIRST, LAST, SPACE, PAUSE, STOP, OTHER = "^", "$", " ", "|", "‖", "?"
PHONEMES = (
    "aɪ", "aʊ", "b", "d", "d͡ʒ", "eɪ", "f", "h", "i", "j", "k", "l", "m", "n", "oʊ", "p", "s", "t", "t͡ʃ", "u", "v", "w",
    "z", "æ", "ð", "ŋ", "ɑ", "ɔ", "ɔɪ", "ə", "ɚ", "ɛ", "ɡ", "ɪ", "ɹ", "ʃ", "ʊ", "ʌ", "ʒ", "θ",
)  # fmt: skip
"""Those of gruut's American English."""
SYMBOLS = (FIRST, LAST, SPACE, PAUSE, STOP, OTHER, *PHONEMES)
STRESSES = ("ˈ", "ˌ")
WIDTH = len(SYMBOLS) + len(STRESSES) + 2
"""Columns: symbols, primary and secondary stress, whether a pitch is asked for, and which."""
PITCH = re.compile(r"^\[(\d{1,5}(?:\.\d{1,9})?) Hz\]\s*", re.ASCII)
NEARLY_PITCH = re.compile(
    r"[\[({<][^\])}>]{0,20}?\d[\d.,]*\s*k?h(?:ert)?z\b|^\s*\[\s*[-+]?\d[\d.,]*\s*\]", re.IGNORECASE
)
"""What looks like a pitch asked for, but is not written as one."""
LOWEST_PITCH, HIGHEST_PITCH = 20.0, 2000.0
MIDDLE_PITCH = 160.0
"""Hz that the pitch's column counts octaves from."""


class PhonemeEncoder:
    """A `TextEncoder` without weights."""

    def __init__(self, max_tokens: int):
        if max_tokens < 2:
            raise ValueError(f"text.max_tokens={max_tokens} must be at least 2, for the first and the last symbol")
        _check_gruut()
        self.width = WIDTH
        self.max_tokens = max_tokens
        version = importlib.metadata.version("gruut")
        self.fingerprint = f"phonemes-{WIDTH}-{max_tokens}-gruut-{version}"

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        features = np.zeros((len(captions), self.max_tokens, WIDTH), np.float32)
        segment_ids = np.zeros((len(captions), self.max_tokens), np.int32)
        for row, caption in enumerate(captions):
            pitch, text = split_pitch(caption)
            symbols = _symbols(text)[: self.max_tokens]
            segment_ids[row, : len(symbols)] = 1
            for place, symbol in enumerate(symbols):
                features[row, place] = _columns(symbol, pitch)
        return TextFeatures(features, segment_ids)

    def is_cut(self, caption: str) -> bool:
        """Whether the end of a caption is not spoken."""
        return len(_symbols(split_pitch(caption)[1])) > self.max_tokens


def split_pitch(caption: str) -> tuple[float | None, str]:
    """The pitch in Hz that a caption asks for, and its text; one that nobody hears belongs to the text.

    >>> split_pitch("[180 Hz] seven")
    (180.0, 'seven')
    >>> split_pitch("[0 Hz] seven")
    (None, '[0 Hz] seven')
    """
    found = PITCH.match(caption)
    if found is None or not LOWEST_PITCH <= float(found[1]) <= HIGHEST_PITCH:
        return None, caption
    return float(found[1]), caption[found.end() :]


def check_pitch(caption: str) -> None:
    """Raises ValueError for a caption that seems to ask for a pitch, but in another way, so that it would be spoken."""
    if is_nearly_pitch(caption):
        raise ValueError(
            f"{caption[:60]!r} would be spoken as it stands; a pitch is written '[180 Hz] ' before the text, from "
            f"{LOWEST_PITCH:g} to {HIGHEST_PITCH:g} Hz"
        )


def is_nearly_pitch(caption: str) -> bool:
    """Whether a caption seems to ask for a pitch, but is not written in the way that `split_pitch` reads.

    >>> [is_nearly_pitch(caption) for caption in ("[180Hz] seven", "[180 Hz] seven", "seven")]
    [True, False, False]
    """
    return split_pitch(caption)[0] is None and NEARLY_PITCH.search(caption) is not None


@functools.lru_cache(maxsize=1 << 16)
def phonemes(text: str) -> tuple[str, ...]:
    """Phonemes of English text with marks of stress before them, word boundaries and pauses.

    A number that gruut cannot read, as one of thirty digits, is read digit by digit, and a word that it cannot read is
    the symbol OTHER.

    Raises:
      ValueError: gruut is not installed.
    """
    _check_gruut()
    words = re.findall(r"\d|[^\d\s]+", text)
    for readable in (text, " ".join(words)):
        with contextlib.suppress(Exception):  # gruut raises all sorts
            return tuple(_spoken(readable))
    return tuple(itertools.chain.from_iterable(map(_spoken_or_other, words)))[:-1]


def _spoken_or_other(word: str) -> list[str]:
    """A word and the boundary behind it."""
    try:
        return [*_spoken(word), SPACE]
    except Exception:
        _spoken("a")  # raises if gruut itself is broken
        return [OTHER, SPACE]


def _spoken(text: str) -> list[str]:
    """What gruut makes of a text."""
    import gruut

    found: list[str] = []
    for sentence in gruut.sentences(text, lang="en-us"):
        for spoken in filter(None, (word.phonemes for word in sentence)):  # brackets and quotes have none
            if found and found[-1] not in (PAUSE, STOP) and spoken[0] not in (PAUSE, STOP):
                found.append(SPACE)
            found.extend(spoken)
    return found


def spoken_seconds(caption: str, *, per_phoneme: float, pause: float, max_tokens: int | None = None) -> float:
    """About how long a caption takes to say, or its first `max_tokens` symbols; marks count like phonemes, word
    boundaries not."""
    spoken = _symbols(split_pitch(caption)[1])[:max_tokens]
    return pause + per_phoneme * sum(symbol not in (FIRST, LAST, SPACE) for symbol in spoken)


def _symbols(text: str) -> tuple[str, ...]:
    return (FIRST, *phonemes(text), LAST)


def _columns(symbol: str, pitch: float | None) -> np.ndarray:
    columns = np.zeros(WIDTH, np.float32)
    plain = symbol.lstrip("".join(STRESSES))
    columns[SYMBOLS.index(plain if plain in SYMBOLS else OTHER)] = 1
    for place, stress in enumerate(STRESSES):
        columns[len(SYMBOLS) + place] = symbol.startswith(stress)
    if pitch is not None:
        columns[-2:] = 1, math.log2(pitch / MIDDLE_PITCH)
    return columns


def _check_gruut() -> None:
    if importlib.util.find_spec("gruut") is None:
        raise ValueError("phonemes need gruut; install it with: pip install 'lumina_jax[sound]'")
