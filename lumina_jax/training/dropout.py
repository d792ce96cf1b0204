"""Dropout of adapters: each training step leaves out some inputs of each, at random.

In: what trains, and a key. Out: factors for the rows of the A of each adapter, 0 or 1 / (1 - dropout). As
x A = sum of x_i A_i over the inputs i, a row of A that is 0 leaves out input i, for all tokens of the batch. So dropout
is a change of the parameters, of which the network knows nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lumina_jax.models.adapters import Decomposed, Factors, Trained

Masks = dict[str, Float[Array, "*n i 1"]]
"""By the names of adapters."""


def dropout_masks(trained: Mapping[str, Any], key: Key[Array, ""], dropout: float) -> Masks:
    """A factor for each input of each adapter, of which the mean is 1."""
    adapters = {name: value for name, value in trained.items() if isinstance(value, Factors | Decomposed)}
    return {
        name: jax.random.bernoulli(jax.random.fold_in(key, index), 1 - dropout, (*value.a.shape[:-1], 1))
        / (1 - dropout)
        for index, (name, value) in enumerate(sorted(adapters.items()))
    }


def masked(trained: Trained, masks: Masks) -> Trained:
    """Adapters with their A multiplied by the masks. Of gradients of the result it makes gradients of what it was made
    of."""
    return {
        name: value._replace(a=value.a * masks[name].astype(jnp.float32))
        if isinstance(value, Factors | Decomposed) and name in masks
        else value
        for name, value in trained.items()
    }
