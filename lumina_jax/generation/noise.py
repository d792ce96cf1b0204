"""The noise that each sample starts from, by its seed alone.

In: one seed for all samples, or a seed for each. Out: for a batch of samples the noise [b f h w c] at the start of the
path, and a random key for what a stochastic solver adds on the way.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lumina_jax.seeds import key_of_seed


class NoiseOrigin(NamedTuple):
    """What decides the noise of a sample: a seed, and the number of samples of that seed before it."""

    seed: int
    before: int


def origins(count: int, seed: int, seeds: Sequence[int] | None) -> list[NoiseOrigin]:
    """The origin of each of `count` samples: of `seed` one after the other, or of each of `seeds` the first."""
    return [NoiseOrigin(seed, index) for index in range(count)] if seeds is None else [NoiseOrigin(s, 0) for s in seeds]


def noise_of(
    chosen: Sequence[NoiseOrigin], size: tuple[int, ...]
) -> tuple[Float[Array, "b f h w c"], Key[Array, " b"]]:
    """Standard normal noise of `size` for each origin, and a key for the path from there."""
    keys = jnp.stack([key_of_seed(origin.seed) for origin in chosen])
    return _drawn(keys, jnp.asarray([origin.before for origin in chosen]), size)


@functools.partial(jax.jit, static_argnums=2)
def _drawn(
    keys: Key[Array, " b"], indices: Int[Array, " b"], size: tuple[int, ...]
) -> tuple[Float[Array, "b f h w c"], Key[Array, " b"]]:
    of_sample = jax.vmap(jax.random.fold_in)(keys, indices)
    of_start, of_path = jnp.unstack(jax.vmap(jax.random.split)(of_sample), axis=1)
    return jax.vmap(lambda key: jax.random.normal(key, size))(of_start), of_path
