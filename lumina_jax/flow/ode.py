"""Solvers of the probability flow dx/dt = v(t, x), from noise to data or back.

In: a drift, a state (an array or a tree of them) and a grid of times. Out: the state at the end of the grid, or at each
of its times. A decreasing grid integrates towards noise. `solvers.py` tells which solver does what at which cost.
Everything is one traced loop without callbacks to the host. Weights of the drift are passed as `args`, so that a jitted
sampler compiles once.

Adaptive solvers choose steps so that the root mean square, over the whole state, of error / (atol + rtol |x|) is at
most 1. They integrate from the first to the last time of the grid, and interpolate when asked for the times between.
With `samples`, the steps of each sample of a batch are chosen for it alone (`adaptive.py`).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lumina_jax.flow.adams import Mean, Tolerance, adams
from lumina_jax.flow.adaptive import MAX_STEPS, SampleNorms, integrate_each
from lumina_jax.flow.solvers import Solver, solver_named

State = PyTree[Float[jax.Array | np.ndarray, "..."]]
Drift = Callable[[Any, Any, Any], Any]


def integrate(
    drift: Drift,
    x: State,
    grid: Float[jax.Array | np.ndarray, " n"],
    *,
    solver: str | Solver,
    rtol: Tolerance = 1e-3,
    atol: Tolerance = 1e-6,
    args: Any = None,
    save_at: Literal["end", "grid"] = "end",
    mean: Mean = jnp.mean,
    samples: SampleNorms | None = None,
) -> State:
    """Follow dx/dt = drift(t, x, args) along `grid`, in float32.

    Call it inside the jitted sampler. The drift gets a scalar time, or with `samples` and an adaptive solver a time for
    each sample. An adaptive solver that doesn't reach the end within 10,000 steps, because the drift is stiff or not
    finite, returns NaN.

    Args:
      solver: a name in `solvers.SOLVERS`, or a `Solver`.
      x: the state at the first time: an array, or a tree of arrays.
      grid: at least two times, increasing or decreasing; may be traced. The last time may be repeated: those steps are
        not taken, so that one compiled loop serves grids of several lengths.
      rtol, atol: tolerances of the adaptive solvers and of the corrections of implicit_adams.
      save_at: 'end' returns the last state; 'grid' the states at all times of the grid, along a new first axis.
      mean: the mean of an array like x over the whole batch, of which each device may have a part.
      samples: with an adaptive solver, choose the steps of each sample separately; the first axis of x is the batch.
        None: all samples take the same steps.

    Raises:
      ValueError: unknown solver, fewer than two times, or `save_at='grid'` with `samples` and an adaptive solver.
    """
    found = solver_named(solver) if isinstance(solver, str) else solver
    chex.assert_rank(grid, 1)
    if grid.shape[0] < 2:
        raise ValueError(f"a grid of {grid.shape=} has no interval; give at least two times")
    grid, x = jnp.asarray(grid, jnp.float32), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), x)
    tolerances: dict[str, Tolerance] = {"rtol": rtol, "atol": atol}

    def plain(t: Any, x: Any) -> Any:
        return drift(t, x, args)

    if found.method is None:
        states = adams(plain, x, grid, implicit=found.calls > 1, mean=mean, **tolerances)
    elif found.adaptive and samples is not None:
        if save_at == "grid" or found.overshoots:
            raise ValueError(
                "with `samples` an adaptive solver must stop at the end of the grid and give no other states, but "
                f"{save_at=} and {found.overshoots=}; take save_at='end' and a solver that does not overshoot"
            )
        return integrate_each(plain, x, grid[0], grid[-1], solver=found, samples=samples, **tolerances)
    else:
        norm = functools.partial(_largest_root_mean_square, mean)
        steps = _Adaptive(rtol, atol, norm=norm) if found.adaptive else _Grid(ts=grid)
        states = _by_diffrax(found, drift, x, grid, steps, args, save_at)
    return states if save_at == "grid" else jax.tree.map(lambda states: states[-1], states)


def _by_diffrax(
    found: Solver, drift: Drift, x: State, grid: Float[Array, " n"], steps: Any, args: Any, save_at: Any
) -> State:
    """The states to keep, with `steps` as the step size controller; NaN if the solver gave up."""
    last, event = grid[-1], None
    if found.overshoots:
        last = jnp.sign(grid[-1] - grid[0]) * jnp.inf
        event = diffrax.Event(lambda t, *_, **__: t >= jnp.sign(last) * grid[-1])  # diffrax counts time upwards
    assert found.method is not None  # the others are in adams.py
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(drift),
        found.method(),
        t0=grid[0],
        t1=last,
        dt0=None,
        y0=x,
        args=args,
        saveat=_saved(found, grid, save_at),
        stepsize_controller=steps,
        adjoint=diffrax.ForwardMode(),
        max_steps=MAX_STEPS if found.adaptive else grid.shape[0] - 1,
        event=event,
        throw=False,
    )
    finished = diffrax.is_okay(solution.result)
    return jax.tree.map(lambda states: jnp.where(finished, states, jnp.nan), solution.ys)


def _saved(solver: Solver, grid: Float[Array, " n"], save_at: Literal["end", "grid"]) -> diffrax.SaveAt:
    """The times to save: each step of a fixed grid, interpolations of adaptive steps."""
    if solver.overshoots:
        return diffrax.SaveAt(ts=grid[-1:] if save_at == "end" else grid)
    if save_at == "end":
        return diffrax.SaveAt(t1=True)
    return diffrax.SaveAt(ts=grid) if solver.adaptive else diffrax.SaveAt(t0=True, steps=True)


class _Grid(diffrax.StepTo):
    """Steps that end exactly at given times. The check in the parent class would compile to a callback to the host."""

    def wrap(self, direction: Any) -> "_Grid":
        return _Grid(ts=self.ts * direction)

    def init(self, *unused: Any, **also_unused: Any) -> tuple[Array, int]:
        return self.ts[1], 2


class _Adaptive(diffrax.PIDController):
    """Steps chosen by tolerance, the first one too: the parent class starts every ODE with a step of 0.01."""

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, Any]:
        """The first step of Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4."""

        def size(values: PyTree) -> Any:
            return self.norm(jax.tree.map(lambda v, y: v / (self.atol + self.rtol * jnp.abs(y)), values, y0))

        slope = func(terms, t0, y0, args)
        x_size, slope_size = size(y0), size(slope)
        tiny = (x_size < 1e-5) | (slope_size < 1e-5)
        trial = jnp.where(tiny, 1e-6, 0.01 * x_size / jnp.where(tiny, 1, slope_size))
        moved = jax.tree.map(jnp.add, y0, terms.prod(slope, terms.contr(t0, t0 + trial)))
        bend = size(jax.tree.map(jnp.subtract, func(terms, t0 + trial, moved, args), slope)) / trial
        steepest = jnp.maximum(slope_size, bend)
        flat = steepest <= 1e-15
        by_slope = (0.01 / jnp.where(flat, 1, steepest)) ** (1 / error_order)
        first = jnp.minimum(100 * trial, jnp.where(flat, jnp.maximum(1e-6, 1e-3 * trial), by_slope))
        return super().init(terms, t0, t1, y0, first, args, func, error_order)


def _largest_root_mean_square(mean: Mean, errors: PyTree) -> Float[Array, ""]:
    """The root mean square over a whole batch; for a tree, the largest of its leaves."""
    return jnp.max(jnp.stack([jnp.sqrt(mean(leaf**2)) for leaf in jax.tree.leaves(errors)]))
