"""A pruned model as a pipeline, what a prediction of it costs, and how its loss depends on the heads that are kept.

In: the pipeline of a trained model with float32 weights. Out: another pipeline; floating point operations and seconds;
the held-out loss at the same samples, times and noise for several numbers of heads.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lumina_jax.aot.flops import forward_flops
from lumina_jax.aot.plan import drawn_load
from lumina_jax.data.sources import open_held_out
from lumina_jax.generation.pipeline import Pipeline, new_pipeline
from lumina_jax.held_out import Part, measurement_of
from lumina_jax.models.division import parameter_shardings
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pruning.heads import closed, pruned
from lumina_jax.throughput.train import random_batch

ROUNDS, LEAST_SECONDS = 15, 0.1
"""How often predictions are timed, in turns, and for how long at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionCost:
    """What one prediction for a batch costs, keys and values of the text included."""

    flops: float
    """Of all matrix products, counted from the architecture."""
    xla_flops: float
    """Of everything, counted by XLA where it computes attention."""
    text_flops: float
    """The part of `flops` that is attention to text, and its keys and values."""
    seconds: float
    """The least of several on the first device."""
    parameters: int


def pruned_pipeline(pipeline: Pipeline, text_heads: int) -> Pipeline:
    """The pipeline of the model of which `text_heads` heads a layer attend to the text, the most open ones.

    Raises:
      ValueError: the model has no gates, or cannot have this number.
    """
    parameters, model = pruned(pipeline.parameters, pipeline.config.model, text_heads)
    if pipeline.mesh is None:
        device = next(iter(jax.tree.leaves(pipeline.parameters)[0].devices()))
        parameters = jax.device_put(parameters, device)
    else:
        parameters = jax.device_put(parameters, parameter_shardings(model, pipeline.mesh))
    found = new_pipeline(
        pipeline.config.replace(model=model), parameters, pipeline.encoder, pipeline.autoencoders, pipeline.mesh
    )
    found.step = pipeline.step
    return found


def prediction_costs(pipelines: Sequence[Pipeline], rows: int) -> list[PredictionCost]:
    """What a prediction for `rows` samples of the size of training costs with each model; they are timed in turns."""
    made = [_prediction(pipeline, rows) for pipeline in pipelines]
    times = _timed([once for once, _ in made])
    found = []
    for pipeline, (_, xla_flops), seconds in zip(pipelines, made, times):
        counted = forward_flops(pipeline.config.model, dataclasses.replace(drawn_load(pipeline.config), rows=rows))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(pipeline.parameters))
        found.append(
            PredictionCost(
                flops=counted.total,
                xla_flops=xla_flops,
                text_flops=counted.text,
                seconds=seconds,
                parameters=parameters,
            )
        )
    return found


def quality_curve(
    pipeline: Pipeline, heads: Sequence[int], *, samples: int, batch: int | None = None
) -> Iterator[tuple[int, dict[str, float]]]:
    """The loss with each number of text heads a layer (0: no text but the pooled caption), at samples held out, if
    there are any, and at samples trained on: by "held out" and "trained on", with the modality if there are several.

    Gates are closed in the whole model, so that one compiled program serves all numbers. Arguments and errors as for
    `held_out.held_out_loss`.
    """
    config = pipeline.config
    has_held_out = any(open_held_out(part, config.model) is not None for part in config.data.parts)
    parts: tuple[Part, ...] = ("held_out", "trained_on") if has_held_out else ("trained_on",)
    measures = {part: measurement_of(pipeline, samples=samples, part=part, batch=batch) for part in parts}
    for count in heads:
        parameters = closed(pipeline.parameters, config.model, count)
        found = {part: measure(parameters) for part, measure in measures.items()}
        ending = {name: f" {name}" if len(config.model.modalities) > 1 else "" for name in found["trained_on"]}
        yield (
            count,
            {
                f"{part.replace('_', ' ')}{ending[name]}": one.loss
                for part in parts
                for name, one in found[part].items()
            },
        )


def _prediction(pipeline: Pipeline, rows: int) -> tuple[Callable[[], object], float]:
    """A function that predicts once on the first device, compiled, and the operations of that by XLA's count."""
    device = jax.devices()[0]
    config = pipeline.config.replace(data={"samples_per_row": 1, "batch_rows": rows})
    load = dataclasses.replace(drawn_load(config), rows=rows)
    batch = random_batch(config, load, make_mesh(devices=[device]))
    t = jnp.full((rows, 1), 0.5)
    inputs = jax.device_put((pipeline.parameters, batch.tokens, t, batch.condition), device)

    def predict(model: Any) -> Callable[..., Float[Array, "b l p"]]:
        graph = abstract_model(model)[0]
        return lambda parameters, *given: nnx.merge(graph, parameters)(*given)

    # XLA counts a loop over layers as one layer, and our kernels by an estimate.
    counted = config.model.replace(unroll=config.model.layers, attention="xla")
    analysis: Any = jax.jit(predict(counted)).lower(*inputs).cost_analysis()
    compiled = jax.jit(predict(config.model)).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs)), float(analysis["flops"])


def _timed(functions: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds of a call of each, timed in turns, so that a machine that slows down slows all of them."""
    for once in functions:
        once()
    began = time.perf_counter()
    functions[0]()
    repeats = max(1, int(np.ceil(LEAST_SECONDS / (time.perf_counter() - began))))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for index, once in enumerate(functions):
            began = time.perf_counter()
            for _ in range(repeats):
                once()
            times[index].append((time.perf_counter() - began) / repeats)
    return [min(found) for found in times]
