"""Seeds of 64 bits, and the random keys they stand for.

`jax.random.key` keeps only the lower 32 bits of a seed, unless jax computes in 64 bits, and counts negative seeds from
the top, so that different seeds would draw the same picture.
"""

import operator
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_SEED = 2**64 - 1


def check_seed(seed: SupportsIndex, name: str = "seed") -> int:
    """The seed as an integer of Python; ValueError unless 0 <= seed <= LARGEST_SEED."""
    value = operator.index(seed)
    if not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"{name}={value} must lie between 0 and 2**64 - 1; other seeds would repeat these")
    return value


def key_of_seed(seed: SupportsIndex) -> jax.Array:
    """The random key of a seed, a different one for each; below 2**32 that of `jax.random.key`."""
    value = check_seed(seed)
    words = np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
