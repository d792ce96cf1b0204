"""The type in which each parameter of a model is held while it draws.

In: a model's configuration, and a type. Out: a type for each parameter. With "bfloat16" the matrices of the layers, of
the final layer and of the text layers are bfloat16, which halves the memory. All else stays float32, because it is used
in float32: norms, biases, gates, the embeddings of time, patches and labels, and the projection of the pooled caption.
That is 6 % of the smallest published model, and 0.1 % of 5B.

A model that computes in bfloat16 casts exactly these matrices where it uses them, so that it draws the same samples bit
for bit with either type. With all else in bfloat16 as well, the velocities of two trained models changed by 0.4 to
1.3 %.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.config.sample import WeightsName
from lumina_jax.models.flag_dit import abstract_model

CAST_PARTS = ("blocks", "final_layer", "text_layers")
"""The parts of a model whose matrices are cast to `model.compute_dtype` where they are used."""


def weights_type(config: ModelConfig, weights: WeightsName) -> str:
    """The type of the matrices; "auto" is `model.compute_dtype`."""
    return config.compute_dtype if weights == "auto" else weights


def parameter_types(config: ModelConfig, weights: WeightsName) -> dict[str, Any]:
    """The type of each parameter, nested as by `nnx.to_pure_dict`."""
    matrices = jnp.dtype(weights_type(config, weights))

    def one(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        is_cast = path[0].key in CAST_PARTS and len(variable.get_metadata()["axes"]) > 1
        return variable.replace(matrices if is_cast else jnp.dtype(jnp.float32))

    parameters = abstract_model(config)[1]
    is_leaf = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map_with_path(one, parameters, is_leaf=is_leaf))


def abstract_parameters(config: ModelConfig, weights: WeightsName, shardings: dict[str, Any]) -> dict[str, Any]:
    """Shape, type and sharding of each parameter, nested as by `nnx.to_pure_dict`."""
    shapes = nnx.to_pure_dict(abstract_model(config)[1])
    return jax.tree.map(
        lambda leaf, dtype, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        shapes,
        parameter_types(config, weights),
        shardings,
    )


def device_bytes(parameters: dict[str, Any]) -> int:
    """Bytes that a device holds of abstract parameters."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters)
    )


def cast(parameters: dict[str, Any], config: ModelConfig, weights: WeightsName) -> dict[str, Any]:
    """The parameters in other types. Those that change are deleted one after another, so that memory never holds all of
    them twice."""

    def one(value: jax.Array, dtype: Any) -> jax.Array:
        if value.dtype == dtype:
            return value
        changed = value.astype(dtype).block_until_ready()
        value.delete()
        return changed

    return jax.tree.map(one, parameters, parameter_types(config, weights))


def matrix_type(parameters: dict[str, Any]) -> str:
    """The type of the matrices of these parameters."""
    return str(parameters["final_layer"]["linear"]["kernel"].dtype)
