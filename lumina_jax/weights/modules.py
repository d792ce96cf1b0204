"""Loading tensors into a module.

In: a function that builds the module, named tensors, and the rules between the two. Out: the module, with parameters of
the requested type on the requested devices. The module is not initialised, and the host holds one parameter at a time.
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
    """Return the module that `build()` makes, with the values of `tensors` instead of random ones.

    Args:
      build: makes the module; it is only evaluated abstractly.
      tensors: tensors in the published layout; one parameter is read at a time, so it may be a `TensorFiles`.
      rules: the rules between the published layout and the names of parameters.
      layers: the number of stacked layers.
      dtype: the type of the parameters.
      shardings: the sharding of each parameter by its dotted name; None: the default device holds all.

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
                f"{rule.theirs} gives {name} the shape {found.shape}, but the configuration requires {expected.shape}; "
                "check that the configuration belongs to the checkpoint"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"{rule.theirs} contains values that are not finite; copy the checkpoint again")
        return jax.device_put(found.astype(dtype), None if shardings is None else shardings[name])

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(value, abstract))


def named_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted path, such as `blocks.attention.query.kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters, is_leaf=lambda node: not isinstance(node, dict))
    return {dotted(path): value for path, value in leaves}


def dotted(path: tuple[Any, ...]) -> str:
    """Join the path of a leaf with dots."""
    return ".".join(str(entry.key) for entry in path)
