"""The stream of batches that training reads: rows of tokens with captions or labels, without end.

    source -> shuffle -> repeat -> prepare (decode, crop, drop captions) -> read ahead -> pack -> Batch

Everything up to reading ahead is grain's, by global index: sample i of the stream is the same whatever the number of
workers or shards; shard j of n takes i = j, j + n, j + 2n, ... Packing happens here, in order: each batch looks at the
oldest samples not yet handed out, puts each into the first row with room, and leaves the others for the next batch.

So the state of a stream is small: the next index to read, and the indices that wait. It describes the batches handed
out, never what was read ahead, and restoring seeks to it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from lumina_jax.config import DataConfig, Modality, ModelConfig
from lumina_jax.data.example import BadSample, Example, Source
from lumina_jax.data.latents import LatentSource
from lumina_jax.data.order import EndlessSource
from lumina_jax.data.preparation import Preparation, possible_sizes
from lumina_jax.data.sources import MixedSource
from lumina_jax.mel import BINS
from lumina_jax.tokens import TextFeatures, Tokens, first_fit, latent_grid, pack, pack_text

logger = logging.getLogger(__name__)

READING_THREADS = 16


@runtime_checkable
class CaptionLookup(Protocol):
    """Encoded captions: `lookup[caption]` is the features [t c] of its own tokens, at most `max_tokens` of them."""

    max_tokens: int

    def __getitem__(self, caption: str, /) -> Float[np.ndarray, "t c"]: ...


class Batch(NamedTuple):
    """One batch of this process; s = data.samples_per_row, t = s times the tokens of a caption."""

    tokens: Tokens
    text: TextFeatures | None
    """Captions of a row one after another; segment ids as in `tokens`."""
    labels: Int[np.ndarray, "b s"] | None
    """Labels of label-conditional models; model.classes stands for 'no label'."""
    present: Float[np.ndarray, "b s"]
    """1 where a segment holds a sample, else 0."""


def row_tokens(data: DataConfig, model: ModelConfig) -> int:
    """Tokens in a row: data.row_tokens, or as many as the longest sample of data.image_size needs.

    Raises:
      ValueError: a sample of data.image_size is longer than data.row_tokens.
    """
    longest = max(
        _length((part.extent()[0], height, width), model, model.modality_of(part.modality))
        for part in data.parts
        for width, height in possible_sizes(part, model)
    )
    if data.row_tokens is not None and data.row_tokens < longest:
        raise ValueError(
            f"data.row_tokens={data.row_tokens} is too short: with data.image_size={data.image_size}, "
            f"data.crop={data.crop!r} and data.frames={data.frames} a sample has up to {longest} tokens"
        )
    return data.row_tokens or longest


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all shards as one, which any number of shards can restore.

    Raises:
      ValueError: not one state of each shard.
    """
    shards = sorted(tuple(state["shard"]) for state in states)
    count = len(states)
    if shards != [(index, count) for index in range(count)]:
        raise ValueError(f"merging needs the state of every shard once, but got {shards=}")
    position = max(state["position"] for state in states)
    waiting = [index for state in states for index in state["waiting"]]
    for state in states:  # what the others have passed and this shard has not read yet
        waiting.extend(range(state["position"], position, count))
    bad = {name: reason for state in states for name, reason in state["bad"].items()}
    return {**states[0], "shard": [0, 1], "position": position, "waiting": sorted(waiting), "bad": bad}


