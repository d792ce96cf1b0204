"""The variational bound of DDPM, term by term, which teaches a network its variance (Nichol & Dhariwal, arXiv
2102.09672, section 3.1).

In: the predicted noise and variance, the noise and data between which x_t lies, and the step. Out: bits of every value.
The sum over the 1000 steps bounds the negative log likelihood of the data from above, but for the first term, the
distance of x at the last step from the standard normal, which no network changes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from lumina_jax.flow.schedule import BETAS, LOG_ALPHA_BAR

HALF_BIN = 1 / 255
"""Half the distance of the 256 values of a pixel in [-1, 1]."""
LEAST_PROBABILITY = 1e-12

AnyArray = jax.Array | np.ndarray
_LEFT = -np.expm1(LOG_ALPHA_BAR)
_POSTERIOR = BETAS * _LEFT[:-1] / _LEFT[1:]
LEAST_LOG_VARIANCE = np.log(np.append(_POSTERIOR[1], _POSTERIOR[1:]))
"""Of the posterior q(x_(s-1) | x_s, x1); the first step, whose posterior has none, takes that of the second."""
LARGEST_LOG_VARIANCE = np.log(BETAS)


def variational_bits(
    noise: Float[Array, "b l p"],
    fraction: Float[Array, "b l p"],
    x0: Float[AnyArray, "b l p"],
    x1: Float[AnyArray, "b l p"],
    step: Int[Array, "b l"],
) -> Float[Array, "b l p"]:
    """The term of `step` in bits: the divergence of the predicted from the true posterior, at step 0 the negative log
    likelihood of x1, whose values stand for bins of 2/255 and, beyond 0.999, for all that lies further out.

    Args:
      noise: predicted.
      fraction: from -1 for the least logarithm of the variance to 1 for the largest.
    """

    def at(table: np.ndarray) -> Float[Array, "b l 1"]:
        return jnp.asarray(table, jnp.float32)[step][..., None]

    least, largest, before = at(LEAST_LOG_VARIANCE), at(LARGEST_LOG_VARIANCE), at(LOG_ALPHA_BAR[1:])
    share = (fraction.astype(jnp.float32) + 1) / 2
    log_variance = share * largest + (1 - share) * least
    # The mean of the posterior is linear in the data, with this factor.
    factor = at(np.exp(0.5 * LOG_ALPHA_BAR[:-1]) * BETAS / _LEFT[1:])
    data_error = jnp.sqrt(-jnp.expm1(before)) * jnp.exp(-0.5 * before) * (x0 - noise)
    distance = factor * data_error
    divergence = log_variance - least - 1 + jnp.exp(least - log_variance) + distance**2 * jnp.exp(-log_variance)
    # At step 0 the mean of the posterior is the predicted data.
    nats = jnp.where(step[..., None] == 0, _bin_nats(jnp.asarray(x1), -data_error, log_variance), 0.5 * divergence)
    return nats / math.log(2)


def _bin_nats(
    x1: Float[Array, "b l p"], error: Float[Array, "b l p"], log_variance: Float[Array, "b l p"]
) -> Float[Array, "b l p"]:
    """-log of the probability of the bin of x1 under a normal with mean x1 - error."""
    scale = jnp.exp(-0.5 * log_variance)
    above, below = (error + HALF_BIN) * scale, (error - HALF_BIN) * scale
    inside = norm.cdf(above) - norm.cdf(below)
    probability = jnp.where(x1 < -0.999, norm.cdf(above), jnp.where(x1 > 0.999, norm.cdf(-below), inside))
    return -jnp.log(jnp.maximum(probability, LEAST_PROBABILITY))
