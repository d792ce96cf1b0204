"""The samples at which the held-out loss is measured, laid out as batches, and the measurement itself.

In: a configuration or a pipeline. Out: a `HeldOutLoss` for each modality of the data. `training/held_out.py` has the
mathematics. Captions are never dropped, and always the first of a sample.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from lumina_jax.config import Config
from lumina_jax.data.batches import CaptionLookup, row_tokens
from lumina_jax.data.example import BadSample, Example, Source
from lumina_jax.data.held_out import digest_of_name, spread_over
from lumina_jax.data.latents import encode_sources
from lumina_jax.data.packed import Batch, packed_batch, tokens_of_example
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.sources import open_held_out, open_source
from lumina_jax.encoders.caption_cache import encoded
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.modalities import Modality, modalities_of_sources
from lumina_jax.parallel.mesh import axis_size, check_tokens, make_mesh
from lumina_jax.parallel.multihost import compiled_together, say
from lumina_jax.training.held_out import (
    EMPTY_TIME,
    HeldOutLoss,
    VelocityErrors,
    fixed_noise,
    midpoints,
    summary,
    velocity_errors,
)
from lumina_jax.training.metrics import HELD_OUT_LOSS, TRAINED_ON_LOSS
from lumina_jax.training.state import Parameters
from lumina_jax.training.step import NoiseAndTimes, TrainBatch, batch_shardings

Part = Literal["held_out", "trained_on"]
"""Which samples of the data are measured."""
SAMPLES = 256
"""Samples of each source that are measured, at most."""
Visit = tuple[int, int]
"""The indices of a sample and of a time."""


def held_out_loss(
    pipeline: Pipeline,
    *,
    samples: int = SAMPLES,
    part: Part | None = None,
    modality: str | None = None,
    batch: int | None = None,
) -> HeldOutLoss:
    """How far the velocity of a trained model is from the true one, on average over samples and times.

    Samples, times and noise are fixed: every model of the same data is measured at the same ones, whatever its size,
    seed, prediction and devices.

    Args:
      samples: of each source, at most.
      part: of the data; None: what is held out, or if nothing is, what was trained on.
      modality: one of those of the model; None: the first.
      batch: rows computed at once; None: data.batch_rows / optimizer.accumulate.

    Raises:
      ValueError: nothing is held out, no sample can be used, or the model has no such modality.
    """
    name = pipeline.config.model.modality_of(modality).name
    found = held_out_losses(pipeline, samples=samples, part=part, batch=batch)
    if name not in found:
        raise ValueError(f"no source has samples of {name!r} to measure; those measured are {', '.join(found)}")
    return found[name]


def held_out_losses(
    pipeline: Pipeline, *, samples: int = SAMPLES, part: Part | None = None, batch: int | None = None
) -> dict[str, HeldOutLoss]:
    """The held-out loss of each modality of the data, by its name; arguments and errors as for `held_out_loss`."""
    return measurement_of(pipeline, samples=samples, part=part, batch=batch)(pipeline.parameters)


def measurement_of(
    pipeline: Pipeline, *, samples: int = SAMPLES, part: Part | None = None, batch: int | None = None
) -> "HeldOutMeasurement":
    """The measurement for parameters of a pipeline, of which there may be several; arguments and errors as for
    `held_out_loss`."""
    config, mesh = pipeline.config, pipeline.mesh
    if mesh is None:
        device = next(iter(jax.tree.leaves(pipeline.parameters)[0].devices()))
        mesh = make_mesh(devices=[device])
    return measurement(
        config,
        mesh,
        modalities_of_sources(config),
        pipeline.encoder,
        pipeline.autoencoders,
        samples=samples,
        part=part,
        batch=batch,
    )


def evaluator(
    config: Config,
    mesh: Mesh,
    modalities: Sequence[Modality],
    encoder: TextEncoder | None,
    autoencoders: Mapping[str, Any],
) -> Callable[[Parameters], dict[str, float]] | None:
    """What a run evaluates every `run.evaluate_every` steps: metrics by name. None: nothing.

    Args:
      modalities, autoencoders: as for `measurement`.

    Raises:
      ValueError: no sample can be used, or none is held out and the run has a patience.
    """
    if config.run.evaluate_every is None:
        return None
    part: Part | None = None if config.run.patience is None else "held_out"
    count = config.run.evaluate_samples
    measure = measurement(config, mesh, modalities, encoder, autoencoders, samples=count, part=part)
    kind = "held-out samples" if measure.is_held_out else "samples of training, because none is held out,"
    say(f"every {config.run.evaluate_every} steps {len(measure.examples)} {kind} are measured at fixed times and noise")
    name = HELD_OUT_LOSS if measure.is_held_out else TRAINED_ON_LOSS
    is_single = len(config.model.modalities) == 1

    def evaluate(parameters: Parameters) -> dict[str, float]:
        values: dict[str, float] = {}
        for modality, found in measure(parameters).items():
            ending = "" if is_single else f"/{modality}"
            values[f"{name}{ending}"] = found.loss
            values[f"{name}_middle{ending}"] = found.middle
            if found.standard_error is not None:
                values[f"{name}_error{ending}"] = found.standard_error
        return values

    return evaluate


def measurement(
    config: Config,
    mesh: Mesh,
    modalities: Sequence[Modality],
    encoder: TextEncoder | None,
    autoencoders: Mapping[str, Any],
    *,
    samples: int,
    part: Part | None = None,
    batch: int | None = None,
) -> "HeldOutMeasurement":
    """The measurement for the data of a configuration; every process of a job must make one.

    Args:
      modalities: of each source of the data.
      autoencoders: by the name of the modality.
      samples, part, batch: as for `held_out_loss`.

    Raises:
      ValueError: as `held_out_loss`.
    """
    if samples < 1 or (batch is not None and batch < 1):
        raise ValueError(f"the held-out loss needs at least 1 sample and 1 row, but {samples=} and {batch=}")
    sources, is_held_out = _measured_sources(config, part)
    examples: list[Example] = []
    for source, modality in zip(sources, modalities, strict=True):
        if source is not None:
            examples += fixed_examples(config, source, modality, autoencoders, samples)
    batch = config.data.batch_rows // config.optimizer.accumulate if batch is None else batch
    batch += -batch % axis_size(mesh, "data", "fsdp")
    tokens = row_tokens(config.data, config.model, modalities)
    check_tokens(tokens, mesh)
    features = None
    if encoder is not None:
        features = KnownCaptions(encoder, [example.caption or "" for example in examples])
        examples = [example for example in examples if (example.caption or "") in features]
    return HeldOutMeasurement(
        config, mesh, examples, features, is_held_out=is_held_out, batch_rows=batch, row_tokens=tokens
    )


def fixed_examples(
    config: Config, source: Source, modality: Modality, autoencoders: Mapping[str, Any], count: int
) -> list[Example]:
    """At most `count` samples of a source, cropped and, with an autoencoder, drawn by their names alone.

    Raises:
      ValueError: none of them can be used.
    """
    modality = dataclasses.replace(modality, data=modality.data.replace(caption_dropout=0.0))
    chosen = spread_over(source, count)
    if modality.config.name in autoencoders:
        chosen = encode_sources(chosen, [modality], autoencoders, config.vae.cache)
    prepare = Preparation(modality, config.model, seed=0, chooses_captions=False)
    records = (chosen[index] for index in range(len(chosen)))
    prepared = [prepare((digest_of_name(record.name), record))[1] for record in records]
    examples = [example for example in prepared if isinstance(example, Example)]
    if not examples:
        why = "; ".join(f"{bad.name}: {bad.reason}" for bad in prepared[:3] if isinstance(bad, BadSample))
        raise ValueError(f"none of the {len(prepared)} samples of {source!r} can be measured: {why}")
    return examples


class KnownCaptions:
    """The features of these captions, in memory, but of those that have any; a `CaptionLookup`."""

    def __init__(self, encoder: TextEncoder, captions: Sequence[str]) -> None:
        self.max_tokens = encoder.max_tokens
        found = encoded(list(dict.fromkeys(captions)), encoder)
        self._features = {caption: features for caption, features in found if not isinstance(features, str)}

    def __contains__(self, caption: object) -> bool:
        return caption in self._features

    def __getitem__(self, caption: str) -> Float[np.ndarray, "t c"]:
        return self._features[caption]


class HeldOutMeasurement:
    """The held-out loss of any parameters, at the same samples, times and noise each time; compiled once.

    Args:
      batch_rows: rows of a batch, a multiple of the devices that share them.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        examples: Sequence[Example],
        features: CaptionLookup | None,
        *,
        is_held_out: bool,
        batch_rows: int,
        row_tokens: int,
    ) -> None:
        self.examples, self.is_held_out, self.times = tuple(examples), is_held_out, midpoints()
        self._errors: VelocityErrors = compiled_together(velocity_errors(config, mesh))
        self._config, self._features = config, features
        self._batch_rows, self._row_tokens = batch_rows, row_tokens
        self._shardings = batch_shardings(mesh)

    def __call__(self, parameters: Parameters) -> dict[str, HeldOutLoss]:
        """The loss for each modality of the samples, by its name. Every process of a job must call it."""
        errors = np.zeros((len(self.examples), len(self.times)), np.float32)
        pending: tuple[list[list[Visit]], jax.Array] | None = None
        for rows in self._batches():
            begun = rows, self._errors(parameters, *self._laid_out(rows))
            if pending is not None:  # those before: the device need not wait for the host
                _note(errors, *pending)
            pending = begun
        if pending is not None:
            _note(errors, *pending)
        names = [modality.name for modality in self._config.model.modalities]
        index = np.array([example.modality for example in self.examples])
        return {
            name: summary(errors[index == number], is_held_out=self.is_held_out, modality=name)
            for number, name in enumerate(names)
            if (index == number).any()
        }

    def _batches(self) -> Iterator[list[list[Visit]]]:
        """Every sample at every time, in rows; the last batch may have empty ones."""
        rows: list[list[Visit]] = [[]]
        room = self._row_tokens
        for index, example in enumerate(self.examples):
            length = tokens_of_example(example, self._config.model)
            for time in range(len(self.times)):
                if rows[-1] and (length > room or len(rows[-1]) == self._config.data.samples_per_row):
                    if len(rows) == self._batch_rows:
                        yield rows
                        rows = []
                    rows.append([])
                    room = self._row_tokens
                rows[-1].append((index, time))
                room -= length
        yield rows + [[] for _ in range(self._batch_rows - len(rows))]

    def _laid_out(self, rows: list[list[Visit]]) -> tuple[TrainBatch, NoiseAndTimes]:
        """The batch, its noise and its times on the devices of the mesh."""
        data = self._packed([[self.examples[index] for index, _ in row] for row in rows], self._features)
        noise = self._packed([[self._noise(index, time) for index, time in row] for row in rows], None)
        t = np.full(data.present.shape, EMPTY_TIME, np.float32)
        for number, row in enumerate(rows):
            t[number, : len(row)] = self.times[[time for _, time in row]]
        local = (data.tokens, data.labels if data.text is None else data.text, data.present)
        batch = TrainBatch(*(_on_devices(part, to) for part, to in zip(local, self._shardings)))
        x0, times = _on_devices(noise.tokens.patches, self._shardings.tokens), _on_devices(t, self._shardings.present)
        return batch, NoiseAndTimes(x0, times)

    def _noise(self, index: int, time: int) -> Example:
        example = self.examples[index]
        noise = fixed_noise(digest_of_name(example.name), time, example.latents.shape)
        return example._replace(latents=noise)

    def _packed(self, rows: list[list[Example]], features: CaptionLookup | None) -> Batch:
        return packed_batch(
            rows,
            self._config.model,
            features,
            row_tokens=self._row_tokens,
            samples_per_row=self._config.data.samples_per_row,
        )


def _measured_sources(config: Config, part: Part | None) -> tuple[list[Source | None], bool]:
    """What is measured of each source of the data, and whether it is held out."""
    data, model = config.data.parts, config.model
    held_out = [None if part == "trained_on" else open_held_out(one, model) for one in data]
    if any(source is not None for source in held_out):
        return held_out, True
    if part == "held_out":
        raise ValueError(
            "no sample of these data is held out; set data.held_out to a share such as 0.02 before training, or "
            "measure the samples that were trained on"
        )
    return [open_source(one, model) for one in data], False


def _on_devices(values: Any, sharding: Any) -> Any:
    """Arrays that are whole on this host as arrays of the mesh."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), values
    )


def _note(errors: Float[np.ndarray, "n t"], rows: list[list[Visit]], found: jax.Array) -> None:
    """Fill in the errors that a batch gave."""
    for row, values in zip(rows, np.asarray(found)):
        for visit, value in zip(row, values):
            errors[visit] = value
