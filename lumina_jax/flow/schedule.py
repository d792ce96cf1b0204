"""The noise schedule of DDPM: 1000 discrete steps with linear betas (arXiv 2006.11239, section 4), as DiT and Large-DiT
have it.

Step s runs from 0, which adds almost nothing, to 999, from which almost nothing of the data is left; the network is
told s. Here time runs the other way: step s is t = 1 - (s + 1) / 1000, so that t = 0 is noise and t = 1 is data, before
the first step. Between steps log alpha_bar is interpolated linearly, which makes of the chain a path that an ODE can
follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

STEPS = 1000
BETAS = np.linspace(1e-4, 0.02, STEPS)
LOG_ALPHA_BAR = np.concatenate([[0.0], np.cumsum(np.log1p(-BETAS))])
"""The logarithm of alpha_bar after the number of steps that is the index, from 0 to 1000."""

Times = Float[jax.Array | np.ndarray | float, "*times"]


def log_alpha_bar(t: Times) -> Float[Array, "*times"]:
    """The logarithm of the share of the data in the variance of x_t."""
    added = STEPS * (1 - jnp.asarray(t, jnp.float32))
    return jnp.interp(added, jnp.arange(STEPS + 1.0), jnp.asarray(LOG_ALPHA_BAR, jnp.float32))


def log_alpha_bar_slope(t: Times) -> Float[Array, "*times"]:
    """Its derivative by t, constant within a step."""
    return -STEPS * jnp.asarray(np.log1p(-BETAS), jnp.float32)[step_at(t)]


def time_with_log_alpha_bar(value: Times) -> Float[Array, "*times"]:
    """The inverse of `log_alpha_bar`; values that no time has give the nearest end."""
    decreasing = jnp.asarray(LOG_ALPHA_BAR[::-1].copy(), jnp.float32)
    added = jnp.interp(jnp.asarray(value, jnp.float32), decreasing, jnp.arange(STEPS, -1.0, -1.0))
    return 1 - added / STEPS


def step_at(t: Times) -> Int[Array, "*times"]:
    """The step that ends at time t, or the one within which t lies."""
    # What is a step but for rounding is that step.
    added = jnp.ceil(STEPS * (1 - jnp.asarray(t, jnp.float32)) - 1e-3)
    return jnp.clip(added - 1, 0, STEPS - 1).astype(jnp.int32)


def time_of_step(step: Int[jax.Array | np.ndarray | int, "*times"]) -> Float[Array, "*times"]:
    return jnp.asarray(1 - (jnp.asarray(step) + 1) / STEPS, jnp.float32)


def discrete(t: Times) -> Float[Array, "*times"]:
    """The time of the step in which t lies: uniform times in [0, 1) become uniform steps."""
    return time_of_step(step_at(t))


def network_time(t: Times) -> Float[Array, "*times"]:
    """What the network is told of t: the step, 0 to 999, with fractions between steps."""
    return STEPS * (1 - jnp.asarray(t, jnp.float32)) - 1
