"""One training step: noise, times, prediction, loss, gradient, update, moving average.

In: the state and a batch of packed rows. Out: the new state and a few numbers, still on the device.
Noise and times come from the key of the run folded with the step. They are drawn for the whole batch before it is
divided into micro-batches or over devices, so that this division changes only rounding.

On several devices the gradient is computed inside `jax.shard_map`, where each device has some of the rows, tokens and
parameters, and every communication is explicit (`models/division.py`). The update after it works element by element, so
that any sharding of the arrays gives the same result without further code.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, FinetuneConfig, FlowConfig
from lumina_jax.flow import losses, paths, timesteps
from lumina_jax.models.adapters import column_norms, scaled, trained_shardings, unadapted
from lumina_jax.models.division import Division, division
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.parallel.compiler_options import compiler_options
from lumina_jax.parallel.mesh import batch_sharding, row_spec, token_spec
from lumina_jax.tokens import TextFeatures, Tokens, spread
from lumina_jax.training.dropout import Masks, dropout_masks, masked
from lumina_jax.training.optimizer import ema_decay, ema_update
from lumina_jax.training.state import (
    Parameters,
    TrainState,
    network_parameters,
    network_shardings,
    state_optimizer,
    state_shardings,
)

DROPOUT = 1
"""Folded into the key of a step for dropout; noise and times use the key itself."""


class TrainBatch(NamedTuple):
    """Rows of data on the devices: patches of x1, and the caption or the label of each sample."""

    tokens: Tokens
    condition: TextFeatures | Int[Array, "b s"]
    present: Float[Array, "b s"]
    """1 where a segment holds a sample, else 0."""


class NoiseAndTimes(NamedTuple):
    """The random numbers of a step: noise for each row and a time for each sample."""

    x0: Float[Array, "b l p"]
    t: Float[Array, "b s"]


class Totals(NamedTuple):
    """For each modality of the model, the sum of the losses of its samples, and their number."""

    losses: Float[Array, " n"]
    samples: Float[Array, " n"]


class StepMetrics(NamedTuple):
    """The mean loss, the norm of the gradient before clipping, the norm of the new parameters, and sums for each
    modality."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    totals: Totals


Step = Callable[[TrainState, TrainBatch], tuple[TrainState, StepMetrics]]


def train_step(config: Config, mesh: Mesh) -> Step:
    """The jitted step for this configuration. It reuses the memory of the state that is passed to it."""
    graph = abstract_model(config.model)[0]
    transform, shardings = state_optimizer(config), state_shardings(config, mesh)
    divided = division(config, mesh, network_shardings(config, mesh))

    def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.key, state.step)
        drawn, masks = noise_and_times(key, batch, config.flow), Masks()
        if dropout := config.finetune.dropout:
            masks = dropout_masks(state.parameters, jax.random.fold_in(key, DROPOUT), dropout)
        loss, totals, gradients = gradient(
            graph, masked(state.parameters, masks) if masks else state.parameters, batch, drawn, config.flow,
            config.optimizer.accumulate, divided, None if state.base is None else state.base.parameters,
            config.finetune,
        )  # fmt: skip
        gradients = masked(gradients, masks) if masks else gradients
        updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        ema = ema_update(state.ema, parameters, ema_decay(config.optimizer, state.step))
        metrics = StepMetrics(loss, optax.global_norm(gradients), optax.global_norm(parameters), totals)
        return TrainState(state.step + 1, parameters, ema, moments, state.key, state.base), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=(shardings, None),
        compiler_options=compiler_options(mesh.devices.flat[0].device_kind, trains=True),
    )


def batch_shardings(mesh: Mesh) -> TrainBatch:
    """The sharding of each part of a batch: rows are divided, and the tokens of each; texts are whole."""
    rows = batch_sharding(mesh)
    return TrainBatch(tokens=NamedSharding(mesh, token_spec(mesh)), condition=rows, present=rows)  # type: ignore[arg-type]


def noise_and_times(key: Array, batch: TrainBatch, flow: FlowConfig) -> NoiseAndTimes:
    """Random noise for every patch value, and a random time for every sample."""
    key_noise, key_times = jax.random.split(key)
    path = paths.path(flow.path)
    interval = paths.interval(path, flow.prediction, training=True)
    t = timesteps.training_times(
        key_times, batch.present.shape, distribution=flow.times, interval=interval, shift=flow.time_shift
    )
    t = t if path.discrete is None else path.discrete(t)
    return NoiseAndTimes(jax.random.normal(key_noise, batch.tokens.patches.shape), t)


