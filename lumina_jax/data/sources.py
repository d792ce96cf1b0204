"""The sources by name, as `data.source` chooses them."""

import bisect
import itertools
from collections.abc import Callable, Sequence

from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data.emoji_source import EMBEDDED, EmojiSource
from lumina_jax.data.example import BadSample, Record, Source, combined, contents
from lumina_jax.data.file_sources import FolderSource, LuminaSource
from lumina_jax.data.prepared import PreparedSource


def open_source(data: DataConfig, model: ModelConfig) -> Source:
    """The source that the configuration names; no picture is read.

    Raises:
      ValueError: it is not there, or not of the expected form.
    """
    if data.mixture:
        return MixedSource([open_source(part, model) for part in data.parts])
    source = OPENERS[data.source](data, model)
    if data.pitch:
        source = PitchedSource(source)
    return source if data.limit is None else FirstSamples(source, data.limit)


class MixedSource:
    """Several sources, one after another; a stream draws from each of `parts` by its weight."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(map(len, self.parts)))
        self.contents = combined(map(contents, self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record | BadSample:
        which = bisect.bisect_right(self._ends, index)
        return self.parts[which][index - (self._ends[which] - len(self.parts[which]))]

    def __repr__(self) -> str:
        return f"MixedSource({list(self.parts)!r})"


class FirstSamples:
    """The first `limit` samples of a source, or all if it has fewer."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self.contents = combined([contents(source)], limit)._replace(samples=len(self))

    def __len__(self) -> int:
        return min(self._limit, len(self._source))

    def __getitem__(self, index: int) -> Record | BadSample:
        if index >= self._limit:
            raise IndexError(index)
        return self._source[index]

    def __repr__(self) -> str:
        return f"FirstSamples({self._source!r}, {self._limit})"


class PitchedSource:
    """Sounds whose captions begin with the pitch, in tens of Hz: "[180 Hz] seven". Without a pitch they stay as they
    are."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.contents = combined([contents(source)], "with pitches")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | BadSample:
        record = self._source[index]
        if isinstance(record, BadSample) or record.pitch is None or not record.caption:
            return record
        return record._replace(caption=f"[{round(record.pitch, -1):.0f} Hz] {record.caption}")

    def __repr__(self) -> str:
        return f"PitchedSource({self._source!r})"


def _emoji(data: DataConfig, model: ModelConfig) -> Source:
    return EmojiSource(data.emoji_names, data.split, data.image_size, folder=data.path or EMBEDDED)


def _folder(data: DataConfig, model: ModelConfig) -> Source:
    source, classes = FolderSource(data.path, data.split), model.classes
    if model.conditioning == "label" and len(source.classes) > classes:
        raise ValueError(
            f"the folder {source.path} has {len(source.classes)} classes, but model.classes={classes}; set it to "
            f"{len(source.classes)}"
        )
    return source


def _lumina(data: DataConfig, model: ModelConfig) -> Source:
    return LuminaSource(data.path)


def _prepared(data: DataConfig, model: ModelConfig) -> Source:
    return PreparedSource(data.path)


def _tfds(data: DataConfig, model: ModelConfig) -> Source:
    from lumina_jax.data.tfds_source import TfdsSource  # only this source pays for importing tensorflow-datasets

    is_text = model.conditioning == "text"
    return TfdsSource(
        data.path,
        data.split,
        image_key=data.image_key,
        caption_key=data.caption_key if is_text else None,
        label_key=None if is_text else data.label_key,
        data_dir=data.data_dir,
    )


OPENERS: dict[str, Callable[[DataConfig, ModelConfig], Source]] = {
    "emoji": _emoji,
    "folder": _folder,
    "lumina": _lumina,
    "prepared": _prepared,
    "tfds": _tfds,
}
