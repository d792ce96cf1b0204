"""How kernels of matrix products cut the tokens of a row, and what they are made of.

In: tokens [b l m]. Out: blocks of tokens, each of which is multiplied in a few chunks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import Chip
from lumina_jax.kernels.flash.blocks import known_chip
from lumina_jax.kernels.flash.plan import Interpret, asked_vmem
from lumina_jax.kernels.stacked import Matrix, StackedMatrix, array, layer_index

MOST_ROWS, CHUNKS = 1408, (384, 768)
"""The most tokens of a block; tokens that are multiplied together, from and to."""
SUBLANES = 16
"""Rows of a register of bfloat16."""
STEP = 32
"""Tokens whose products take as long as what a block of tokens costs besides."""

Tokens = Float[Array, "b l m"]


class TokenBlocks(NamedTuple):
    """How a row is cut."""

    chunk: int
    chunks: int

    @property
    def rows(self) -> int:
        """Tokens of a block."""
        return self.chunk * self.chunks

    @property
    def slices(self) -> list[slice]:
        """The chunks of a block."""
        return [slice(start, start + self.chunk) for start in range(0, self.rows, self.chunk)]


def refusal(x: Tokens, weights: Sequence[Any], with_kernels: Sequence[str]) -> str | None:
    """Why no kernel multiplies these tokens with these matrices; None: one may, on the chips `with_kernels`."""
    chip, length = known_chip(), long_rows(x).shape[1]
    if chip is None or chip.name not in with_kernels:
        return f"they serve {', '.join(with_kernels)}"
    if not all(isinstance(weight, jax.Array | StackedMatrix) for weight in weights):
        return "a weight has an adapter, or few bits"
    if x.dtype != jnp.bfloat16:
        return f"activations are {x.dtype}"
    if length < CHUNKS[0]:
        return f"{length} tokens are fewer than {CHUNKS[0]}"
    return None


class Kernel(NamedTuple):
    """A kernel of products over a grid of rows, blocks of tokens and steps that share their sums."""

    grid: tuple[int, int, int]
    inputs: Sequence[pl.BlockSpec]
    """Of what is multiplied with the matrices."""
    weights: Sequence[Matrix]
    matrices: Sequence[pl.BlockSpec]
    """Of the weights."""
    outputs: Sequence[pl.BlockSpec]
    results: Sequence[jax.ShapeDtypeStruct]
    sums: Sequence[Any]
    """Scratch memory."""
    step_bytes: int
    """Vector memory of a grid step."""
    cost: pl.CostEstimate

    def call(
        self, body: Callable[..., None], name: str, chip: Chip, interpret: Interpret
    ) -> Callable[..., Sequence[Array]]:
        """The call with this body, a function of the inputs."""
        scalars = layer_index(self.weights)
        called = pl.pallas_call(
            lambda *refs: body(*refs[len(scalars) :]),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(scalars),
                grid=self.grid,
                in_specs=[*self.inputs, *self.matrices],
                out_specs=self.outputs,
                scratch_shapes=self.sums,
            ),
            out_shape=self.results,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=asked_vmem(self.step_bytes, chip),
            ),
            cost_estimate=self.cost,
            interpret=interpret,
            name=name,
        )
        return lambda *inputs: called(*scalars, *inputs, *map(array, self.weights))


def cut(length: int, chip: Chip, step_bytes: Callable[[int], int]) -> TokenBlocks | None:
    """Large blocks that cover a row with little beyond it, and take half of the vector memory; None: none does.

    `step_bytes` gives the vector memory of a grid step from the tokens of a block.
    """
    found = []
    for count in range(1, pl.cdiv(length, CHUNKS[0]) + 1):
        rows = pl.cdiv(length, count)
        for chunks in range(pl.cdiv(rows, CHUNKS[1]), max(1, rows // CHUNKS[0]) + 1):
            blocks = TokenBlocks(pl.cdiv(pl.cdiv(rows, chunks), SUBLANES) * SUBLANES, chunks)
            if blocks.rows <= MOST_ROWS and 2 * step_bytes(blocks.rows) <= chip.vmem:
                found.append((count * (blocks.rows + STEP), blocks))
    return min(found, default=(0, None), key=lambda one: one[0])[1]


def long_rows(x: Tokens) -> Float[Array, "r n m"]:
    """Short rows as one. Long ones stay apart: XLA would write the shifts and scales of each row for all its tokens
    before it puts rows together."""
    return x if x.shape[1] >= MOST_ROWS // 2 else x.reshape(1, -1, x.shape[2])


def joined_rows(x: Float[Array, "b l w"]) -> Float[Array, "n w"]:
    """All rows as one."""
    return x.reshape(-1, x.shape[2])


def product(x: Array, weight: Array, dimension: int) -> Array:
    """The product, float32, over the last axis of `x` and one of the weight."""
    dimensions = ((1,), (dimension,)), ((), ())
    return jax.lax.dot_general(x, weight, dimensions, preferred_element_type=jnp.float32)
