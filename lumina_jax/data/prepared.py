"""Data sets made once by `lumina data prepare`, ready to be read at random.

On disk: a folder with samples.array_record (compressed pixels or sound, name and caption for each sample), card.json
(what the set is, where it is from, its licence), README.md (the same for people) and sheet.png. If some samples are
held out, splits.json has their indices; if there are captions of other kinds, captions/KIND.json has them. The folder
gets its name when it is complete.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization
from jaxtyping import UInt8

from lumina_jax.data.example import BadSample, Record, described, printable, record_of
from lumina_jax.modalities.decoding.media import Sound

SAMPLES, CARD, README, SHEET = "samples.array_record", "card.json", "README.md", "sheet.png"
SPLITS, CAPTIONS = "splits.json", "captions"
TRAIN, EVERY = "train", "all"
"""The split of samples that are not held out, and the name for all splits together."""
_OLD_FORMAT = b"PK"
"""The first bytes of records of an earlier version, which were zip files."""


class PreparedSample(NamedTuple):
    """One sample as it is stored: frames of a clip, views of an object, one picture, or a sound."""

    name: str
    caption: str
    media: UInt8[np.ndarray, "f h w 3"] | Sound
    pitch: float | None = None
    """Hz of a voice."""
    subject: str | None = None
    """The part of the caption that captions of other kinds stand for."""
    split: str = TRAIN
    """The part of the data that the sample belongs to."""
    group: str = ""
    """What the card counts the sample under, such as a style; nothing: the card counts no groups."""


class PreparedFile(NamedTuple):
    """A text file beside the samples, such as the notice of a licence."""

    path: str
    """Relative to the folder."""
    text: str


def captions_file(kind: str, captions: Mapping[str, Sequence[str]]) -> PreparedFile:
    """The file of captions of a kind, by the subject that each stands for."""
    return PreparedFile(f"{CAPTIONS}/{kind}.json", json.dumps(captions, ensure_ascii=False, indent=0) + "\n")


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
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Samples of each group in each split."""

    def text(self) -> str:
        """As Markdown."""
        settings = "\n".join(f"- {name}: {value}" for name, value in self.settings.items())
        return (
            f"# {self.name}\n\n{self.about}\n\n- samples: {self.samples}\n- made from: {self.origin}\n"
            f"- licence: {self.licence}\n- attribution: {self.attribution}\n{settings}\n{self._table()}"
        )

    def _table(self) -> str:
        """The counts, if there are any."""
        splits = list(dict.fromkeys(split for counts in self.counts.values() for split in counts))
        rows = [["", *splits], ["---"] * (len(splits) + 1)]
        rows += [[name, *(str(counts.get(split, 0)) for split in splits)] for name, counts in self.counts.items()]
        return "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n" if self.counts else ""


class PreparedSource:
    """The samples of a prepared folder.

    Args:
      split: train, another split of the folder, or all.
      captions: kinds of captions that records carry beside the first.

    Raises:
      ValueError: the folder holds no prepared data set, no such split, or no captions of such a kind.
    """

    def __init__(self, folder: str | Path, split: str = TRAIN, captions: Sequence[str] = ()) -> None:
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
        self._indices = _indices(self.folder, split, len(self._records))
        self._captions = [_captions_of(self.folder, kind) for kind in captions]
        self._repr = f"PreparedSource({str(self.folder)!r}"
        self._repr += f", {split!r}, {tuple(captions)})" if captions or split != TRAIN else ")"
        about = self._about()
        if captions or len(self) != len(self._records):
            about += f" {split} {[[kind, self._captions[index]] for index, kind in enumerate(captions)]}"
        self.contents = described(len(self), about)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record | BadSample:
        number = self._indices[index]
        try:
            sample = _decoded(self._records[number])
            record = record_of(sample.name, sample.media, sample.caption, None, sample.pitch)
        except Exception as error:  # whatever array_record, zlib and msgpack raise on damaged bytes
            return BadSample(f"{printable(self.folder.name)}, sample {number}", f"the record is damaged ({error})")
        if self._captions and isinstance(record, Record):
            return record._replace(other_captions=self._other_captions(sample))
        return record

    def __repr__(self) -> str:
        return self._repr

    def _other_captions(self, sample: PreparedSample) -> tuple[tuple[str, ...], ...]:
        """The caption with other words for its subject, for each kind that has some."""
        subject = sample.subject
        if not subject:
            return ()
        found = (kind.get(subject, ()) for kind in self._captions)
        return tuple(
            tuple(sample.caption.replace(subject, words, 1).strip() for words in texts) for texts in found if texts
        )

    def _about(self) -> str:
        """The card; if it is missing, the size of the file of samples."""
        try:
            return (self.folder / CARD).read_text(errors="replace")
        except FileNotFoundError:
            return f"{(self.folder / SAMPLES).stat().st_size}"