class Stream:
    """An endless iterator of batches, of which this process makes data.batch_rows / shards rows.

    Args:
      source: records by index; of a `LatentSource`, data.image_size is that of the latents (`latent_data`).
      seed: of the order, the crops and the dropped captions.
      features: encoded captions, for text-conditional models; None: batches carry no text.
      shard: (index, count) of this process.

    Unusable samples are logged once by name, collected in `bad` (name to reason), and skipped. Use it as a context
    manager or call `close`: worker processes end then.

    Raises:
      ValueError: the settings do not fit together; while iterating: more than data.bad_samples different samples are
        unusable, or all of an epoch.
    """

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        model: ModelConfig,
        *,
        seed: int,
        features: CaptionLookup | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        index, count = shard
        if data.batch_rows % count or not 0 <= index < count:
            raise ValueError(f"{shard=} needs 0 <= index < count, and a count that divides {data.batch_rows=}")
        _check_channels(source, data, model)
        if not len(source):
            raise ValueError(f"{source!r} holds no sample")
        self.bad: dict[str, str] = {}
        self._source, self._data, self._model, self._features, self._shard = source, data, model, features, shard
        self._rows, self._row_tokens = data.batch_rows // count, row_tokens(data, model)
        self._samples = _endless_samples(source, data, model, seed)
        self._reader: grain.DatasetIterator | None = None
        self._waiting: list[tuple[int, Example]] = []
        self._position, self._last_good = index, index - count

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._fill()
        lengths = [self._tokens_of(example) for _, example in self._waiting]
        fit = first_fit(lengths, self._row_tokens, rows=self._rows, samples_per_row=self._data.samples_per_row)
        batch = self._batch([[self._waiting[place][1] for place in row] for row in fit.rows])
        self._waiting = [self._waiting[place] for place in fit.left_over]
        return batch

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading ahead; the next batch starts it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def state(self) -> dict[str, Any]:
        """What JSON needs to hold for `restore` to continue after the last batch handed out."""
        return {
            "position": self._position,
            "waiting": [index for index, _ in self._waiting],
            "shard": list(self._shard),
            "samples": len(self._source),
            "bad": dict(self.bad),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, bit for bit: by this shard, or (`merge_states`) by all together.

        Raises:
          ValueError: the state is that of another shard alone.
        """
        index, count = self._shard
        if list(state["shard"]) not in ([0, 1], [index, count]):
            raise ValueError(f"this is shard {index} of {count}, the state is of {state['shard']=}; use merge_states")
        if state["samples"] != len(self._source):
            logger.warning(
                "%r has %d samples, but had %d: the order changes", self._source, len(self._source), state["samples"]
            )
        self.close()
        self.bad = dict(state["bad"])
        self._position = state["position"] + (index - state["position"]) % count
        self._last_good = self._position - count
        self._waiting = []
        for waiting in sorted(state["waiting"]):
            if waiting % count == index:
                self._take(*self._samples[waiting])

    def _fill(self) -> None:
        """Reads until enough samples wait to fill every row even when all are short."""
        while len(self._waiting) < self._rows * self._data.samples_per_row:
            if self._reader is None:
                self._reader = self._read_ahead()
            index, sample = next(self._reader)
            self._position = index + self._shard[1]
            self._take(index, sample)

    def _read_ahead(self) -> grain.DatasetIterator:
        ahead = self._data.prefetch
        options = grain.ReadOptions(num_threads=min(ahead, READING_THREADS), prefetch_buffer_size=ahead)
        samples = self._samples[self._position :: self._shard[1]].to_iter_dataset(options)
        if self._data.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which programs without absl never parse
            samples = samples.mp_prefetch(grain.MultiprocessingOptions(self._data.workers, ahead))
        return iter(samples)

    def _take(self, index: int, sample: Example | BadSample) -> None:
        if isinstance(sample, Example):
            self._waiting.append((index, sample))
            self._last_good = index
            return
        self._report(sample)
        epoch = index - index % len(self._source)
        is_last_of_epoch = index + self._shard[1] >= epoch + len(self._source)
        if is_last_of_epoch and self._last_good < epoch:
            raise ValueError(
                f"a whole pass over {self._source!r} gave no usable sample; the last: {sample.name}: {sample.reason}"
            )

    def _report(self, sample: BadSample) -> None:
        if sample.name in self.bad:
            return
        self.bad[sample.name] = sample.reason
        logger.warning("skipped %s: %s", sample.name, sample.reason)
        if len(self.bad) > self._data.bad_samples:
            last = "; ".join(f"{name}: {reason}" for name, reason in list(self.bad.items())[-3:])
            raise ValueError(
                f"{len(self.bad)} samples cannot be used, more than data.bad_samples={self._data.bad_samples}; "
                f"repair or remove them, or raise the limit. The last: {last}"
            )

    def _tokens_of(self, example: Example) -> int:
        return _length(example.latents.shape[:3], self._model, self._model.modalities[example.modality])

    def _batch(self, rows: list[list[Example]]) -> Batch:
        model, segments = self._model, self._data.samples_per_row
        tokens, _ = pack(
            [[example.latents for example in row] for row in rows],
            row_tokens=self._row_tokens,
            patch_size=[modality.patch_size for modality in model.modalities],
            nextline=model.nextline,
            nextframe=model.nextframe,
            modalities=[[example.modality for example in row] for row in rows] if model.others else None,
            patch_values=model.patch_values,
        )
        present = np.zeros((len(rows), segments), np.float32)
        for place, row in enumerate(rows):
            present[place, : len(row)] = 1
        if model.conditioning == "label":
            return Batch(tokens, None, _labels(rows, segments, model.classes), present)
        lookup = self._features
        if lookup is None:
            return Batch(tokens, None, None, present)
        captions = [[lookup[example.caption or ""] for example in row] for row in rows]
        return Batch(tokens, pack_text(captions, segments * lookup.max_tokens), None, present)


def _labels(rows: list[list[Example]], segments: int, no_label: int) -> Int[np.ndarray, "b s"]:
    labels = np.full((len(rows), segments), no_label, np.int32)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = [example.label for example in row if example.label is not None]
    return labels


def _endless_samples(source: Source, data: DataConfig, model: ModelConfig, seed: int) -> grain.MapDataset:
    """Index to (index, Example or BadSample), without end; of a mixture each part in its share."""
    sources = source.parts if isinstance(source, MixedSource) else (source,)
    parts = [
        grain.MapDataset.source(EndlessSource(own, seed + place)).map(
            Preparation(part, model, seed + place, tuple(possible_sizes(part, model)))
        )
        for place, (own, part) in enumerate(zip(sources, data.parts, strict=True))
    ]
    if len(parts) == 1:
        return parts[0]
    mixed = grain.MapDataset.mix(parts, [part.weight for part in data.mixture])
    return mixed.map_with_index(_with_own_index)


def _with_own_index(index: int, numbered: tuple[int, Example | BadSample]) -> tuple[int, Example | BadSample]:
    """The place in the whole mixture, instead of that in a part."""
    return index, numbered[1]


def _check_channels(source: Source, data: DataConfig, model: ModelConfig) -> None:
    """Refuse pixels and spectrograms for a model of other latents."""
    if isinstance(source, LatentSource):
        return
    for part in data.parts:
        channels = model.modality_of(part.modality).channels
        what, own = ("pictures", 3) if part.seconds is None else ("mel spectrograms", BINS)
        if channels != own:
            raise ValueError(
                f"{what} have {own} channels, but model.channels={channels}; set it to {own}, or name an autoencoder "
                "in vae.path"
            )


def _length(extent: tuple[int, ...], model: ModelConfig, modality: Modality) -> int:
    frames, height, width = extent
    grid = latent_grid(
        frames,
        height,
        width,
        patch_size=modality.patch_size,
        nextline=model.nextline,
        nextframe=model.nextframe,
    )
    return grid.length
