"""Text to phonemes, without learned weights, for models with trained text layers (`ModelConfig.text_layers`).

In: English captions, optionally with a pitch: "[180 Hz] seven". Out: `TextFeatures` with one token for each phoneme,
word boundary and pause, between a first and a last token. The columns are a one-hot symbol, stress, and the pitch.
gruut (the extra `sound`) turns text, numbers and unknown words into phonemes.
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
"""The phonemes of gruut's American English."""
SYMBOLS = (FIRST, LAST, SPACE, PAUSE, STOP, OTHER, *PHONEMES)
STRESSES = ("ˈ", "ˌ")
WIDTH = len(SYMBOLS) + len(STRESSES) + 2
"""The number of columns: symbols, primary and secondary stress, whether a pitch is given, and the pitch."""
PITCH = re.compile(r"^\[(\d{1,5}(?:\.\d{1,9})?) Hz\]\s*", re.ASCII)
NEARLY_PITCH = re.compile(
    r"[\[({<][^\])}>]{0,20}?\d[\d.,]*\s*k?h(?:ert)?z\b|^\s*\[\s*[-+]?\d[\d.,]*\s*\]", re.IGNORECASE
)
"""Text that looks like a pitch but does not have the form of one."""
LOWEST_PITCH, HIGHEST_PITCH = 20.0, 2000.0
MIDDLE_PITCH = 160.0
"""The column of the pitch is in octaves above this frequency in Hz."""


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
            for position, symbol in enumerate(symbols):
                features[row, position] = _columns(symbol, pitch)
        return TextFeatures(features, segment_ids)

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption is truncated."""
        return len(_symbols(split_pitch(caption)[1])) > self.max_tokens


def split_pitch(caption: str) -> tuple[float | None, str]:
    """Split a caption into its pitch in Hz and its text; an inaudible pitch counts as text.

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
    """Raise ValueError if a caption contains a pitch in the wrong form, which would be spoken as text."""
    if is_nearly_pitch(caption):
        raise ValueError(
            f"{caption[:60]!r} would be spoken with the pitch read out as text; write a pitch as '[180 Hz] ' before "
            f"the text, from {LOWEST_PITCH:g} to {HIGHEST_PITCH:g} Hz"
        )


def is_nearly_pitch(caption: str) -> bool:
    """Whether a caption seems to contain a pitch that `split_pitch` does not recognise.

    >>> [is_nearly_pitch(caption) for caption in ("[180Hz] seven", "[180 Hz] seven", "seven")]
    [True, False, False]
    """
    return split_pitch(caption)[0] is None and NEARLY_PITCH.search(caption) is not None


@functools.lru_cache(maxsize=1 << 16)
def phonemes(text: str) -> tuple[str, ...]:
    """Return the phonemes of English text, preceded by their stress, with word boundaries and pauses.

    A number that gruut cannot read, such as one of thirty digits, is read digit by digit. A word that it cannot read
    becomes the symbol OTHER.

    Raises:
      ValueError: gruut is not installed.
    """
    _check_gruut()
    words = re.findall(r"\d|[^\d\s]+", text)
    for readable in (text, " ".join(words)):
        with contextlib.suppress(Exception):  # gruut raises many kinds of exception
            return tuple(_spoken(readable))
    return tuple(itertools.chain.from_iterable(map(_spoken_or_other, words)))[:-1]


def _spoken_or_other(word: str) -> list[str]:
    """Return the phonemes of a word and the word boundary after it."""
    try:
        return [*_spoken(word), SPACE]
    except Exception:
        _spoken("a")  # raises if gruut itself is broken
        return [OTHER, SPACE]


def _spoken(text: str) -> list[str]:
    """Return gruut's phonemes of a text."""
    import gruut

    found: list[str] = []
    for sentence in gruut.sentences(text, lang="en-us"):
        for spoken in filter(None, (word.phonemes for word in sentence)):  # brackets and quotes have none
            if found and found[-1] not in (PAUSE, STOP) and spoken[0] not in (PAUSE, STOP):
                found.append(SPACE)
            found.extend(spoken)
    return found


def spoken_seconds(caption: str, *, per_phoneme: float, pause: float, max_tokens: int | None = None) -> float:
    """Estimate how long a caption takes to say; pauses count like phonemes, word boundaries do not count.

    Args:
      max_tokens: only the first symbols are spoken; None: all of them.
    """
    spoken = _symbols(split_pitch(caption)[1])[:max_tokens]
    return pause + per_phoneme * sum(symbol not in (FIRST, LAST, SPACE) for symbol in spoken)


def _symbols(text: str) -> tuple[str, ...]:
    return (FIRST, *phonemes(text), LAST)


def _columns(symbol: str, pitch: float | None) -> np.ndarray:
    columns = np.zeros(WIDTH, np.float32)
    plain = symbol.lstrip("".join(STRESSES))
    columns[SYMBOLS.index(plain if plain in SYMBOLS else OTHER)] = 1
    for index, stress in enumerate(STRESSES):
        columns[len(SYMBOLS) + index] = symbol.startswith(stress)
    if pitch is not None:
        columns[-2:] = 1, math.log2(pitch / MIDDLE_PITCH)
    return columns


def _check_gruut() -> None:
    if importlib.util.find_spec("gruut") is None:
        raise ValueError("phonemes need gruut; install it with: pip install 'lumina_jax[sound]'")
