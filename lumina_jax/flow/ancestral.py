"""Samplers of DDPM: from noise to data along some of the 1000 steps of `schedule.py`.

In: the noise that a network predicts, x and a decreasing list of steps. Out: a sample. From one step to the next of the
list, alpha is the ratio of alpha_bar before and after, and beta = 1 - alpha (respacing, Nichol & Dhariwal, arXiv
2102.09672, section 4):

| solver | model calls a step | what it does |
|---|---|---|
| ddpm | 1 | draws from the posterior of the predicted data (arXiv 2006.11239, algorithm 2) |
| ddim | 1 | keeps the predicted noise, or with eta > 0 replaces a part of it (arXiv 2010.02502, equation 12) |

The variance of ddpm is that of the posterior, or what the network says: it interpolates between the logarithms of that
and of beta (arXiv 2102.09672, equation 15). The last step adds no noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumina_jax.flow.schedule import LOG_ALPHA_BAR, STEPS
from lumina_jax.flow.timesteps import ScalarTime, sampling_grid, shifted

ANCESTRAL = {"ddpm": 1, "ddim": 1}
"""Model calls a step of each solver."""
LEAST_VARIANCE = 1e-20
"""Stands for 0 where a logarithm is needed."""

AnyArray = jax.Array | np.ndarray


class NoisePrediction(NamedTuple):
    """What a network says of x at a step."""

    noise: Float[Array, "*shape"]
    fraction: Float[Array, "*shape"] | None = None
    """Where between the least and the largest variance, from -1 to 1; None: the network does not say."""


Predict = Callable[[Int[Array, ""], Float[Array, "*shape"]], NoisePrediction]


def spaced_steps(count: int, shift: ScalarTime = 1.0, first: ScalarTime = 0.0) -> Int[Array, " n"]:
    """`count` of the 1000 steps, the first and the last among them, evenly spaced before the time shift.

    Args:
      first: where they begin on the way from 0, the step of most noise, to 1, before the shift; may be traced.

    Raises:
      ValueError: there are fewer than one or more than 1000.
    """
    if not 1 <= count <= STEPS:
        raise ValueError(f"{count=} steps must be from 1 to the {STEPS} with which DDPM is trained")
    if count == 1:
        return jnp.round((STEPS - 1) * (1 - shifted(jnp.asarray([first], jnp.float32), shift))).astype(jnp.int32)
    times = sampling_grid(count - 1, interval=(first, 1.0), shift=shift)
    return jnp.round((STEPS - 1) * (1 - times)).astype(jnp.int32)


def sample(
    predict: Predict,
    x: Float[AnyArray, "*shape"],
    steps: Int[AnyArray, " n"],
    *,
    solver: str,
    noise: Float[AnyArray, "n *shape"] | None,
    eta: float = 0.0,
    largest: float | None = None,
) -> Float[Array, "*shape"]:
    """Follow `steps` from noise to data, in float32, as one scan.

    Args:
      steps: decreasing, each from 0 to 999; may be traced. A step that is repeated changes nothing the second time.
      noise: a standard normal array for each step, of which the last is not used; None: for ddim with eta 0.
      eta: of ddim, the share of the deviation of ddpm.
      largest: predicted data are clipped to this magnitude; None: they are not.

    Raises:
      ValueError: another solver, or noise is missing.
    """
    chex.assert_rank(steps, 1)
    if solver not in ANCESTRAL:
        raise ValueError(f"{solver=} of DDPM is unknown; choose one of {sorted(ANCESTRAL)}")
    needs_noise = solver == "ddpm" or eta > 0
    if needs_noise and (noise is None or len(noise) != len(steps)):
        raise ValueError(f"{solver=} with {eta=} needs a noise array for each of the {len(steps)} steps; pass noise=")
    table = jnp.asarray(LOG_ALPHA_BAR, jnp.float32)
    before = table[jnp.asarray(steps) + 1]
    after = jnp.append(before[1:], 0.0)
    update = _ddpm if solver == "ddpm" else _ddim

    def one(x: Float[Array, "*shape"], inputs: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        step, before, after, normal = inputs
        said = predict(step, x)
        data = (x - jnp.sqrt(-jnp.expm1(before)) * said.noise) * jnp.exp(-0.5 * before)
        if largest is not None:
            data = jnp.clip(data, -largest, largest)
        mean, deviation = update(x, data, said.fraction, before, after, eta)
        return mean + jnp.where(after < 0, deviation, 0) * normal, None

    draws = jnp.asarray(noise, jnp.float32) if needs_noise else jnp.zeros(len(steps))
    return jax.lax.scan(one, jnp.asarray(x, jnp.float32), (jnp.asarray(steps), before, after, draws))[0]


def _ddpm(
    x: Array, data: Array, fraction: Array | None, before: Array, after: Array, eta: float
) -> tuple[Array, Array]:
    """Mean and deviation of the next x; `before` and `after` are logarithms of alpha_bar."""
    beta, left = -jnp.expm1(before - after), -jnp.expm1(before)
    least = beta * -jnp.expm1(after) / left
    mean = jnp.exp(0.5 * after) * beta / left * data + jnp.exp(0.5 * (before - after)) * -jnp.expm1(after) / left * x
    if fraction is None:
        return mean, jnp.sqrt(least)
    share = (fraction + 1) / 2
    logarithm = share * jnp.log(jnp.maximum(beta, LEAST_VARIANCE))
    return mean, jnp.exp(0.5 * (logarithm + (1 - share) * jnp.log(jnp.maximum(least, LEAST_VARIANCE))))


def _ddim(
    x: Array, data: Array, fraction: Array | None, before: Array, after: Array, eta: float
) -> tuple[Array, Array]:
    """As `_ddpm`. The noise is that which leads from the predicted data, perhaps clipped, to x."""
    left, rest = -jnp.expm1(before), -jnp.expm1(after)
    variance = eta**2 * rest / left * -jnp.expm1(before - after)
    noise = (x - jnp.exp(0.5 * before) * data) / jnp.sqrt(left)
    return jnp.exp(0.5 * after) * data + jnp.sqrt(jnp.maximum(rest - variance, 0)) * noise, jnp.sqrt(variance)
