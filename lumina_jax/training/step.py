"""One training step: noise, times, prediction, loss, gradient, update, moving average.

In: the state and a batch of packed rows. Out: the new state and a few numbers, still on the device.
Randomness comes from the run's key folded with the step, for the whole batch before it is cut into micro-batches or
spread over devices, so neither changes anything but rounding.

On several devices the gradient is computed inside `jax.shard_map`, where each device sees its own rows, tokens and
shares of parameters, and what it tells the others is written out (`models/division.py`). All that follows treats one
element like another, so arrays cut in any way need nothing said.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, FlowConfig
from lumina_jax.flow import losses, paths, timesteps
from lumina_jax.models.division import Division, division
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.parallel.mesh import batch_sharding, row_spec, token_spec
from lumina_jax.tokens import TextFeatures, Tokens, spread
from lumina_jax.training.optimizer import ema_decay, ema_update, optimizer
from lumina_jax.training.state import Parameters, TrainState, state_shardings


class TrainBatch(NamedTuple):
    """Rows of data on the devices: patches of x1, and the caption or the label of each sample."""

    tokens: Tokens
    condition: TextFeatures | Int[Array, "b s"]
    present: Float[Array, "b s"]
    """1 where a segment holds a sample."""


class Draw(NamedTuple):
    """What is random in a step: the noise of each row and the time of each sample."""

    x0: Float[Array, "b l p"]
    t: Float[Array, "b s"]


class Totals(NamedTuple):
    """For each modality of the model, the sum of the losses of its samples, and how many there were."""

    losses: Float[Array, " n"]
    samples: Float[Array, " n"]


class StepMetrics(NamedTuple):
    """Mean loss of the samples, norm of their gradient before clipping, norm of the new parameters, and what the
    samples were."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    totals: Totals


Step = Callable[[TrainState, TrainBatch], tuple[TrainState, StepMetrics]]


def train_step(config: Config, mesh: Mesh) -> Step:
    """The compiled step for this configuration; the state passed to it is used up (its memory is reused)."""
    graph = abstract_model(config.model)[0]
    transform = optimizer(config.optimizer, config.run.steps)
    places = state_shardings(config, mesh)
    divided = division(config, mesh, places.parameters)

    def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        drawn = draw(jax.random.fold_in(state.key, state.step), batch, config.flow)
        loss, totals, gradients = gradient(
            graph, state.parameters, batch, drawn, config.flow, config.optimizer.accumulate, divided
        )
        updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        ema = ema_update(state.ema, parameters, ema_decay(config.optimizer, state.step))
        metrics = StepMetrics(loss, optax.global_norm(gradients), optax.global_norm(parameters), totals)
        return TrainState(state.step + 1, parameters, ema, moments, state.key), metrics

    return jax.jit(step, donate_argnums=0, in_shardings=(places, batch_places(mesh)), out_shardings=(places, None))


def batch_places(mesh: Mesh) -> TrainBatch:
    """Where each part of a batch lies: rows are spread, and the tokens of each; a row's texts are whole."""
    rows = batch_sharding(mesh)
    return TrainBatch(tokens=NamedSharding(mesh, token_spec(mesh)), condition=rows, present=rows)  # type: ignore[arg-type]


def draw(key: Array, batch: TrainBatch, flow: FlowConfig) -> Draw:
    """Noise for every patch value, and a time for every sample."""
    key_noise, key_times = jax.random.split(key)
    interval = paths.interval(paths.path(flow.path), flow.prediction, training=True)
    t = timesteps.training_times(
        key_times, batch.present.shape, distribution=flow.times, interval=interval, shift=flow.time_shift
    )
    return Draw(jax.random.normal(key_noise, batch.tokens.patches.shape), t)


