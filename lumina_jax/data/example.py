"""What the stages of the data path hand to each other.

    source[index]  ->  Record or BadSample      what is known before the picture or clip is decoded
    preparation    ->  Example or BadSample     decoded, cropped, in the range -1..1
    stream         ->  Batch                    rows of tokens (`batches.py`)

A sample that cannot be used never raises: it becomes a BadSample that says why. Only a source that is no longer what
it was when it was opened raises, a ChangedSourceError.
"""

import hashlib
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lumina_jax.encoders.phonemes import HIGHEST_PITCH, LOWEST_PITCH
from lumina_jax.modalities.decoding.media import Media

GREATEST_LABEL = 2**31 - 1
REASON_LETTERS = 500
PROMPT_ATTEMPTS = 4
"""Records that are tried for each prompt: some have no caption, or one that was found before."""


class ChangedSourceError(ValueError):
    """A source is no longer what it was when it was opened, so that no sample of it can be trusted."""


class Contents(NamedTuple):
    """A summary of what a source holds, to compare with other hosts and with earlier starts."""

    samples: int
    ordered: str
    """Digest of all samples in their order: names, captions, labels, but not what is in pictures or sounds."""
    unordered: str
    """Digest that is the same in any order."""


class BadSample(NamedTuple):
    """A sample that is skipped: its name, and the reason."""

    name: str
    reason: str


def reason_of(error: Exception) -> str:
    """Why a sample cannot be used, whatever reading it raised, in one line."""
    text = " ".join(printable(str(error)).split())
    if len(text) > REASON_LETTERS:
        text = f"{text[:REASON_LETTERS]}..."
    if isinstance(error, MemoryError):
        return f"memory does not suffice to read it ({text or 'MemoryError'}); make it smaller, or read fewer at once"
    foreseen = isinstance(error, ValueError | ImportError) and not isinstance(error, UnicodeError)
    return text if foreseen and text else f"it cannot be read ({type(error).__name__}: {text})"


class Record(NamedTuple):
    """A sample before decoding."""

    name: str
    media: Media
    caption: str | None
    label: int | None
    pitch: float | None = None
    """Hz of a voice."""
    other_captions: tuple[tuple[str, ...], ...] = ()
    """Captions of other kinds: training takes one of a kind, or `caption`, each kind as often as `caption`."""


class Example(NamedTuple):
    """A sample ready to be packed: channels last, -1..1; `name` is the file or sample name for reports."""

    name: str
    latents: Float[np.ndarray, "f h w c"]
    caption: str | None
    label: int | None
    modality: int = 0
    """Index among the modalities of the model."""


@runtime_checkable
class Source(Protocol):
    """Random access to records. `repr` must be the same in every process, and opening must not read pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | BadSample: ...


def record_of(name: str, media: Media, caption: Any, label: Any, pitch: Any = None) -> Record | BadSample:
    """A record, or a BadSample if the caption is not text, the label not an integer, or the pitch cannot be heard.

    White space around the caption is dropped.
    """
    if reason := _reason_against(caption, label, pitch):
        return BadSample(name, reason)
    text = None if caption is None else caption.strip()
    return Record(name, media, text, None if label is None else int(label), None if pitch is None else float(pitch))


def _reason_against(caption: Any, label: Any, pitch: Any) -> str | None:
    """Why these cannot be used; None if they can."""
    if isinstance(caption, list):
        return f"the caption is a list, {reprlib.repr(caption)}; write one line for each caption"
    if not (caption is None or isinstance(caption, str)):
        return f"the caption is {reprlib.repr(caption)}, which is not text"
    if caption is not None and not is_unicode(caption):
        return f"the caption holds half of a letter (a lone surrogate), {reprlib.repr(caption)}; write the whole letter"
    if not (label is None or (isinstance(label, int | np.integer) and not isinstance(label, bool))):
        return f"the label is {reprlib.repr(label)}, which is not a whole number"
    if label is not None and abs(int(label)) > GREATEST_LABEL:
        return f"the label is {reprlib.repr(int(label))}, more than there can be classes"
    is_number = isinstance(pitch, int | float | np.floating) and not isinstance(pitch, bool)
    if not (pitch is None or (is_number and LOWEST_PITCH <= pitch <= HIGHEST_PITCH)):
        return f"the pitch is {reprlib.repr(pitch)}, but must be from {LOWEST_PITCH:.0f} to {HIGHEST_PITCH:.0f} Hz"
    return None


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unusable(name: str, error: Exception) -> BadSample:
    """The bad sample for an error of reading; that a source has changed is raised again.

    A broken line or file may make any library raise any error, and none of them may end a run.
    """
    if isinstance(error, ChangedSourceError):
        raise error
    return BadSample(printable(name), reason_of(error))


def printable(text: str) -> str:
    """Text that any terminal and file accepts, for names that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def contents(source: Source) -> Contents:
    """What a source holds: its attribute `contents`, or else its `repr` and length."""
    known = getattr(source, "contents", None)
    if isinstance(known, Contents):
        return known
    return described(len(source), repr(source))


def described(samples: int, text: str) -> Contents:
    """The contents of a source that a text describes completely."""
    digest = _digest(text)
    return Contents(samples, digest, digest)


def combined(parts: Iterable[Contents], *about: object) -> Contents:
    """What several sources hold together; `about` describes how they are used."""
    known = tuple(parts)
    ordered, unordered = (
        _digest(f"{[getattr(part, name) for part in known]} {about}") for name in ("ordered", "unordered")
    )
    return Contents(sum(part.samples for part in known), ordered, unordered)


def captions(source: Source) -> list[str]:
    """The different captions of a whole source, the empty one first. No picture is decoded; bad samples are skipped."""
    return list(dict.fromkeys(["", *_captions(source)]))


def some_prompts(source: Source, *, classes: int | None = None, count: int = 8) -> tuple[str, ...]:
    """Different captions, spread over a source: always the same ones, and only a few records are read.

    Args:
      classes: None: captions; else labels, below this number.
    """
    found: list[str] = []
    for part in range(count):
        begin, end = (len(source) * edge // count for edge in (part, part + 1))
        begin = min(begin + part, max(begin, end - PROMPT_ATTEMPTS))  # at another offset in every group of samples
        for index in range(begin, min(end, begin + PROMPT_ATTEMPTS)):
            prompt = _prompt_of(source[index], classes)
            if prompt and prompt not in found:
                found.append(prompt)
                break
    return tuple(found)


def _prompt_of(record: Record | BadSample, classes: int | None) -> str | None:
    if isinstance(record, BadSample):
        return None
    if classes is None:
        return record.caption
    return str(record.label) if record.label is not None and 0 <= record.label < classes else None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def _captions(source: Source) -> Iterator[str]:
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, Record) and record.caption is not None:
            yield record.caption
            for kind in record.other_captions:
                yield from kind
