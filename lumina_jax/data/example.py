"""What the stages of the data path hand to each other.

    source[index]  ->  Record or BadSample      what is known before the picture or clip is decoded
    preparation    ->  Example or BadSample     decoded, cropped, in the range -1..1
    stream         ->  Batch                    rows of tokens (`batches.py`)

A sample that cannot be used never raises: it becomes a BadSample that says why. Only a source that is no longer what
it was when it was opened raises, a ChangedSourceError.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

PROMPT_ATTEMPTS = 4
"""Records that are looked at for each prompt, where some have no caption or the same one."""


class ChangedSourceError(ValueError):
    """A source is no longer what it was when it was opened, so that no sample of it can be trusted."""


class Contents(NamedTuple):
    """What a source holds, in few letters: to be compared with other hosts, or with an earlier start."""

    samples: int
    ordered: str
    """Digest of all samples in their order: names, captions, labels, but not what is in pictures or sounds."""
    unordered: str
    """Digest that is the same in any order."""


class BadSample(NamedTuple):
    """A sample that is skipped: which one, and why."""

    name: str
    reason: str


class LatentDistribution(NamedTuple):
    """The normal distribution from which a sample's latents are drawn, in the scale that is trained on."""

    mean: Float[np.ndarray, "f h w c"]
    deviation: Float[np.ndarray, "f h w c"]


class Clip(NamedTuple):
    """A moving picture in a file: a video, an animated webp or gif; what counts of it, in seconds."""

    file: Path | bytes
    start: float = 0.0
    end: float | None = None


class Views(NamedTuple):
    """Pictures of one object, in the order of the camera's way around it."""

    files: tuple[Path, ...]


class Sound(NamedTuple):
    """A recording: a file, or samples int16 [n] of one channel; what counts of it, in seconds."""

    recording: Path | np.ndarray
    rate: int | None = None
    """Samples a second; None: the file says it."""
    start: float = 0.0
    end: float | None = None


Media = Path | bytes | np.ndarray | Clip | Views | Sound | LatentDistribution
"""A picture as a file, its encoded bytes or its pixels uint8 [h w 3]; a clip or views as files or pixels uint8
[f h w 3]; a sound; latents that were encoded before (`latents.py`)."""


class Record(NamedTuple):
    """A sample before decoding."""

    name: str
    media: Media
    caption: str | None
    label: int | None
    pitch: float | None = None
    """Hz of a voice."""


class Example(NamedTuple):
    """A sample ready to be packed: channels last, -1..1; `name` is the file or sample name for reports."""

    name: str
    latents: Float[np.ndarray, "f h w c"]
    caption: str | None
    label: int | None
    modality: int = 0
    """Its place in the modalities of the model."""


@runtime_checkable
class Source(Protocol):
    """Random access to records. `repr` must be the same in every process, and opening must not read pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | BadSample: ...


def record_of(name: str, media: Media, caption: Any, label: Any, pitch: Any = None) -> Record | BadSample:
    """A record whose caption is text (surrounding white space dropped), whose label is a whole number and whose pitch
    is a positive one, if given."""
    if not (caption is None or isinstance(caption, str)):
        return BadSample(name, f"the caption is {caption!r}, which is not text")
    if not (label is None or (isinstance(label, int | np.integer) and not isinstance(label, bool))):
        return BadSample(name, f"the label is {label!r}, which is not a whole number")
    if not (pitch is None or (isinstance(pitch, int | float) and not isinstance(pitch, bool) and pitch > 0)):
        return BadSample(name, f"the pitch is {pitch!r}, which is no positive number of Hz")
    text = None if caption is None else caption.strip()
    return Record(name, media, text, None if label is None else int(label), pitch)


def contents(source: Source) -> Contents:
    """What a source holds: its attribute `contents`, or what its name and length say."""
    known = getattr(source, "contents", None)
    if isinstance(known, Contents):
        return known
    return described(len(source), repr(source))


def described(samples: int, text: str) -> Contents:
    """Contents that a text says all of."""
    digest = _digest(text)
    return Contents(samples, digest, digest)


def combined(parts: Iterable[Contents], *about: object) -> Contents:
    """What several sources hold together, of which `about` says how they are used."""
    known = tuple(parts)
    ordered, unordered = (
        _digest(f"{[getattr(part, name) for part in known]} {about}") for name in ("ordered", "unordered")
    )
    return Contents(sum(part.samples for part in known), ordered, unordered)


def captions(source: Source) -> list[str]:
    """The different captions of a whole source, the empty one first; no picture is decoded, bad samples are skipped."""
    return list(dict.fromkeys(["", *_captions(source)]))


def some_prompts(source: Source, *, classes: int | None = None, count: int = 8) -> tuple[str, ...]:
    """Different captions from all over a source: always the same ones, and only a few records are read.

    Args:
      classes: None: captions; else labels, below this number.
    """
    found: list[str] = []
    for part in range(count):
        begin, end = (len(source) * edge // count for edge in (part, part + 1))
        begin = min(begin + part, max(begin, end - PROMPT_ATTEMPTS))  # not at the same place of every group of samples
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
