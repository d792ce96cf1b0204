"""Where the memory of a device goes, by kind.

In: a compiled program, its text read as a `Module`, and the abstract state that it takes. Out: `Memory`, whose kinds
add up to what the compiler reserves.

Parameters, average and moments are shares of arrays whose placement is known. What the forward pass keeps for the
backward pass is found in the program: arrays that the loop over layers fills, one slice a layer; those that the loop of
the backward pass fills are gradients. All other temporaries are one number.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from lumina_jax.aot.hlo import HOST, ArrayShape, Loop, Module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device."""

    parameters: float
    """Those that train, or draw."""
    base: float = 0.0
    """Those that do not train."""
    average: float
    """The moving average of the parameters; 0 for a sampler."""
    moments: float
    """The moments of the optimiser."""
    inputs: float
    """The batch, the random key, and padding of small arrays."""
    activations: float
    """Kept from the forward pass for the backward pass, one slice a layer."""
    gradients: float
    """Stacked over layers as the backward pass makes them."""
    temporaries: float
    """All other arrays that exist when the most memory is used."""
    outputs: float
    """New arrays that do not reuse the memory of an input."""
    program: float
    host: float = 0.0
    """Offloaded activations in the memory of the host. Not part of the total."""

    @property
    def total(self) -> float:
        kinds = dataclasses.asdict(self)
        return float(sum(value for name, value in kinds.items() if name != "host"))


def shard_bytes(tree: Any) -> float:
    """Bytes of one device for abstract arrays with shardings."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        width = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(shape) * width
    return total


def memory(stats: Any, module: Module, layers: int, **trees: Any) -> Memory:
    """The bytes that `compiled.memory_analysis()` counts, by kind.

    Args:
      trees: abstract arrays with shardings, by their kind: parameters, base, average, moments.
    """
    own = dict.fromkeys(("average", "moments"), 0.0) | {kind: shard_bytes(tree) for kind, tree in trees.items()}
    kept, gradients = stacked(module, layers)
    temporaries = float(stats.temp_size_in_bytes)
    activations = min(kept, temporaries)
    gradients = min(gradients, temporaries - activations)
    return Memory(
        **own,
        inputs=float(stats.argument_size_in_bytes) - sum(own.values()),
        activations=activations,
        gradients=gradients,
        temporaries=temporaries - activations - gradients,
        outputs=float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
        program=float(stats.generated_code_size_in_bytes),
        host=float(stats.host_temp_size_in_bytes),
    )


def stacked(module: Module, layers: int) -> tuple[float, float]:
    """Bytes of the arrays that loops over `layers` fill in HBM: those of forward loops, and those of backward loops.

    An array is filled if its first dimension counts the layers and the body of the loop replaces it.
    """
    forward, backward = 0.0, 0.0
    for loop in module.loops():
        if loop.trips is None or layers % loop.trips:
            continue
        total = sum(shape.bytes for shape in _filled(loop, layers) if shape.space != HOST)
        if re.search(r'op_name="[^"]*transpose\(', loop.instruction.attributes):
            backward += total
        else:
            forward += total
    return forward, backward


def _filled(loop: Loop, layers: int) -> list[ArrayShape]:
    """Elements of the loop's tuple that have a slice for each layer and that its body changes."""
    root = loop.body.root
    if root.opcode != "tuple":
        return []
    found = []
    for index, (shape, name) in enumerate(zip(loop.instruction.shapes, root.operands)):
        new = loop.body.instructions[name]
        passed_on = new.opcode == "get-tuple-element" and new.integer("index") == index
        if shape.dims[:1] == (layers,) and len(shape.dims) > 1 and not passed_on:
            found.append(shape)
    return found
