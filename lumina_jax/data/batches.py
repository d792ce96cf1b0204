"""The stream of batches that training reads: rows of tokens with captions or labels, without end.

    source -> shuffle -> repeat -> prepare (decode, crop, drop captions) -> read ahead -> pack -> Batch

Sample i of the stream is the same for any number of workers or processes, and so is every row of every batch: a row
takes its indices (`data.rows`), looks at the oldest samples that it has not handed out, packs those that fit,
and leaves the others for its next batch. Which process makes which rows is therefore free.

So the state of a stream is small: the next index to read, and the indices that wait. It describes the batches handed
out, never what was read ahead, and restoring seeks to it.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain

from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data.example import BadSample, Example, Source, contents
from lumina_jax.data.order import EndlessSource
from lumina_jax.data.packed import Batch as Batch
from lumina_jax.data.packed import CaptionLookup as CaptionLookup
from lumina_jax.data.packed import packed_batch, tokens_of_example, tokens_of_extent
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.reading import ReadAhead
from lumina_jax.data.rows import Row, in_source, seek, state_of
from lumina_jax.data.rows import merge_states as merge_states
from lumina_jax.data.sources import MixedSource
from lumina_jax.modalities import Modality, modality_of_source
from lumina_jax.tokens import first_fit

logger = logging.getLogger(__name__)

READING_THREADS = 16
WINDOW = 3
"""A row of n samples chooses among WINDOW n: that fills it as well as packing all rows together."""
HOPELESS = 10
"""After this many passes over the source without a usable sample, the stream gives up."""


def row_tokens(data: DataConfig, model: ModelConfig, modalities: Sequence[Modality] | None = None) -> int:
    """Tokens in a row: data.row_tokens, or as many as the longest sample needs.

    Args:
      modalities: of each source; None: those of the settings, without autoencoders.

    Raises:
      ValueError: a sample is longer than data.row_tokens.
    """
    modalities = _without_autoencoders(data, model) if modalities is None else modalities
    lengths = [
        (tokens_of_extent(extent, model, modality.config), modality)
        for modality in modalities
        for extent in modality.latent_extents
    ]
    longest, modality = max(lengths, key=lambda found: found[0])
    if data.row_tokens is not None and data.row_tokens < longest:
        raise ValueError(
            f"data.row_tokens={data.row_tokens} is too short: the {modality.plural} of the modality "
            f"{modality.config.name!r} have up to {longest} tokens"
        )
    return data.row_tokens or longest


def _without_autoencoders(data: DataConfig, model: ModelConfig) -> list[Modality]:
    return [modality_of_source(part, model) for part in data.parts]


class Stream:
    """An endless iterator of batches, of which this process makes some rows.

    Args:
      source: records by index.
      modalities: of each source of `data`; None: those of the settings, without autoencoders.
      seed: of the order, the crops and the dropped captions.
      features: encoded captions, for text-conditional models; None: batches carry no text.
      rows: the rows of the batch that this process makes, in the order in which they come; None: all.

    Unusable samples are logged once by name, collected in `bad` (name to reason), and skipped. After an error `state`
    is that of the last batch handed out. Use it as a context manager or call `close`: worker processes end then.

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
        modalities: Sequence[Modality] | None = None,
        features: CaptionLookup | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        modalities = _without_autoencoders(data, model) if modalities is None else modalities
        numbers = range(data.batch_rows) if rows is None else rows
        if not numbers or len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(data.batch_rows)):
            raise ValueError(f"{rows=} must be different rows of the {data.batch_rows=} of a batch, and at least one")
        for modality in modalities:
            modality.check_values()
        if not len(source):
            raise ValueError(f"{source!r} holds no sample")
        self.bad: dict[str, str] = {}
        self._source, self._data, self._model, self._features, self._seed = source, data, model, features, seed
        self._row_tokens = row_tokens(data, model, modalities)
        self._rows: list[Row[Example]] = [Row(number, data.batch_rows, seed) for number in numbers]
        self._window = 1 if data.samples_per_row == 1 else WINDOW * data.samples_per_row
        self._ahead = -(-data.prefetch // len(self._rows))
        self._reader = ReadAhead(
            _endless_samples(source, modalities, data, model, seed),
            workers=data.workers,
            threads=min(data.prefetch, READING_THREADS),
        )
        self._bad_in_a_row = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._read_ahead()
        self._fill()
        waiting = [row.waiting for row in self._rows]
        try:
            batch = self._batch([self._packed(row) for row in self._rows])
        except BaseException:
            for row, before in zip(self._rows, waiting):
                row.waiting = before
            raise
        self._read_ahead()
        return batch

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading ahead; the next batch starts it again."""
        self._reader.close()

    def state(self) -> dict[str, Any]:
        """What JSON needs to hold for `restore` to continue after the last batch handed out."""
        about = {"seed": self._seed, **contents(self._source)._asdict()}
        return state_of(self._rows, self._data.batch_rows) | about

    def merged(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The states of all processes as one; see `merge_states`."""
        return merge_states(states)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, bit for bit: that of these rows, or (`merge_states`) of all.

        With another data.batch_rows, too, no sample is lost or repeated. A source that has changed since is reported;
        see `in_source`. Samples that were bad are tried again.

        Raises:
          ValueError: the state is that of other rows.
        """
        rows, numbers = state.get("rows"), [row.number for row in self._rows]
        if rows is not None and (rows != numbers or state["batch_rows"] != self._data.batch_rows):
            raise ValueError(f"this stream makes the rows {numbers}, the state is of the rows {rows}; use merge_states")
        self.close()
        self.bad, self._bad_in_a_row = {}, 0
        here = in_source(dict(state), contents(self._source), repr(self._source), is_mixture=bool(self._data.mixture))
        seek(self._rows, self._data.batch_rows, self._seed, here)

    def _read_ahead(self) -> None:
        """Begins to read what the next batch needs, and a little more."""
        needed = [max(0, self._window - len(row.waiting)) + self._ahead for row in self._rows]
        parts = (itertools.islice(row.upcoming(), count) for row, count in zip(self._rows, needed))
        self._reader.want(itertools.chain.from_iterable(parts))

    def _fill(self) -> None:
        """Reads, for one row after another, until each has its window of samples to choose from."""
        while lacking := [row for row in self._rows if len(row.waiting) < self._window]:
            for row in lacking:
                index = row.take()
                try:
                    sample = self._with_text(self._reader.read(index)[1])
                except BaseException:
                    row.put_back(index)
                    raise
                if isinstance(sample, Example):
                    row.waiting.append((index, sample))
                    self._bad_in_a_row = 0
                else:
                    self._report(sample)

    def _with_text(self, sample: Example | BadSample) -> Example | BadSample:
        """The sample, or a bad one if its caption has no features."""
        if isinstance(sample, Example) and self._features is not None:
            try:
                self._features[sample.caption or ""]
            except KeyError as error:
                return BadSample(sample.name, str(error.args[0]))
        return sample

    def _packed(self, row: Row[Example]) -> list[Example]:
        """The oldest samples of the row that fit into it, which are then handed out."""
        lengths = [tokens_of_example(example, self._model) for _, example in row.waiting]
        fit = first_fit(lengths, self._row_tokens, rows=1, samples_per_row=self._data.samples_per_row)
        chosen = [row.waiting[index][1] for index in fit.rows[0]]
        row.waiting = [row.waiting[index] for index in fit.left_over]
        return chosen

    def _report(self, sample: BadSample) -> None:
        self._bad_in_a_row += 1
        if sample.name not in self.bad:
            self.bad[sample.name] = sample.reason
            logger.warning("skipped %s: %s", sample.name, sample.reason)
        if len(self.bad) > self._data.bad_samples:
            last = "; ".join(f"{name}: {reason}" for name, reason in list(self.bad.items())[-3:])
            raise ValueError(
                f"{len(self.bad)} samples cannot be used, more than data.bad_samples={self._data.bad_samples}; "
                f"repair or remove them, or raise the limit. The last: {last}"
            )
        samples = len(self._source)
        if len(self.bad) >= samples or self._bad_in_a_row >= HOPELESS * samples:
            raise ValueError(
                f"a whole pass over {self._source!r} gave no usable sample; the last: {sample.name}: {sample.reason}"
            )

    def _batch(self, rows: list[list[Example]]) -> Batch:
        return packed_batch(
            rows,
            self._model,
            self._features,
            row_tokens=self._row_tokens,
            samples_per_row=self._data.samples_per_row,
        )


def _endless_samples(
    source: Source, modalities: Sequence[Modality], data: DataConfig, model: ModelConfig, seed: int
) -> grain.MapDataset:
    """Index to (index, Example or BadSample), without end; of a mixture each part in its share."""
    sources = source.parts if isinstance(source, MixedSource) else (source,)
    parts = [
        grain.MapDataset.source(EndlessSource(part, seed + index)).map(Preparation(modality, model, seed + index))
        for index, (part, modality) in enumerate(zip(sources, modalities, strict=True))
    ]
    if len(parts) == 1:
        return parts[0]
    mixed = grain.MapDataset.mix(parts, [part.weight for part in data.mixture])
    return mixed.map_with_index(_with_own_index)


def _with_own_index(index: int, numbered: tuple[int, Example | BadSample]) -> tuple[int, Example | BadSample]:
    """The index in the whole mixture, instead of that in a part."""
    return index, numbered[1]
