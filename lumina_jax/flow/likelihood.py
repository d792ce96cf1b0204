"""The log density of data under the probability flow, by the instantaneous change of variables.

In: data x and the velocity field. Out: log p(x) in nats and the latent z of x. Along the flow,
d log p_t(x_t) / dt = -div v, and p_0 is standard normal, so log p(x) = log N(z) - integral of div v
(Score-based SDEs, arXiv 2011.13456, appendix D.2). The divergence is Hutchinson's estimate e . J e with signs e, drawn
once for the whole path, so that the solver integrates a smooth function; it costs one vector-Jacobian product besides
the model call. The released code drew new signs at every call.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lumina_jax.flow.adams import Mean, Tolerance
from lumina_jax.flow.adaptive import SampleNorms
from lumina_jax.flow.ode import integrate
from lumina_jax.flow.solvers import Solver

AnyArray = jax.Array | np.ndarray


class Likelihood(NamedTuple):
    """log p(x) of each sample, in nats, and its latent at t = 0."""

    log_density: Float[Array, " b"]
    latent: Float[Array, "b *shape"]


def log_likelihood(
    velocity: Callable[[Any, Any, Any], Any],
    x: Float[AnyArray, "b *shape"],
    signs: Float[AnyArray, "b *shape"],
    grid: Float[AnyArray, " n"],
    *,
    solver: str | Solver,
    rtol: Tolerance = 1e-3,
    atol: Tolerance = 1e-6,
    args: Any = None,
    mask: Float[AnyArray, "..."] | None = None,
    mean: Mean = jnp.mean,
    over_row: Callable[[Array], Array] = lambda total: total,
    samples: SampleNorms | None = None,
) -> Likelihood:
    """The likelihood of a batch of data, exact up to the solver and the estimate of the divergence.

    Args:
      velocity: v of (t, x, args) with times as `ode.integrate` gives them; samples of a batch must not influence each
        other.
      signs: Rademacher noise from `rademacher`; the mean over several results has less variance.
      grid: times from data to noise, decreasing: `sampling_grid(...)[::-1]`.
      mask: 1 where x is data, 0 elsewhere (markers, padding), broadcastable to x. There the velocity must be 0.
      mean, samples: as for `ode.integrate`.
      over_row: the sum over the devices that share the tokens of a row.
    """
    chex.assert_equal_shape([x, signs])
    weight = jnp.broadcast_to(jnp.float32(1) if mask is None else jnp.asarray(mask, jnp.float32), x.shape)
    axes = tuple(range(1, x.ndim))
    signs = jnp.asarray(signs, jnp.float32) * weight

    def drift(t: Float[Array, "..."], state: Any, args: Any) -> Any:
        v, pull_back = jax.vjp(lambda x: velocity(t, x, args), state[0])
        return v, over_row(jnp.sum(pull_back(signs)[0] * signs, axis=axes))

    start = (jnp.asarray(x, jnp.float32), jnp.zeros(x.shape[0], jnp.float32))
    end: Any = integrate(drift, start, grid, solver=solver, rtol=rtol, atol=atol, args=args, mean=mean, samples=samples)
    latent, change = end
    prior = over_row(-0.5 * jnp.sum(weight * (latent**2 + math.log(2 * math.pi)), axis=axes))
    return Likelihood(prior + change, latent)


def rademacher(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent signs, -1 or 1."""
    return jax.random.rademacher(key, shape, jnp.float32)