def prepared_splits(folder: str | Path) -> tuple[str, ...]:
    """The splits of a folder besides train."""
    return tuple(_splits(Path(folder)))


def write_prepared(folder: Path, samples: Iterable[PreparedSample | PreparedFile], card: Card) -> Card:
    """Write a data set, whole or not at all; returns the card with the number of samples.

    Args:
      samples: and the files that lie beside them.

    Raises:
      ValueError: the folder is there already, or there is no sample.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if folder.exists():
        raise ValueError(f"{folder} is there already; delete it first, or choose another --out")
    with _complete(folder) as temporary:
        writer = ArrayRecordWriter(str(temporary / SAMPLES), "group_size:1")
        counts: dict[str, dict[str, int]] = {}
        splits: dict[str, list[int]] = {}
        count = 0
        for sample in samples:
            if isinstance(sample, PreparedFile):
                _write_file(temporary / sample.path, sample.text)
                continue
            writer.write(_encoded(sample))
            if sample.group:
                counted = counts.setdefault(sample.group, {})
                counted[sample.split] = counted.get(sample.split, 0) + 1
            if sample.split != TRAIN:
                splits.setdefault(sample.split, []).append(count)
            count += 1
        writer.close()
        if not count:
            raise ValueError(f"{card.name} gave no sample")
        if splits:
            _write_file(temporary / SPLITS, json.dumps(splits) + "\n")
        card = dataclasses.replace(card, samples=count, counts=counts)
        (temporary / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
        (temporary / README).write_text(card.text())
    return card


def _write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _splits(folder: Path) -> dict[str, list[int]]:
    """The indices of the samples of each split but train."""
    try:
        return json.loads((folder / SPLITS).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{folder / SPLITS} is damaged ({error}); prepare the set again") from error


def _indices(folder: Path, split: str, samples: int) -> Sequence[int]:
    """The samples of a split, in order."""
    splits = _splits(folder)
    if split == EVERY or (split == TRAIN and not splits):
        return range(samples)
    if split != TRAIN and split not in splits:
        raise ValueError(
            f"data.split={split!r} is no split of {str(folder)!r}, which has {', '.join([TRAIN, *splits, EVERY])}"
        )
    held_out = {index for indices in splits.values() for index in indices}
    return splits[split] if split != TRAIN else [index for index in range(samples) if index not in held_out]


def _captions_of(folder: Path, kind: str) -> dict[str, list[str]]:
    """The captions of a kind by their subject."""
    try:
        return json.loads((folder / CAPTIONS / f"{kind}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        kinds = ", ".join(sorted(file.stem for file in (folder / CAPTIONS).glob("*.json"))) or "none"
        raise ValueError(f"data.captions: {str(folder)!r} has no captions {kind!r}; it has {kinds}") from None
    except ValueError as error:
        raise ValueError(f"{folder / CAPTIONS / kind}.json is damaged ({error}); prepare the set again") from error


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
    if sample.subject is not None:
        stored["subject"] = sample.subject
    return zlib.compress(serialization.msgpack_serialize(stored))


def _decoded(record: bytes) -> PreparedSample:
    if record.startswith(_OLD_FORMAT):
        raise ValueError("an earlier version wrote it; prepare the set again")
    stored = serialization.msgpack_restore(zlib.decompress(record))
    media = Sound(stored["samples"], stored["rate"]) if "samples" in stored else stored["frames"]
    return PreparedSample(stored["name"], stored["caption"], media, stored["pitch"], stored.get("subject"))
