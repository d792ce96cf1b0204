"""What the Pallas kernels of a traced program transfer while nothing is computed.

A kernel's grid steps overlap with the transfers of their neighbours' blocks, but the first step waits for its own, and
the results of the last are written when nothing follows. In: a jaxpr. Out: bytes of these blocks, by kernel.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


class KernelEdges(NamedTuple):
    """Bytes of the blocks that the first grid step of a kernel waits for, and that the last one leaves."""

    first: float
    last: float


def kernel_edges(program: Jaxpr) -> dict[str, KernelEdges]:
    """The edges of each kernel by its name; of several calls of one name, those of the one that transfers most."""
    found: dict[str, KernelEdges] = {}
    for call in _kernel_calls(program):
        grid = call.params["grid_mapping"]
        blocks = [_block_bytes(block) for block in grid.block_mappings]
        edges = KernelEdges(sum(blocks[: grid.num_inputs]), sum(blocks[grid.num_inputs :]))
        name = call.params["name"]
        found[name] = max(found.get(name, edges), edges, key=sum)
    return found


def _block_bytes(block: Any) -> float:
    """Bytes of the block that one grid step transfers; none of an array that stays in HBM or in scalar memory."""
    memory = str(getattr(block.transformed_block_aval, "memory_space", ""))
    if any(space in memory for space in ("any", "hbm", "smem")):
        return 0.0
    shape = block.ref_aval.inner_aval.shape
    return float(jax.ShapeDtypeStruct(shape, block.ref_aval.inner_aval.dtype).size * block.ref_aval.dtype.itemsize)


def _kernel_calls(program: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in program.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
                if _is_program(value):
                    yield from _kernel_calls(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)
