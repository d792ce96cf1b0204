"""Modules filled with the tensors of a file.

In: what builds the module, named tensors, and the rules between the two. Out: the module, its parameters in the type
and on the devices that were asked for. The module is never initialised: only one parameter at a time is on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumina_jax.weights.rules import Rule, check_names, parameter

Module = TypeVar("Module", bound=nnx.Module)


def load_module(
    build: Callable[[], Module],
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    *,
    layers: int,
    dtype: jnp.dtype = jnp.float32,
    shardings: dict[str, Any] | None = None,
) -> Module:
    """The module that `build()` would make, with the values of `tensors` in the place of random ones.

    Args:
      tensors: theirs by name; read one parameter at a time, so it may be a `TensorFiles`.
      dtype: of the parameters.
      shardings: where each parameter lies, by its dotted name; None: on the default device.

    Raises:
      ValueError: tensors are missing, unknown, of the wrong shape or not finite; the message names them.
    """
    check_names(list(tensors), rules, layers=layers)
    graph, state = nnx.split(nnx.eval_shape(build))
    abstract = nnx.to_pure_dict(state)
    by_name = {rule.ours: rule for rule in reversed(rules)}

    def value(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> jax.Array:
        name = dotted(path)
        rule = by_name[name]
        found = parameter(tensors, rule, layers=layers)
        if found.shape != expected.shape:
            raise ValueError(
                f"{rule.theirs} makes {name} of shape {found.shape}, but the configuration asks for "
                f"{expected.shape}; check the configuration against the checkpoint"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"{rule.theirs} holds values that are not finite; copy the checkpoint again")
        return jax.device_put(found.astype(dtype), None if shardings is None else shardings[name])

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(value, abstract))


def named_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted path, such as `blocks.attention.query.kernel`."""
    return {dotted(path): value for path, value in jax.tree_util.tree_leaves_with_path(parameters)}


def dotted(path: tuple[Any, ...]) -> str:
    """The path of a leaf as one name."""
    return ".".join(str(entry.key) for entry in path)
