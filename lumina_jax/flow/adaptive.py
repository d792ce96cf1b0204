"""Adaptive solvers that choose the steps of each sample of a batch by its error alone, so that none affects another.

In: a drift, a batch of states, a start and an end time. Out: the states at the end. Each sample has a time, a step size
and an error: in every accepted step, the root mean square of error / (atol + rtol |x|) over its values is less than 1.
The drift is called for the whole batch at once, with a time for each sample; samples that have arrived wait for the
others. The rule for step sizes is diffrax's default, as in `ode.py`, where a batch of one takes the same steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from lumina_jax.flow.solvers import Solver

MAX_STEPS = 10_000
SAFETY, SMALLEST_FACTOR, LARGEST_FACTOR = 0.9, 0.2, 10.0

State = PyTree[Float[Array, "b ..."]]
Slopes = PyTree[Float[Array, "s b ..."]]
PerRow = Float[Array, " b"]
Drift = Callable[[PerRow, State], State]
Norm = Callable[..., PerRow]
"""(state, *scales) -> the size of the state relative to the tolerance at the largest of `scales`, for each sample."""


def mean_of_rows(values: Float[Array, "b ..."]) -> PerRow:
    return jnp.mean(values.reshape(len(values), -1), axis=1)


class SampleNorms(NamedTuple):
    """Reductions for batches whose rows and tokens may be divided over devices."""

    mean: Callable[[Float[Array, "b ..."]], PerRow] = mean_of_rows
    """The mean of all values of each sample, over all devices that have a part of it."""
    anywhere: Callable[[Bool[Array, ""]], Bool[Array, ""]] = lambda flag: flag
    """Whether a flag is set on any device: all continue until the last one is done."""


class _Walk(NamedTuple):
    """The progress of each sample."""

    t: PerRow
    x: State
    slope: State
    """The slope at t and x, for solvers that reuse it."""
    size: PerRow
    """The size of the next step, positive in both directions; NaN if the sample cannot continue."""
    steps: Int[Array, ""]
    goes_on: Bool[Array, ""]


class _Stages(NamedTuple):
    """A Runge-Kutta tableau with an error estimate, as full arrays."""

    weights: Float[np.ndarray, "s s"]
    """Weights of the slopes of earlier stages, a row for each stage."""
    nodes: Float[np.ndarray, " s"]
    solution: Float[np.ndarray, " s"]
    error: Float[np.ndarray, " s"]
    first: int
    """The first stage to compute: 1 if the last stage of a step is the first of the next, else 0."""


def integrate_each(
    drift: Drift,
    x: State,
    start: Float[Array, ""],
    end: Float[Array, ""],
    *,
    solver: Solver,
    rtol: float | Float[Array, ""],
    atol: float | Float[Array, ""],
    samples: SampleNorms,
) -> State:
    """The state of each sample at the time `end`, before or after `start`; NaN if it does not arrive.

    Args:
      drift: dx/dt of the times [b] and the states.
      x: an array, or a tree of arrays, whose first axis is the batch.
    """
    stages, direction = _stages(solver), jnp.sign(end - start)
    norm = functools.partial(_norm, samples.mean, rtol, atol)

    def tried(walk: _Walk) -> _Walk:
        left = jnp.abs(end - walk.t)
        is_last = walk.size >= left
        size = jnp.where(left > 0, jnp.minimum(walk.size, left), 0)
        moved, error, slope = _step(drift, walk, direction * size, stages)
        inverse = 1 / norm(error, walk.x, moved)  # NaN where the step left the domain of the drift
        taken = inverse > 1
        least, most = jnp.where(taken, 1.0, SMALLEST_FACTOR), jnp.where(taken, LARGEST_FACTOR, SAFETY)
        factor = jnp.clip(SAFETY * inverse ** (1 / solver.order), least, most)
        after = jnp.where(is_last, end, walk.t + direction * size)
        taken &= left > 0
        next_size = size * jnp.where(jnp.isnan(factor), SMALLEST_FACTOR, factor)
        is_stuck = (after == walk.t) & (left > 0)  # there is no float32 between the two times
        return _Walk(
            jnp.where(taken, after, walk.t),
            _chosen(taken, moved, walk.x),
            _chosen(taken, slope, walk.slope),
            jnp.where(is_stuck, jnp.nan, next_size),
            walk.steps + 1,
            walk.goes_on,
        )

    def checked(walk: _Walk) -> _Walk:
        unfinished = (walk.t != end) & jnp.isfinite(walk.size)
        return walk._replace(goes_on=samples.anywhere(jnp.any(unfinished)) & (walk.steps < MAX_STEPS))

    slope, size = _first_step(drift, x, start, direction, norm, solver.order)
    begun = _Walk(jnp.full(size.shape, start), x, slope, size, jnp.asarray(0), jnp.asarray(True))
    walk = jax.lax.while_loop(lambda walk: walk.goes_on, lambda walk: checked(tried(walk)), checked(begun))
    return jax.tree.map(lambda leaf: jnp.where(_over(walk.t == end, leaf), leaf, jnp.nan), walk.x)


def _step(drift: Drift, walk: _Walk, size: PerRow, stages: _Stages) -> tuple[State, State, State]:
    """The state of each sample after a step, its estimated error, and the last slope. The drift is traced once."""
    count = len(stages.nodes)
    weights, nodes = jnp.asarray(stages.weights, jnp.float32), jnp.asarray(stages.nodes, jnp.float32)

    def moved(slopes: Slopes, weights: Float[Array, " s"]) -> State:
        """The sum of weighted slopes times the step."""
        return jax.tree.map(
            lambda leaf: _over(size, leaf[0]) * jnp.tensordot(weights, leaf, axes=1, precision="highest"), slopes
        )

    def stage(index: Int[Array, ""], slopes: Slopes) -> Slopes:
        x = jax.tree.map(jnp.add, walk.x, moved(slopes, weights[index]))
        slope = drift(walk.t + nodes[index] * size, x)
        return jax.tree.map(lambda leaf, new: leaf.at[index].set(new), slopes, slope)

    slopes = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype).at[0].set(leaf), walk.slope)
    slopes = jax.lax.fori_loop(stages.first, count, stage, slopes)
    x = jax.tree.map(jnp.add, walk.x, moved(slopes, jnp.asarray(stages.solution, jnp.float32)))
    return x, moved(slopes, jnp.asarray(stages.error, jnp.float32)), jax.tree.map(lambda leaf: leaf[-1], slopes)


def _first_step(
    drift: Drift, x: State, start: Float[Array, ""], direction: Float[Array, ""], norm: Norm, order: int
) -> tuple[State, PerRow]:
    """The slopes at the start, and a first step size (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations
    I, section II.4)."""
    rows = jnp.zeros(jax.tree.leaves(x)[0].shape[:1])

    def twice(
        carry: tuple[State, PerRow], is_second: Bool[Array, ""]
    ) -> tuple[tuple[State, PerRow], tuple[State, PerRow]]:
        """The slope at the start, then the one after a trial step along it."""
        slope, trial = carry
        moved = jax.tree.map(lambda leaf, slope: leaf + _over(direction * trial, leaf) * slope, x, slope)
        new = drift(start + direction * trial, moved)
        x_size, slope_size = norm(x, x), norm(new, x)
        tiny = (x_size < 1e-5) | (slope_size < 1e-5)
        chosen = jnp.where(tiny, 1e-6, 0.01 * x_size / jnp.where(tiny, 1, slope_size))
        return (new, jnp.where(is_second, trial, chosen)), (new, chosen)

    (bent, trial), (slopes, _) = jax.lax.scan(twice, (jax.tree.map(jnp.zeros_like, x), rows), jnp.array([False, True]))
    slope = jax.tree.map(lambda leaf: leaf[0], slopes)
    slope_size, bend = norm(slope, x), norm(jax.tree.map(jnp.subtract, bent, slope), x) / trial
    steepest = jnp.maximum(slope_size, bend)
    flat = steepest <= 1e-15
    by_slope = (0.01 / jnp.where(flat, 1, steepest)) ** (1 / order)
    return slope, jnp.minimum(100 * trial, jnp.where(flat, jnp.maximum(1e-6, 1e-3 * trial), by_slope))


def _norm(
    mean: Callable[[Float[Array, "b ..."]], PerRow],
    rtol: float | Float[Array, ""],
    atol: float | Float[Array, ""],
    values: State,
    *scales: State,
) -> PerRow:
    """Root mean squares relative to the tolerance; for a tree, the largest of its leaves."""

    def one(value: Float[Array, "b ..."], *scales: Float[Array, "b ..."]) -> PerRow:
        scale = functools.reduce(jnp.maximum, map(jnp.abs, scales))
        return jnp.sqrt(mean((value / (atol + rtol * scale)) ** 2))

    return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(one, values, *scales)))


def _stages(solver: Solver) -> _Stages:
    assert solver.method is not None  # adaptive solvers have one
    tableau = solver.method.tableau  # type: ignore[attr-defined]
    weights = np.zeros((tableau.num_stages, tableau.num_stages))
    for stage, row in enumerate(tableau.a_lower, start=1):
        weights[stage, :stage] = row
    nodes = np.concatenate([[0.0], tableau.c])
    return _Stages(weights, nodes, np.asarray(tableau.b_sol), np.asarray(tableau.b_error), int(tableau.fsal))


def _over(rows: PerRow | Bool[Array, " b"], leaf: Float[Array, "b ..."]) -> Array:
    """A value for each sample, so that it broadcasts against an array of the batch."""
    return rows.reshape(rows.shape + (1,) * (leaf.ndim - 1))


def _chosen(condition: Bool[Array, " b"], yes: State, no: State) -> State:
    return jax.tree.map(lambda yes, no: jnp.where(_over(condition, yes), yes, no), yes, no)