def gradient(
    graph: nnx.GraphDef,
    parameters: Parameters,
    batch: TrainBatch,
    drawn: Draw,
    flow: FlowConfig,
    micro_batches: int,
    division: Division | None = None,
) -> tuple[Float[Array, ""], Totals, Parameters]:
    """Mean loss over the samples of the batch, what they were, and the gradient of that mean.

    `division` says how devices share the work; None: one has all of it.
    """

    def local(parameters: Parameters, batch: TrainBatch, drawn: Draw) -> tuple[Float[Array, "b s"], Parameters]:
        return _losses_and_gradient(graph, parameters, batch, drawn, flow, micro_batches, division)

    if division is not None:
        tokens, rows = token_spec(division.mesh), row_spec(division.mesh)
        local = jax.shard_map(
            local,
            mesh=division.mesh,
            in_specs=(division.specs, TrainBatch(tokens, rows, rows), Draw(tokens, rows)),  # type: ignore[arg-type]
            out_specs=(rows, division.specs),
            check_vma=False,  # gradients are added up by hand, where they are scattered
        )
    of_samples, gradients = local(parameters, batch, drawn)
    totals = _totals(of_samples, batch, len(nnx.merge(graph, parameters).config.modalities))
    count = jnp.maximum(jnp.sum(totals.samples), 1)
    return jnp.sum(of_samples) / count, totals, jax.tree.map(lambda g: g / count, gradients)


def _losses_and_gradient(
    graph: nnx.GraphDef,
    parameters: Parameters,
    batch: TrainBatch,
    drawn: Draw,
    flow: FlowConfig,
    micro_batches: int,
    division: Division | None,
) -> tuple[Float[Array, "b s"], Parameters]:
    """The loss of each sample, 0 where there is none, and the gradient of their sum over all devices."""

    def total_loss(parameters: Parameters, batch: TrainBatch, drawn: Draw) -> tuple[Float[Array, ""], Array]:
        model = nnx.merge(graph, parameters) if division is None else division.model(parameters)
        of_samples = batch_losses(model, batch, drawn, flow, division).per_sample * batch.present
        return jnp.sum(of_samples), of_samples

    gradient_and_losses = jax.grad(total_loss, has_aux=True)
    if micro_batches == 1:
        gradients, of_samples = gradient_and_losses(parameters, batch, drawn)
    else:

        def add(sums: Parameters, part: tuple[TrainBatch, Draw]) -> tuple[Parameters, Array]:
            gradients, of_samples = gradient_and_losses(parameters, *part)
            return jax.tree.map(jnp.add, sums, gradients), of_samples

        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (batch, drawn))
        gradients, of_samples = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, parameters), parts)
        of_samples = of_samples.reshape(batch.present.shape)
    if division is None:
        return of_samples, gradients
    return division.over_row(of_samples), division.finish(gradients)


def _totals(losses: Float[Array, "b s"], batch: TrainBatch, modalities: int) -> Totals:
    """Sums over the samples of each modality."""
    if batch.tokens.modalities is None:
        return Totals(jnp.sum(losses)[None], jnp.sum(batch.present)[None])
    of_tokens = jnp.asarray(batch.tokens.modalities)
    in_segment = batch.tokens.segment_ids[:, :, None] == jnp.arange(1, losses.shape[1] + 1)
    places = jnp.max(jnp.where(in_segment, of_tokens[:, :, None], 0), axis=1)
    of_each = places[:, :, None] == jnp.arange(modalities)
    return Totals(
        jnp.sum(jnp.where(of_each, losses[:, :, None], 0), axis=(0, 1)),
        jnp.sum(jnp.where(of_each, batch.present[:, :, None], 0), axis=(0, 1)),
    )


def batch_losses(
    model: FlagDiT, batch: TrainBatch, drawn: Draw, flow: FlowConfig, division: Division | None = None
) -> losses.Losses:
    """The loss of each sample at the times and with the noise drawn; of this device's tokens its part of it."""
    path, tokens = paths.path(flow.path), batch.tokens
    of_tokens = spread(drawn.t, tokens.segment_ids)
    x_t = tokens._replace(patches=paths.interpolate(path, drawn.x0, tokens.patches, of_tokens).x)
    return losses.flow_loss(
        model(x_t, drawn.t, batch.condition),
        drawn.x0,
        tokens.patches,
        drawn.t,
        tokens.kinds,
        tokens.segment_ids,
        path=path,
        prediction=flow.prediction,
        weighting=flow.loss_weight,
        patch_values=_patch_values(model, tokens),
        over_row=(lambda count: count) if division is None else division.over_row,
    )


def _patch_values(model: FlagDiT, tokens: Tokens) -> Int[Array, "b l"] | None:
    """How many values the patch of each token has; None: all have the same."""
    if tokens.modalities is None:
        return None
    return jnp.asarray([modality.patch_values for modality in model.config.modalities])[tokens.modalities]
