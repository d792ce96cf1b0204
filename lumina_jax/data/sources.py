"""Every kind of source, opened as `data.source` describes it."""

import bisect
import functools
import itertools
from collections.abc import Sequence

from lumina_jax.config import (
    DataConfig,
    EmojiConfig,
    FolderConfig,
    LuminaYamlConfig,
    MediaConfig,
    ModelConfig,
    PreparedConfig,
    SoundConfig,
    SourceConfig,
    TfdsConfig,
    VisualConfig,
)
from lumina_jax.data.emoji_source import EMBEDDED, EmojiSource
from lumina_jax.data.example import BadSample, Record, Source, combined, contents
from lumina_jax.data.file_sources import FolderSource, LuminaSource
from lumina_jax.data.held_out import divided
from lumina_jax.data.prepared import PreparedSource, prepared_splits

HELD_OUT = "held_out"
"""The split that is measured when a model is trained on train."""


def open_source(data: DataConfig, model: ModelConfig) -> Source:
    """The source of a configuration; no picture is read.

    Raises:
      ValueError: it is missing or malformed.
    """
    if data.mixture:
        return MixedSource([open_source(part, model) for part in data.parts])
    source = _whole(data, model)
    return divided(source, data.source.held_out)[0] if data.source.held_out else source


def open_held_out(data: DataConfig, model: ModelConfig) -> Source | None:
    """The samples of a source, not of a mixture, that training never sees; None: there are none.

    Raises:
      ValueError: as `open_source`.
    """
    if data.source.held_out:
        return divided(_whole(data, model), data.source.held_out)[1]
    source = data.source
    if isinstance(source, EmojiConfig | PreparedConfig) and source.split == "train" and _has_held_out(source):
        return _whole(data.replace(split=HELD_OUT), model)
    return None


def held_out_names(data: DataConfig, model: ModelConfig) -> set[str]:
    """The names of all samples of a source, not of a mixture, that training never sees.

    Raises:
      ValueError: as `open_source`.
    """
    hidden = [open_held_out(data, model)]
    if isinstance(data.source, PreparedConfig) and data.source.split == "train":
        others = (split for split in prepared_splits(data.source.path) if split != HELD_OUT)
        hidden += [_whole(data.replace(split=split), model) for split in others]
    return {source[index].name for source in hidden if source is not None for index in range(len(source))}


def _has_held_out(source: SourceConfig) -> bool:
    return not isinstance(source, PreparedConfig) or HELD_OUT in prepared_splits(source.path)


def _whole(data: DataConfig, model: ModelConfig) -> Source:
    """The source with the samples that are trained on and those that are held out."""
    source, limit = open_kind(data.source, data.media, model), data.source.limit
    if isinstance(data.media, SoundConfig) and data.media.pitch:
        source = PitchedSource(source)
    return source if limit is None else FirstSamples(source, limit)


class MixedSource:
    """Several sources, one after another; a stream takes samples from each of `parts` by its weight."""

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
    """Sounds whose captions begin with the pitch, in tens of Hz: "[180 Hz] seven". Captions of sounds without a known
    pitch do not change."""

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


@functools.singledispatch
def open_kind(source: SourceConfig, media: MediaConfig, model: ModelConfig) -> Source:
    """The whole source that these settings describe; each kind of source registers a function for its settings.

    Raises:
      ValueError: the source is missing or malformed, or no function is registered for it.
    """
    raise ValueError(f"nothing opens {source!r}; register a function with lumina_jax.data.sources.open_kind")


@open_kind.register
def _open_emoji(source: EmojiConfig, media: MediaConfig, model: ModelConfig) -> Source:
    if not isinstance(media, VisualConfig):
        raise ValueError(f"data.source='emoji' has pictures, but data.media is {media.kind!r}; choose pictures")
    return EmojiSource(source.emoji_names, source.split, media.image_size, folder=source.path or EMBEDDED)


@open_kind.register
def _open_folder(source: FolderConfig, media: MediaConfig, model: ModelConfig) -> Source:
    folder, classes = FolderSource(source.path, source.split, source.caption), model.classes
    if model.conditioning == "label" and len(folder.classes) > classes:
        raise ValueError(
            f"the folder {folder.path} has {len(folder.classes)} classes, but model.classes={classes}; set it to "
            f"{len(folder.classes)}"
        )
    return folder


@open_kind.register
def _open_lumina(source: LuminaYamlConfig, media: MediaConfig, model: ModelConfig) -> Source:
    return LuminaSource(source.path)


@open_kind.register
def _open_prepared(source: PreparedConfig, media: MediaConfig, model: ModelConfig) -> Source:
    return PreparedSource(source.path, source.split, source.captions)


@open_kind.register
def _open_tfds(source: TfdsConfig, media: MediaConfig, model: ModelConfig) -> Source:
    from lumina_jax.data.tfds_source import TfdsSource  # only this source pays for importing tensorflow-datasets

    is_text = model.conditioning == "text"
    return TfdsSource(
        source.path,
        source.split,
        image_key=source.image_key,
        caption_key=source.caption_key if is_text else None,
        label_key=None if is_text else source.label_key,
        data_dir=source.data_dir,
    )
