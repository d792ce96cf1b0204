"""64-bit seeds and their random keys.

Unless jax runs with 64-bit types, `jax.random.key` uses only the lower 32 bits of a seed, and negative seeds wrap
around. Different seeds would then draw the same picture.
"""

import operator
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_SEED = 2**64 - 1


def check_seed(seed: SupportsIndex, name: str = "seed") -> int:
    """Return the seed as a Python integer; raise ValueError unless 0 <= seed <= LARGEST_SEED."""
    value = operator.index(seed)
    if not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"{name}={value} must be between 0 and 2**64 - 1; choose a seed in that range")
    return value


def key_of_seed(seed: SupportsIndex) -> jax.Array:
    """Return a different random key for each seed; below 2**32 it is that of `jax.random.key`."""
    value = check_seed(seed)
    words = np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