def gradient(
    graph: nnx.GraphDef,
    parameters: Parameters,
    batch: TrainBatch,
    drawn: NoiseAndTimes,
    flow: FlowConfig,
    micro_batches: int,
    division: Division | None = None,
    base: Parameters | None = None,
    settings: FinetuneConfig = FinetuneConfig(),  # noqa: B008 (an immutable value)
) -> tuple[Float[Array, ""], Totals, Parameters]:
    """The mean loss over the samples of the batch, sums for each modality, and the gradient of the mean loss.

    Args:
      parameters: those that train, by which the loss is differentiated.
      division: how devices share the work; None: there is one device.
      base, settings: as for `network_parameters`.
    """

    norms = {} if base is None else column_norms(base, scaled(parameters, settings))

    def network(parameters: Parameters, base: Parameters | None, norms: dict[str, Array]) -> FlagDiT:
        whole = network_parameters(parameters, base, settings, norms)
        return nnx.merge(graph, whole) if division is None else division.model(whole)

    def local(
        parameters: Parameters,
        base: Parameters | None,
        norms: dict[str, Array],
        batch: TrainBatch,
        drawn: NoiseAndTimes,
    ) -> tuple[Float[Array, "b s"], Parameters]:
        model = functools.partial(network, base=base, norms=norms)
        return _losses_and_gradient(model, parameters, batch, drawn, flow, micro_batches, division)

    if division is not None:
        tokens, rows = token_spec(division.mesh), row_spec(division.mesh)
        trained, frozen = _specs(division, parameters, base)
        local = jax.shard_map(
            local,
            mesh=division.mesh,
            in_specs=(trained, frozen, PartitionSpec(), TrainBatch(tokens, rows, rows), NoiseAndTimes(tokens, rows)),  # type: ignore[arg-type]
            out_specs=(rows, trained),
            check_vma=False,  # gradients are added up by hand, where they are scattered
        )
    sample_losses, gradients = local(parameters, base, norms, batch, drawn)
    modalities = nnx.merge(graph, network_parameters(parameters, base, settings)).config.modalities
    totals = _totals(sample_losses, batch, len(modalities))
    count = jnp.maximum(jnp.sum(totals.samples), 1)
    return jnp.sum(sample_losses) / count, totals, jax.tree.map(lambda g: g / count, gradients)


def _specs(division: Division, parameters: Parameters, base: Parameters | None) -> tuple[Any, Any]:
    """A `PartitionSpec` for each parameter that trains, and for each of the base."""
    every = unadapted(division.shardings)
    trained = every if base is None else trained_shardings(every, parameters)
    specs = functools.partial(jax.tree.map, lambda sharding: sharding.spec)
    return specs(trained), None if base is None else specs(every)


def _losses_and_gradient(
    model: Callable[[Parameters], FlagDiT],
    parameters: Parameters,
    batch: TrainBatch,
    drawn: NoiseAndTimes,
    flow: FlowConfig,
    micro_batches: int,
    division: Division | None,
) -> tuple[Float[Array, "b s"], Parameters]:
    """The loss of each sample, 0 where there is none, and the gradient of their sum over all devices."""

    def total_loss(parameters: Parameters, batch: TrainBatch, drawn: NoiseAndTimes) -> tuple[Float[Array, ""], Array]:
        sample_losses = batch_losses(model(parameters), batch, drawn, flow, division).per_sample * batch.present
        return jnp.sum(sample_losses), sample_losses

    gradient_and_losses = jax.grad(total_loss, has_aux=True)
    if micro_batches == 1:
        gradients, sample_losses = gradient_and_losses(parameters, batch, drawn)
    else:

        def add(sums: Parameters, part: tuple[TrainBatch, NoiseAndTimes]) -> tuple[Parameters, Array]:
            gradients, sample_losses = gradient_and_losses(parameters, *part)
            return jax.tree.map(jnp.add, sums, gradients), sample_losses

        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (batch, drawn))
        gradients, sample_losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, parameters), parts)
        sample_losses = sample_losses.reshape(batch.present.shape)
    if division is None:
        return sample_losses, gradients
    return division.over_row(sample_losses), division.finish(gradients)


def _totals(losses: Float[Array, "b s"], batch: TrainBatch, modalities: int) -> Totals:
    """Sums over the samples of each modality."""
    if batch.tokens.modalities is None:
        return Totals(jnp.sum(losses)[None], jnp.sum(batch.present)[None])
    token_modalities = jnp.asarray(batch.tokens.modalities)
    in_segment = batch.tokens.segment_ids[:, :, None] == jnp.arange(1, losses.shape[1] + 1)
    sample_modalities = jnp.max(jnp.where(in_segment, token_modalities[:, :, None], 0), axis=1)
    is_member = sample_modalities[:, :, None] == jnp.arange(modalities)
    return Totals(
        jnp.sum(jnp.where(is_member, losses[:, :, None], 0), axis=(0, 1)),
        jnp.sum(jnp.where(is_member, batch.present[:, :, None], 0), axis=(0, 1)),
    )


def batch_losses(
    model: FlagDiT, batch: TrainBatch, drawn: NoiseAndTimes, flow: FlowConfig, division: Division | None = None
) -> losses.Losses:
    """The loss of each sample for given noise and times. With `division`, this device's part of it."""
    path, tokens = paths.path(flow.path), batch.tokens
    token_times = spread(drawn.t, tokens.segment_ids)
    x_t = tokens._replace(patches=paths.interpolate(path, drawn.x0, tokens.patches, token_times).x)
    learns_variance = model.config.predict_sigma and flow.path == "ddpm"
    output, fraction = model(x_t, path.network_time(drawn.t), batch.condition, keep_sigma=learns_variance), None
    if learns_variance:
        output, fraction = jnp.split(output, 2, axis=-1)
    return losses.flow_loss(
        output,
        drawn.x0,
        tokens.patches,
        drawn.t,
        tokens.kinds,
        tokens.segment_ids,
        path=path,
        prediction=flow.prediction,
        weighting=flow.loss_weight,
        fraction=fraction,
        patch_values=patch_values(model, tokens),
        over_row=(lambda count: count) if division is None else division.over_row,
    )


def patch_values(model: FlagDiT, tokens: Tokens) -> Int[Array, "b l"] | None:
    """The number of values in the patch of each token; None: all have the same number."""
    if tokens.modalities is None:
        return None
    return jnp.asarray([modality.patch_values for modality in model.config.modalities])[tokens.modalities]
