"""Our own layout of weights: a folder with config.json and model.safetensors, the layers stacked.

In: such a folder, which `lumina convert --to jax` writes. Out: the model's configuration, and its
parameters, each born on the devices that keep it. Only the part that one device keeps is on the host at a time.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.run import read_model as read_model
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.modules import dotted, named_parameters
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Tensors, check_weight


def load_parameters(
    folder: str | Path, config: ModelConfig, shardings: dict[str, Any] | None = None, dtype: DTypeLike = jnp.float32
) -> dict[str, Any]:
    """The parameters of a converted folder, nested as `nnx.to_pure_dict` has them.

    Args:
      shardings: where each parameter lives: the same nested tree, or flat by dotted names; None: on the default device.
      dtype: of the parameters.

    Raises:
      ValueError: parameters are missing, unknown, of another shape than the configuration says, or not finite; a file
        is damaged. The message names them.
    """
    tensors = TensorFiles(folder)
    check_parameters(tensors, config)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = None if shardings is None else named_parameters(shardings)

    def value(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> jax.Array:
        name = dotted(path)
        place = here if places is None else places[name]
        read: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            if str(index) not in read:
                read[str(index)] = _finite(tensors, name, index).astype(dtype)
            return read[str(index)]

        return jax.make_array_from_callback(expected.shape, place, part)

    return jax.tree_util.tree_map_with_path(value, nnx.to_pure_dict(abstract_model(config)[1]))


@functools.lru_cache(maxsize=4)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of each parameter by its dotted name; no value is computed."""
    leaves = named_parameters(nnx.to_pure_dict(abstract_model(config)[1]))
    return MappingProxyType({name: tuple(leaf.shape) for name, leaf in leaves.items()})


def check_parameters(tensors: Tensors, config: ModelConfig, origins: Mapping[str, str] | None = None) -> None:
    """Names and shapes are those of a model of this configuration.

    Args:
      origins: the name in the checkpoint of each parameter, where it has another.

    Raises:
      ValueError: they are not; the message lists them.
    """
    shapes = parameter_shapes(config)
    missing, unknown = sorted(shapes.keys() - set(tensors)), sorted(set(tensors) - shapes.keys())
    if missing or unknown:
        raise ValueError(
            f"the tensors do not match this model: missing {listed(missing)}, unknown {listed(unknown)}; "
            "check config.json against the weights"
        )
    wrong = [
        f"{(origins or {}).get(name, name)} makes {name} of shape {tensors.shape(name)}, which should be {shape}"
        for name, shape in shapes.items()
        if tensors.shape(name) != shape
    ]
    for name in shapes:
        check_weight((origins or {}).get(name, name), tensors.dtype(name))
    if wrong:
        raise ValueError(f"shapes must be those of the configuration, but {listed(wrong, most=5)}; check config.json")


def _finite(tensors: Tensors, name: str, index: tuple[slice, ...] | None) -> np.ndarray:
    values = tensors.part(name, index) if index else tensors[name]
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite; convert the weights again")
    return values
