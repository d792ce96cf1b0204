"""DPM-Solver++(2M): the probability flow by steps that are exact while the predicted data stay as they are.

In: a velocity, noise and a grid of times. Out: the state at the end of the grid. With lambda = log(alpha / sigma) a
step from s to t is (Lu et al., arXiv 2211.01095, algorithm 2)

    x_t = sigma_t / sigma_s x_s + (alpha_t - alpha_s sigma_t / sigma_s) D,
    D = data_s + (lambda_t - lambda_s) / (2 (lambda_s - lambda_r)) (data_s - data_r)

where data are what x leads to as far as the network can say, and r is the time before s. One model call a step, order
2. The first and the last step have D = data_s, so that a path which ends at sigma = 0 ends at data that the network has
predicted: errors of single predictions do not add up there, as they do in the last step of a Runge-Kutta method. On the
linear path such a step is one of Euler's.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumina_jax.flow import paths

DPM_SOLVERS = {"dpmpp_2m": 1}
"""Model calls a step of each solver."""
Velocity = Callable[[Any, Any, Any], Any]


def integrate(
    velocity: Velocity,
    x: Float[jax.Array | np.ndarray, "*shape"],
    grid: Float[jax.Array | np.ndarray, " n"],
    *,
    path: paths.Path,
) -> Float[Array, "*shape"]:
    """Follow the probability flow of `path` along `grid`, in float32, as one scan.

    Args:
      velocity: of (t, x, None), finite at all times but the last.
      grid: increasing; may be traced. The last time may be repeated: those steps are not taken.
    """
    chex.assert_rank(grid, 1)
    grid = jnp.asarray(grid, jnp.float32)
    c = path.coefficients(grid)
    log_ratio = jnp.log(c.alpha) - jnp.log(c.sigma)  # -inf where there is nothing but noise
    before = jnp.concatenate([jnp.full(1, -jnp.inf), log_ratio[:-2]])
    share = 0.5 * (log_ratio[1:] - log_ratio[:-1]) / (log_ratio[:-1] - before)
    is_inner = jnp.isfinite(share) & (grid[1:] < grid[-1])
    ratio = c.sigma[1:] / c.sigma[:-1]
    of_data = c.alpha[1:] - c.alpha[:-1] * ratio
    steps = (grid[:-1], ratio, of_data, jnp.where(is_inner, share, 0.0), grid[1:] > grid[:-1])

    def step(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        (x, last), (t, ratio, of_data, share, is_taken) = carry, inputs
        data = paths.data_from_velocity(path, velocity(t, x, None), x, t)
        after = ratio * x + of_data * (data + share * (data - last))
        return (jnp.where(is_taken, after, x), data), None

    start = jnp.asarray(x, jnp.float32)
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), steps)[0][0]
