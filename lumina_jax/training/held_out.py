"""The held-out loss: how far a predicted velocity is from the true one, at fixed samples, times and noise.

In: parameters, and batches of samples with the noise and the times that belong to them. Out: the squared error of the
velocity, as one number and as a curve over time.

All is measured on the linear path, x_t = t x1 + (1 - t) x0, whose velocity is x1 - x0. A model of another path is asked
at its point with the same ratio of data to noise, and its answer is turned into the velocity of the linear path
(`paths.straight_velocity`), whatever it predicts: velocity, score, noise or data. So models of all sizes, predictions
and paths compare.

The times are the midpoints of equal parts of the unit interval: the mean over them is the loss under uniform times,
whatever times the model was trained with. The error of a prediction of noise is divided by t where it becomes a
velocity, and that of data by 1 - t, so that the first or the last time outweighs the others in the mean. The mean over
the middle times, where these factors are at most 8, compares such models too.

The noise of a sample depends on its name and the index of the time alone, and is drawn in the shape of its latents.
Everything is computed in float32, so that batch size, devices and packing change the number by rounding only.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, FlowConfig, OptimizerConfig, RunConfig
from lumina_jax.documents import json_text
from lumina_jax.flow import losses, paths
from lumina_jax.models.adapters import adapted_shardings
from lumina_jax.models.division import Division, division, parameter_shardings
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import row_spec, token_spec
from lumina_jax.tokens import Tokens, spread
from lumina_jax.training.state import Parameters
from lumina_jax.training.step import NoiseAndTimes, TrainBatch, batch_shardings, patch_values

TIMES = 16
"""How many times each sample is measured at."""
MIDDLE = (1 / 8, 7 / 8)
"""The middle times lie between these."""
EMPTY_TIME = 0.5
"""The time of a segment without a sample, at which every path and conversion is finite."""

VelocityErrors = Callable[[Parameters, TrainBatch, NoiseAndTimes], Float[Array, "b s"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The squared error of the velocity on the linear path, averaged over the values of a sample; JSON: `to_json`."""

    loss: float
    """The mean over samples and times."""
    standard_error: float | None
    """That of `loss`, from the differences between samples; None for a single sample."""
    middle: float
    """The mean over samples and the times from 1/8 to 7/8."""
    times: tuple[float, ...]
    """From noise to data."""
    curve: tuple[float, ...]
    """The mean over samples at each time."""
    curve_standard_errors: tuple[float | None, ...]
    samples: int
    """How many samples were measured."""
    is_held_out: bool
    """False: they are samples that the model was trained on."""
    modality: str
    """The name of the modality of the samples."""

    def to_json(self) -> str:
        """The fields as a JSON object; numbers that are not finite are null."""
        return json_text(dataclasses.asdict(self))


def midpoints(count: int = TIMES) -> Float[np.ndarray, " n"]:
    """The middles of `count` equal parts of the unit interval, float32."""
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def fixed_noise(digest: int, time: int, shape: Sequence[int]) -> Float[np.ndarray, "..."]:
    """The noise of a sample at a time, float32.

    Args:
      digest: of the name of the sample, of 64 bits.
      time: the index of the time.
      shape: of the latents, [f h w c].
    """
    return np.random.default_rng([digest, time]).standard_normal(tuple(shape), np.float32)


def velocity_errors(config: Config, mesh: Mesh) -> VelocityErrors:
    """The compiled program: the squared error of the velocity of each sample of a batch, 0 where there is none.

    Parameters lie on the mesh as in training; the result is whole on every device.
    """
    model = config.model.replace(compute_dtype="float32", remat="none")
    return _program(config.replace(model=model, optimizer=OptimizerConfig(), run=RunConfig()), mesh)


def batch_errors(
    predict: Callable[[Tokens, Array, Any], Array],
    batch: TrainBatch,
    drawn: NoiseAndTimes,
    flow: FlowConfig,
    *,
    values: Int[Array, "b l"] | None = None,
    over_row: Callable[[Array], Array] = lambda count: count,
) -> Float[Array, "b s"]:
    """The mean of |v_predicted - v|^2 over the values of each sample, on the linear path; 0 where there is none.

    Args:
      predict: the output of a network for tokens of x_t, times and conditions.
      drawn: noise, and the times of the linear path.
      values: for each token, the number of values of its patch that count; None: all.
      over_row: the sum over the devices that share the tokens of a row; each then gets its part of the errors.
    """
    path, tokens = paths.path(flow.path), batch.tokens
    t = path.time_of_share(drawn.t)
    token_times = spread(t, tokens.segment_ids)
    x_t = paths.interpolate(path, drawn.x0, tokens.patches, token_times).x
    output = predict(tokens._replace(patches=x_t), path.network_time(t), batch.condition)
    velocity = paths.velocity_from(flow.prediction, path, output, x_t, token_times)
    straight = paths.straight_velocity(path, velocity, x_t, token_times)
    return losses.sample_means(
        (straight - (tokens.patches - drawn.x0)) ** 2,
        tokens.kinds,
        tokens.segment_ids,
        segments=drawn.t.shape[1],
        patch_values=values,
        over_row=over_row,
    ).per_sample


def summary(errors: Float[np.ndarray, "n t"], *, is_held_out: bool, modality: str) -> HeldOutLoss:
    """The held-out loss of the errors of samples at the times of `midpoints`."""
    errors = errors.astype(np.float64)
    count, times = errors.shape[0], midpoints(errors.shape[1])
    return HeldOutLoss(
        loss=float(errors.mean()),
        standard_error=_standard_error(errors.mean(axis=1)),
        middle=float(errors[:, (times > MIDDLE[0]) & (times < MIDDLE[1])].mean()),
        times=tuple(map(float, times)),
        curve=tuple(map(float, errors.mean(axis=0))),
        curve_standard_errors=tuple(_standard_error(column) for column in errors.T),
        samples=count,
        is_held_out=is_held_out,
        modality=modality,
    )


@functools.lru_cache(maxsize=2)
def _program(config: Config, mesh: Mesh) -> VelocityErrors:
    graph, shardings = abstract_model(config.model)[0], parameter_shardings(config.model, mesh)

    def local(
        divided: Division | None, parameters: Parameters, batch: TrainBatch, drawn: NoiseAndTimes
    ) -> Float[Array, "b s"]:
        def over_row(part: Array) -> Array:
            return part if divided is None else divided.over_row(part)

        model = nnx.merge(graph, parameters) if divided is None else divided.model(parameters)
        with jax.default_matmul_precision("float32"):
            errors = batch_errors(
                model, batch, drawn, config.flow, values=patch_values(model, batch.tokens), over_row=over_row
            )
        return over_row(errors) * batch.present

    def program(parameters: Parameters, batch: TrainBatch, drawn: NoiseAndTimes) -> Float[Array, "b s"]:
        divided = division(config, mesh, adapted_shardings(shardings, parameters))
        call = functools.partial(local, divided)
        if divided is not None:
            tokens, rows = token_spec(mesh), row_spec(mesh)
            call = jax.shard_map(
                call,
                mesh=mesh,
                in_specs=(divided.specs, TrainBatch(tokens, rows, rows), NoiseAndTimes(tokens, rows)),  # type: ignore[arg-type]
                out_specs=rows,
                check_vma=False,  # the errors are the same on devices that divide products
            )
        return call(parameters, batch, drawn)

    batches = batch_shardings(mesh)
    drawn = NoiseAndTimes(batches.tokens, batches.present)  # type: ignore[arg-type]
    return jax.jit(program, in_shardings=(None, batches, drawn), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _standard_error(values: Float[np.ndarray, " n"]) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
