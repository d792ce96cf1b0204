"""Models with random parameters, none of which is zero, so that no part of a network can hide."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumina_jax.models.flag_dit import FlagDiT, abstract_model


def random_parameters(config, seed=0):
    """Weights of norms near 1, products that keep the size of their input, everything else of size 0.2."""
    random = np.random.default_rng(seed)

    def value(path, leaf):
        normal = random.standard_normal(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator=".").split(".")[-1]
        if name == "weight":
            return jnp.asarray(1 + 0.1 * normal, jnp.float32)
        return jnp.asarray((leaf.shape[-2] ** -0.5 if name == "kernel" else 0.2) * normal, jnp.float32)

    return jax.tree.map_with_path(value, nnx.to_pure_dict(abstract_model(config)[1]))


def random_model(config, seed=0) -> FlagDiT:
    return nnx.merge(abstract_model(config)[0], random_parameters(config, seed))
