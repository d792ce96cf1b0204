"""Heads side by side in the lanes of [tokens, heads * width], and the matrix products of the attention kernels.

Queries, keys and values keep the layout of the projections that made them, so that nothing is transposed in HBM. Heads
whose width is a multiple of 128 lanes are read where they lie; others are first moved, in VMEM, to the front of a
register each.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
ROWS = 256
"""Rows moved at a time."""
TRANSPOSED = (((1,), (1,)), ((), ()))
"""x y^T: contract the second axis of both."""
FIRST_AXES = (((0,), (0,)), ((), ()))
"""x^T y."""
PLAIN = (((1,), (0,)), ((), ()))

Ref = Any
"""A block of memory inside a kernel; its type is not public."""


def product(x: Float[Array, "a b"], y: Float[Array, "c d"], axes: Any = PLAIN) -> Float[Array, "e f"]:
    """A matrix product summed in float32; of float32 values in full precision."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y.astype(x.dtype), axes, precision=precision, preferred_element_type=jnp.float32)


def aligned(width: int) -> bool:
    return width % LANES == 0


def scratch_for(rows: int, heads: int, width: int, dtype: Any) -> list[Any]:
    """Where `gather` puts heads; nothing where they are read in place."""
    return [] if aligned(width) else [pltpu.VMEM((heads, rows, width), dtype)]


class Heads:
    """The heads of one block.

    Attributes:
      block: [rows, heads * width], as it came from HBM or will go there.
      gathered: [heads, rows, width] in VMEM, or None where heads are aligned.
    """

    def __init__(self, block: Ref, gathered: Ref | None, width: int):
        self.block, self.gathered, self.width = block, gathered, width
        self.rows, self.count = block.shape[0], block.shape[1] // width

    def head(self, index: Any) -> Ref:
        """[rows, width] of one head, to read or to write."""
        if self.gathered is not None:
            return self.gathered.at[index]
        if self.count == 1:
            return self.block
        return self.block.at[:, pl.ds(pl.multiple_of(index * self.width, LANES), self.width)]

    def gather(self) -> None:
        """Move the heads out of the block."""
        gathered = self.gathered
        if gathered is not None:

            def move(rows: Any) -> None:
                for head in range(self.count):
                    gathered[head, rows, :] = self.block[rows, head * self.width : (head + 1) * self.width]

            _in_steps(self.rows, move)

    def scatter(self) -> None:
        """Move the heads into the block."""
        gathered = self.gathered
        if gathered is not None:

            def move(rows: Any) -> None:
                for head in range(self.count):
                    self.block[rows, head * self.width : (head + 1) * self.width] = gathered[head, rows, :].astype(
                        self.block.dtype
                    )

            _in_steps(self.rows, move)


def _in_steps(rows: int, work: Any) -> None:
    step = next(size for size in (ROWS, LANES, rows) if rows % size == 0)
    if step == rows:
        work(pl.ds(0, rows))
        return

    @pl.loop(0, rows // step)
    def _(index):
        work(pl.ds(pl.multiple_of(index * step, step), step))


def column(row: Int[Array, "1 n"]) -> Int[Array, "n 128"]:
    """A row of numbers as a column, repeated in every lane."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def across(columns: Array, width: int) -> Array:
    """A column repeated in 128 lanes, repeated in `width` of them."""
    return columns if width == LANES else jnp.tile(columns, (1, width // LANES))


def row_sums(x: Float[Array, "n m"]) -> Float[Array, "1 n"]:
    """The sum of each row of x, as a row of numbers."""
    return jnp.sum(x.T, axis=0, keepdims=True)
