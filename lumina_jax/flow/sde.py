"""Stochastic samplers: dx = (v + w score) dt + sqrt(2 w) dW, from noise to data.

In: the velocity field, noise x and a grid of times. Out: a sample. For every diffusion coefficient w(t) >= 0 the law
of x_t is that of the probability flow (SiT, arXiv 2401.08740, section 2.2), but early errors are damped. The
score comes from the same model call as the velocity. The last step, from the last time of the grid to t = 1, is
deterministic.

| solver | weak order | model calls a step | grid |
|---|---|---|---|
| euler_maruyama | 1 | 1 | any increasing one inside `paths.interval(..., sde=form)` |
| sde_heun | 1 (2 in the drift) | 2 | as above, its last time before t = 1 |
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lumina_jax.flow.paths import Path, diffusion, score_from_velocity

AnyArray = jax.Array | np.ndarray
Velocity = Callable[[Float[Array, ""], Float[Array, "*shape"], Any], Float[Array, "*shape"]]

STOCHASTIC = {"euler_maruyama": 1, "sde_heun": 2}
"""Model calls a step of each solver."""


def integrate(
    velocity: Velocity,
    x: Float[AnyArray, "*shape"],
    grid: Float[AnyArray, " n"],
    *,
    path: Path,
    solver: str,
    form: str,
    norm: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = 0.04,
    key: Key[Array, ""] | None = None,
    noise: Float[AnyArray, "steps *shape"] | None = None,
    args: Any = None,
    save_at: Literal["end", "grid"] = "end",
) -> Float[Array, "..."]:
    """Sample along `grid`, then take the last step; in float32, as one scan.

    Args:
      velocity: v of (t, x, args) with a scalar t; see `paths.velocity_from` for networks that predict something else.
      x: standard normal noise.
      form, norm: the diffusion coefficient, as `paths.diffusion`.
      last_step: from the last time of the grid, 'mean' is an Euler step of `last_step_size` along the SDE's drift and
        'euler' along the velocity; 'tweedie' is the expectation of the data; 'none' takes no step.
      key: for random increments; or `noise`: one standard normal array for each step.
      save_at: 'end' returns the sample; 'grid' the states after each step and after the last step, along a new
        first axis.

    Raises:
      ValueError: unknown names, both or neither of `key` and `noise`, or noise of another number of steps.
    """
    _check(solver, grid, key, noise)
    times, start_x = jnp.asarray(grid, jnp.float32), jnp.asarray(x, jnp.float32)

    def drift(t: Float[Array, ""], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        v = velocity(t, x, args)
        return v + diffusion(path, form, t, norm=norm) * score_from_velocity(path, v, x, t)

    def step(x: Float[Array, "*shape"], inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        start, end, source = inputs
        normal = source if key is None else jax.random.normal(source, x.shape, x.dtype)
        dt = end - start
        kick = jnp.sqrt(2 * diffusion(path, form, start, norm=norm) * dt) * normal
        if solver == "euler_maruyama":
            x = x + drift(start, x) * dt + kick
        else:
            x = x + kick
            slope = drift(start, x)
            x = x + 0.5 * dt * (slope + drift(end, x + dt * slope))
        return x, x

    sources = jnp.asarray(noise, jnp.float32) if key is None else jax.random.split(key, grid.shape[0] - 1)
    end, states = jax.lax.scan(step, start_x, (times[:-1], times[1:], sources))
    end = _last(last_step, drift, velocity, end, times[-1], last_step_size, path, args)
    return end if save_at == "end" else jnp.concatenate([states, end[None]])


def _check(solver: str, grid: AnyArray, key: Any, noise: AnyArray | None) -> None:
    chex.assert_rank(grid, 1)
    if solver not in STOCHASTIC:
        raise ValueError(f"{solver=} of the SDE is unknown; choose one of {sorted(STOCHASTIC)}")
    if (key is None) == (noise is None):
        raise ValueError("give either key= for random increments, or noise= with one array for each step")
    steps = grid.shape[0] - 1
    if steps < 1 or (noise is not None and noise.shape[0] != steps):
        given = None if noise is None else noise.shape
        raise ValueError(
            f"a grid of {grid.shape=} has {steps} steps, but noise of shape {given}; give one array for each step"
        )


def _last(
    last_step: str,
    drift: Callable[[Float[Array, ""], Any], Any],
    velocity: Velocity,
    x: Float[Array, "*shape"],
    t: Float[Array, ""],
    size: float,
    path: Path,
    args: Any,
) -> Float[Array, "*shape"]:
    """x after the last step."""
    if last_step == "none":
        return x
    if last_step == "mean":
        return x + size * drift(t, x)
    v = velocity(t, x, args)
    if last_step == "euler":
        return x + size * v
    if last_step == "tweedie":
        c = path.coefficients(t)
        return (x + c.sigma**2 * score_from_velocity(path, v, x, t)) / c.alpha
    raise ValueError(f"{last_step=} is unknown; choose 'none', 'mean', 'tweedie' or 'euler'")
