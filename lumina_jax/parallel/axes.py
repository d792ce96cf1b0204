"""The table from names of array dimensions to axes of the mesh, which decides how parameters are sharded.

In: parameters as `nnx.Variable`s, each with `axes` in its metadata: one logical name, or None, for each dimension.
Out: the same tree with a `NamedSharding` instead of each array.

A model names the meaning of a dimension ("embed"), not the devices that hold it, so the same model runs under every
table. FSDP divides each matrix along one dimension, gathers it where it is used, and scatters its gradient. Devices
that share the tokens of a row hold shares of the parameters as well, so "fsdp" stands for the mesh axes of fsdp and
sequence. Tensor parallelism divides the products themselves: by heads in attention, by hidden width in the
feed-forward.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from typing import TypeVar

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lumina_jax.parallel.mesh import AnyMesh, axes_of, axis_size

Rules = Mapping[str, str | None]
Tree = TypeVar("Tree")

LOGICAL = {"fsdp": ("fsdp", "sequence"), "tensor": ("tensor",)}
"""The logical axes of the mesh for each rule."""

SCATTER_MULTIPLE = 256
"""On TPUs the scatter of a gradient along its last dimension compiles to a reduce-scatter if each share is a multiple
of this, and otherwise to an all-reduce."""

FSDP: Rules = {
    "layers": None,  # the scan over layers reads one layer at a time: never divided
    "embed": "fsdp",  # the width of the model
    "heads": None,  # all query heads, flattened with their width
    "kv_heads": None,  # all key or value heads, likewise
    "mlp": None,  # the hidden width of the feed-forward
    "modulation": "fsdp",  # shifts, scales and gates of adaLN, side by side
    "condition": None,  # the embedding of time and caption that feeds adaLN
    "text": "fsdp",  # the width of the caption features
    "patch": None,  # the values of a patch
    "vocab": None,  # rows of an embedding table
}
"""Parameters, gradients and moments are divided over fsdp; each device computes whole products."""

FSDP_TENSOR: Rules = {**FSDP, "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
"""FSDP, with attention heads and the hidden width of the feed-forward divided over tensor."""


def shardings(parameters: Tree, mesh: AnyMesh, rules: Rules) -> Tree:
    """The tree with a `NamedSharding` instead of each array.

    Args:
      parameters: an nnx.State or module, abstract (`jax.eval_shape`) or real; its leaves are `nnx.Variable`s. A
        stacked parameter has one more dimension than names, the first: "layers".
      mesh: from `make_mesh`, or abstract, to plan for devices that do not exist here.
      rules: logical name to "fsdp" or "tensor", or to None: not divided.

    A dimension that is not a multiple of the devices of fsdp is divided over as many of their mesh axes as possible.
    The cost is memory alone, and a warning is logged.

    Raises:
      ValueError: a name is missing from the rules; two dimensions of an array map to one mesh axis; a dimension is
        not divisible by its tensor axis.
    """
    kept: list[str] = []

    def one(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return variable.replace(NamedSharding(mesh, _spec(name, variable, mesh, rules, kept)))

    tree = jax.tree.map_with_path(one, parameters, is_leaf=lambda node: isinstance(node, nnx.Variable))
    if kept:
        logging.getLogger(__name__).warning(
            "Not divisible by the %d devices of fsdp, so each device holds more than its share, or all, of: %s",
            axis_size(mesh, *LOGICAL["fsdp"]),
            "; ".join(kept),
        )
    return tree


def _spec(name: str, variable: nnx.Variable, mesh: AnyMesh, rules: Rules, kept: list[str]) -> PartitionSpec:
    """The mesh axes of each dimension of one parameter; adds the parameter to `kept` if fsdp does not divide it."""
    shape = variable.shape
    axes = _axes(name, variable, rules)
    wanted = _suited_to_tpus(shape, axes, [rules[axis] if axis else None for axis in axes], mesh)
    used = [rule for rule in wanted if rule]
    if len(set(used)) != len(used):
        raise ValueError(
            f"the dimensions of one array must lie on different mesh axes, but parameter {name} with {axes=} "
            f"would lie on {wanted}; change the rules, or name one of its dimensions None"
        )
    spec: list[tuple[str, ...] | str | None] = []
    for dimension, rule in enumerate(wanted):
        over = axes_of(mesh, *LOGICAL[rule]) if rule else ()
        cut = _most_that_divide(shape[dimension], over, mesh)
        if cut != over:
            if rule != "fsdp":
                raise ValueError(
                    f"mesh.{rule}={axis_size(mesh, *LOGICAL[str(rule)])} must divide dimension {axes[dimension]!r} of "
                    f"parameter {name}, but its shape is {shape}; choose another mesh.{rule}"
                )
            kept.append(f"{name} {shape}")
        spec.append(cut if len(cut) > 1 else cut[0] if cut else None)
    return PartitionSpec(*spec)


def _suited_to_tpus(
    shape: tuple[int, ...], axes: tuple[str | None, ...], wanted: list[str | None], mesh: AnyMesh
) -> list[str | None]:
    """The rules for one parameter, changed where fsdp would divide a vector, whose gather costs more time than it saves
    memory, or a last dimension into narrow shares although another dimension is free."""
    devices = axis_size(mesh, *LOGICAL["fsdp"])
    if devices == 1 or "fsdp" not in wanted[-1:]:
        return wanted
    if axes[0] == "layers" and axes[-1] == "modulation" and len(axes) == 3:
        return wanted  # neither gathered nor scattered: parallel/columns.py
    if sum(axis != "layers" for axis in axes) == 1:
        return [*wanted[:-1], None]
    free = [
        dimension
        for dimension, (axis, rule) in enumerate(zip(axes[:-1], wanted))
        if axis not in (None, "layers") and not (rule and axes_of(mesh, *LOGICAL[rule]))
    ]
    whole = [dimension for dimension in free if shape[dimension] % devices == 0]
    if shape[-1] % (devices * SCATTER_MULTIPLE) == 0 or not whole:
        return wanted
    best = max(whole, key=lambda dimension: shape[dimension])
    return [*wanted[:best], "fsdp", *wanted[best + 1 : -1], None]


def _most_that_divide(size: int, over: tuple[str, ...], mesh: AnyMesh) -> tuple[str, ...]:
    """The subset of the mesh axes that divides a dimension into the most equal parts."""
    subsets = (itertools.compress(over, chosen) for chosen in itertools.product((True, False), repeat=len(over)))
    counts = {subset: math.prod(mesh.shape[name] for name in subset) for subset in map(tuple, subsets)}
    return max((subset for subset, count in counts.items() if size % count == 0), key=lambda subset: counts[subset])


def _axes(name: str, variable: nnx.Variable, rules: Rules) -> tuple[str | None, ...]:
    """The logical name of each dimension, "layers" for the one that stacking adds."""
    declared = variable.get_metadata().get("axes")
    if declared is None:
        raise ValueError(f"every parameter must name its dimensions, but {name} has no axes; declare it with param()")
    axes = (*("layers",) * (len(variable.shape) - len(declared)), *declared)
    if len(axes) != len(variable.shape) or len(axes) > len(declared) + 1:
        raise ValueError(
            f"axes must name each dimension except a stacked first one, but parameter {name} has {declared} for shape "
            f"{variable.shape}; change its declaration"
        )
    unknown = sorted({axis for axis in axes if axis is not None} - set(rules))
    if unknown:
        raise ValueError(
            f"dimensions must have names of the rules table, but parameter {name} has {unknown}; choose from "
            f"{sorted(rules)}, or add the name to parallel/axes.py"
        )
    return axes
