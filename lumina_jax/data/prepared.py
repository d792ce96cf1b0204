"""Data sets made once by `lumina data prepare`, ready to be read at random.

On disk: a folder with samples.array_record (compressed pixels or sound, name and caption for each sample), card.json
(what the set is, where it is from, its licence), README.md (the same for people) and sheet.png. The folder gets its
name when it is complete.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization
from jaxtyping import UInt8

from lumina_jax.data.example import BadSample, Record, described, printable, record_of
from lumina_jax.modalities.decoding.media import Sound

SAMPLES, CARD, README, SHEET = "samples.array_record", "card.json", "README.md", "sheet.png"
_OLD_FORMAT = b"PK"
"""The first bytes of records of an earlier version, which were zip files."""


class PreparedSample(NamedTuple):
    """One sample as it is stored: frames of a clip, views of an object, one picture, or a sound."""

    name: str
    caption: str
    media: UInt8[np.ndarray, "f h w 3"] | Sound
    pitch: float | None = None
    """Hz of a voice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a user should know about a data set."""

    name: str
    about: str
    origin: str
    """The packages it was made from, with versions."""
    licence: str
    attribution: str
    settings: dict[str, int | float | str]
    samples: int = 0

    def text(self) -> str:
        """As Markdown."""
        settings = "\n".join(f"- {name}: {value}" for name, value in self.settings.items())
        return (
            f"# {self.name}\n\n{self.about}\n\n- samples: {self.samples}\n- made from: {self.origin}\n"
            f"- licence: {self.licence}\n- attribution: {self.attribution}\n{settings}\n"
        )


class PreparedSource:
    """The samples of a prepared folder.

    Raises:
      ValueError: the folder holds no prepared data set.
    """

    def __init__(self, folder: str | Path) -> None:
        from grain.sources import ArrayRecordDataSource

        self.folder = Path(folder)
        if not (self.folder / SAMPLES).is_file():
            raise ValueError(
                f"data.path={str(folder)!r} must be a folder made by `lumina data prepare NAME`, but it "
                f"has no {SAMPLES}"
            )
        try:
            self._records = ArrayRecordDataSource(str(self.folder / SAMPLES))
        except Exception as error:  # array_record has no class of errors for damaged files
            reason = str(error) or "it breaks off"
            raise ValueError(f"{self.folder / SAMPLES} is damaged ({reason}); prepare the set again") from error
        self.contents = described(len(self), self._about())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record | BadSample:
        try:
            sample = _decoded(self._records[index])
            return record_of(sample.name, sample.media, sample.caption, None, sample.pitch)
        except Exception as error:  # whatever array_record, zlib and msgpack raise on damaged bytes
            return BadSample(f"{printable(self.folder.name)}, sample {index}", f"the record is damaged ({error})")

    def __repr__(self) -> str:
        return f"PreparedSource({str(self.folder)!r})"

    def _about(self) -> str:
        """The card; if it is missing, the size of the file of samples."""
        try:
            return (self.folder / CARD).read_text(errors="replace")
        except FileNotFoundError:
            return f"{(self.folder / SAMPLES).stat().st_size}"


def write_prepared(folder: Path, samples: Iterable[PreparedSample], card: Card) -> Card:
    """Write a data set, whole or not at all; returns the card with the number of samples.

    Raises:
      ValueError: the folder is there already, or there is no sample.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if folder.exists():
        raise ValueError(f"{folder} is there already; delete it first, or choose another --out")
    with _complete(folder) as temporary:
        writer = ArrayRecordWriter(str(temporary / SAMPLES), "group_size:1")
        count = 0
        for sample in samples:
            writer.write(_encoded(sample))
            count += 1
        writer.close()
        if not count:
            raise ValueError(f"{card.name} gave no sample")
        card = dataclasses.replace(card, samples=count)
        (temporary / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
        (temporary / README).write_text(card.text())
    return card


@contextlib.contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encoded(sample: PreparedSample) -> bytes:
    media = sample.media
    stored: dict[str, Any]
    stored = {"samples": media.recording, "rate": media.rate} if isinstance(media, Sound) else {"frames": media}
    stored |= {"name": sample.name, "caption": sample.caption, "pitch": sample.pitch}
    return zlib.compress(serialization.msgpack_serialize(stored))


def _decoded(record: bytes) -> PreparedSample:
    if record.startswith(_OLD_FORMAT):
        raise ValueError("an earlier version wrote it; prepare the set again")
    stored = serialization.msgpack_restore(zlib.decompress(record))
    media = Sound(stored["samples"], stored["rate"]) if "samples" in stored else stored["frames"]
    return PreparedSample(stored["name"], stored["caption"], media, stored["pitch"])
