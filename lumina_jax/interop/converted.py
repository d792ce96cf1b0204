"""The layout of lumina_jax: a folder with config.json and model.safetensors, whose layers are stacked.

In: such a folder, which `lumina convert --to jax` writes. Out: the model's configuration, and its parameters, created
sharded on the devices. The host holds the shard of one device at a time, and of parameters that are quantised while
they are read, the codes of one and a layer of it.
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
from lumina_jax.models.quantised import QuantisedWeight
from lumina_jax.run import read_model as read_model
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.modules import dotted, named_parameters
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Tensors, check_weight


def load_parameters(
    folder: str | Path,
    config: ModelConfig,
    shardings: dict[str, Any] | None = None,
    dtype: DTypeLike | dict[str, Any] = jnp.float32,
) -> dict[str, Any]:
    """Load the parameters of a converted folder, nested as by `nnx.to_pure_dict`.

    Args:
      shardings: the sharding of each parameter, as the same nested tree or by dotted names; None: the default device.
        Parameters for which this is a `QuantisedWeight` of shardings become such weights.
      dtype: the type of all parameters, or of each, nested like `shardings`; that of quantised ones does not count.

    Raises:
      ValueError: parameters are missing, unknown, not finite or of a shape that does not match the configuration, or a
        file is damaged. The message names them.
    """
    tensors = TensorFiles(folder)
    check_parameters(tensors, config)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    by_name = None if shardings is None else named_parameters(shardings)
    types = named_parameters(dtype) if isinstance(dtype, dict) else dict.fromkeys(tensors, dtype)

    def value(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> Any:
        name = dotted(path)
        sharding = default if by_name is None else by_name[name]
        if isinstance(sharding, QuantisedWeight):
            return _quantised(tensors, name, sharding)
        read: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            if str(index) not in read:
                read[str(index)] = _finite(tensors, name, index).astype(types[name])
            return read[str(index)]

        return jax.make_array_from_callback(expected.shape, sharding, part)

    return jax.tree_util.tree_map_with_path(value, nnx.to_pure_dict(abstract_model(config)[1]))


@functools.lru_cache(maxsize=4)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each parameter by its dotted name, without computing values."""
    leaves = named_parameters(nnx.to_pure_dict(abstract_model(config)[1]))
    return MappingProxyType({name: tuple(leaf.shape) for name, leaf in leaves.items()})


def check_parameters(tensors: Tensors, config: ModelConfig, origins: Mapping[str, str] | None = None) -> None:
    """Check that names and shapes are those of a model with this configuration.

    Args:
      origins: for messages, the name of each parameter in the checkpoint, if that differs.

    Raises:
      ValueError: they are not; the message lists the differences.
    """
    shapes = parameter_shapes(config)
    missing, unknown = sorted(shapes.keys() - set(tensors)), sorted(set(tensors) - shapes.keys())
    if missing or unknown:
        raise ValueError(
            f"the tensors do not match this model: missing {listed(missing)}, unknown {listed(unknown)}; "
            "check that config.json belongs to the weights"
        )
    wrong = [
        f"{(origins or {}).get(name, name)} gives {name} the shape {tensors.shape(name)} instead of {shape}"
        for name, shape in shapes.items()
        if tensors.shape(name) != shape
    ]
    for name in shapes:
        check_weight((origins or {}).get(name, name), tensors.dtype(name))
    if wrong:
        raise ValueError(f"shapes must match the configuration, but {listed(wrong, most=5)}; check config.json")


def _quantised(tensors: Tensors, name: str, shardings: QuantisedWeight) -> QuantisedWeight:
    """A stacked parameter, quantised layer by layer."""
    quantise = jax.jit(type(shardings).of)
    layers = [
        jax.device_get(quantise(_finite(tensors, name, layer)[None], layer)) for layer in range(tensors.shape(name)[0])
    ]
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *layers)
    return jax.tree.map(
        lambda values, sharding: jax.make_array_from_callback(values.shape, sharding, lambda index: values[index]),
        whole,
        shardings,
    )


def _finite(tensors: Tensors, name: str, index: tuple[slice, ...] | int | None) -> np.ndarray:
    values = tensors[name] if index is None or index == () else tensors.part(name, index)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains values that are not finite; convert the weights again")
    return values
