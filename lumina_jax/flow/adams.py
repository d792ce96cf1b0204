"""Adams multistep solvers on an even grid: one or a few model calls a step, of an order that grows with the history.

In: a drift, a state and a grid of times. Out: the states at every time of the grid. The first two steps are
Runge-Kutta steps (3/8 rule); from then on the order is the number of slopes known, up to 11 (Hairer, Norsett, Wanner,
Solving Ordinary Differential Equations I, section III.1). 'explicit_adams' extrapolates the slopes (Adams-Bashforth);
'implicit_adams' corrects that by fixed-point iterations of the Adams-Moulton formula, which has one order more.

They exist because released samplers offer them; prefer a Runge-Kutta solver. The coefficients are for equal steps: on a
shifted grid the order is 1. High orders of the explicit solver are stable only for very small steps.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

MAX_HISTORY = 11
MIN_HISTORY = 3
CORRECTIONS = 4

State = PyTree[Float[Array, "..."]]
Tolerance = float | Float[Array, ""]
Drift = Callable[[Float[Array, ""], State], Any]
Mean = Callable[[Float[Array, "..."]], Float[Array, ""]]
"""The mean of all values of an array, over all devices that have a part of the batch."""


def adams(
    drift: Drift,
    x: State,
    grid: Float[Array, " n"],
    *,
    implicit: bool,
    rtol: Tolerance,
    atol: Tolerance,
    mean: Mean = jnp.mean,
) -> State:
    """The states at all times of `grid`, stacked along a new first axis.

    Args:
      drift: dx/dt of (t, x).
      implicit: correct each step, with at most 4 calls, until a correction changes the increment by less than
        atol + rtol |increment| everywhere.
      mean: used to find whether that holds on all devices.
    """
    starts = min(MIN_HISTORY - 1, grid.shape[0] - 1)
    intervals = jnp.stack([grid[:-1], grid[1:]], axis=1)

    def start(x: State, times: Float[Array, " 2"]) -> tuple[State, tuple[State, State]]:
        slope = drift(times[0], x)
        x = _three_eighths_step(drift, x, slope, times)
        return x, (x, slope)

    first, (begun, slopes) = jax.lax.scan(start, x, intervals[:starts])
    history = jax.tree.map(
        lambda slope: jnp.concatenate([slope[::-1], jnp.zeros((MAX_HISTORY - starts, *slope.shape[1:]), slope.dtype)]),
        slopes,
    )

    def step(carry: tuple[State, State, Array], times: Float[Array, " 2"]) -> tuple[tuple[State, State, Array], State]:
        x, history, known = carry
        slope = drift(times[0], x)
        history = jax.tree.map(lambda past, new: jnp.concatenate([new[None], past[:-1]]), history, slope)
        known = jnp.minimum(known + 1, MAX_HISTORY)
        increment = _weighted(_bashforth()[known], history, times[1] - times[0])
        if implicit:
            increment, converged = _corrected(drift, x, history, known, increment, times, rtol, atol, mean)
            known = jnp.where(converged, known, known - 1)
        x = jax.tree.map(jnp.add, x, increment)
        return (x, history, known), x

    _, rest = jax.lax.scan(step, (first, history, jnp.asarray(starts)), intervals[starts:])
    return jax.tree.map(lambda x, *parts: jnp.concatenate([x[None], *parts]), x, begun, rest)


def _three_eighths_step(drift: Drift, x: State, k1: State, times: Float[Array, " 2"]) -> State:
    t, dt = times[0], times[1] - times[0]

    def moved(*terms: tuple[float, State]) -> State:
        weights = [weight for weight, _ in terms]
        return jax.tree.map(
            lambda x, *slopes: x + dt * sum(weight * k for weight, k in zip(weights, slopes)),
            x,
            *(k for _, k in terms),
        )

    k2 = drift(t + dt / 3, moved((1 / 3, k1)))
    k3 = drift(t + dt * (2 / 3), moved((-1 / 3, k1), (1.0, k2)))
    k4 = drift(times[1], moved((1.0, k1), (-1.0, k2), (1.0, k3)))
    return moved((1 / 8, k1), (3 / 8, k2), (3 / 8, k3), (1 / 8, k4))


def _corrected(
    drift: Drift,
    x: State,
    history: State,
    known: Int[Array, ""],
    increment: State,
    times: Float[Array, " 2"],
    rtol: Tolerance,
    atol: Tolerance,
    mean: Mean,
) -> tuple[State, Bool[Array, ""]]:
    """The increment of the Adams-Moulton formula, and whether the iteration converged."""
    dt = times[1] - times[0]
    newest = _moulton()[known, 0]
    fixed = _weighted(_moulton()[known, 1:], history, dt)

    def correct(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        old, calls, _ = carry
        slope = drift(times[1], jax.tree.map(jnp.add, x, old))
        new = jax.tree.map(lambda slope, fixed: dt * newest * slope + fixed, slope, fixed)
        unsettled = jax.tree.map(
            lambda a, b: mean(1.0 - (jnp.abs(a - b) < atol + rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))), old, new
        )
        return new, calls + 1, jnp.all(jnp.stack(jax.tree.leaves(unsettled)) == 0)

    def unfinished(carry: tuple[State, Array, Array]) -> Array:
        return (carry[1] < CORRECTIONS) & ~carry[2]

    increment, _, converged = jax.lax.while_loop(unfinished, correct, (increment, jnp.asarray(0), jnp.asarray(False)))
    return increment, converged


def _weighted(weights: Float[Array, " k"], history: State, dt: Float[Array, ""]) -> State:
    """dt times the weighted sum of slopes, newest first; in float32, so not as a matrix product."""
    return jax.tree.map(
        lambda past: dt * jnp.sum(weights.reshape((-1,) + (1,) * (past.ndim - 1)) * past, axis=0), history
    )


def _bashforth() -> Float[Array, "orders k"]:
    """Row n: weights of the last n slopes, newest first."""
    return jnp.asarray(_weights(newest_node=0), jnp.float32)


def _moulton() -> Float[Array, "orders k"]:
    """Row n: weights of the slope at the end of the step and of the last n slopes."""
    return jnp.asarray(_weights(newest_node=1), jnp.float32)


def _weights(newest_node: int) -> Float[np.ndarray, "orders k"]:
    """Integrals over [0, 1] of the Lagrange polynomials on the nodes newest_node, newest_node - 1, ..."""
    table = np.zeros((MAX_HISTORY + 1, MAX_HISTORY + newest_node))
    for known in range(MAX_HISTORY + 1):
        nodes = [newest_node - index for index in range(known + newest_node)]
        for index, node in enumerate(nodes):
            others = [other for other in nodes if other != node]
            polynomial = [Fraction(1)]
            for other in others:
                shifted = [Fraction(0), *polynomial]
                polynomial = [a - other * b for a, b in zip(shifted, [*polynomial, Fraction(0)])]
            integral = sum(factor / (power + 1) for power, factor in enumerate(polynomial))
            table[known, index] = integral / math.prod(node - other for other in others)
    return table
