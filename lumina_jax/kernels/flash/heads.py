"""Heads side by side in the lanes of [tokens, heads * width], and the matrix products of the attention kernels.

Queries, keys and values keep the layout of the projections that made them: nothing is transposed in HBM, and no head is
moved in VMEM. A head narrower than its registers is read together with its neighbours. Where a head begins in one
register and ends in the next, its end is read into the lanes before its beginning: a head of 96 values that begins at
lane 64 has its last 32 values in lanes 0 to 31. A product does not depend on the order of lanes, as long as both sides
have the same order and one side has zeros in the lanes of other heads. So queries are read `alone`, keys and values
with their neighbours, and only the head's lanes of a result are written.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.flash.blocks import ROWS_OF_A_REGISTER

TRANSPOSED = (((1,), (1,)), ((), ()))
"""x y^T: contract the second axis of both."""
FIRST_AXES = (((0,), (0,)), ((), ()))
"""x^T y."""
PLAIN = (((1,), (0,)), ((), ()))
"""x y."""

Contraction = tuple[tuple[tuple[int], tuple[int]], tuple[tuple[()], tuple[()]]]
"""The contracted axes of both sides of a product, and its batch axes, of which there are none."""
Index = Int[Array, ""]
"""A whole number that a kernel reads or counts while it runs."""
Scalar = int | Index
"""The same, or one that is known when the kernel is traced."""
Span = slice | pl.Slice
"""Some rows of a block."""
BlockShape = tuple[int | None, ...]
"""The shape of a block; None for a dimension of which it has one index."""
BlockIndex = tuple[Scalar, ...]
"""The indices of a block among all blocks of its array."""


def product(x: Float[Array, "a b"], y: Float[Array, "c d"], axes: Contraction = PLAIN) -> Float[Array, "e f"]:
    """A matrix product summed in float32; of float32 values in full precision."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y.astype(x.dtype), axes, precision=precision, preferred_element_type=jnp.float32)


class RegisterPiece(NamedTuple):
    """Lanes first..end of one register of a block, which a head has in the same lanes of one of its registers.

    Attributes:
      register: index among the block's registers, from the one in which the head begins.
      to: index among the head's registers.
    """

    register: int
    to: int
    first: Scalar
    end: Scalar

    @property
    def is_whole(self) -> bool:
        """Whether the piece is known to be all lanes of its register."""
        return isinstance(self.first, int) and isinstance(self.end, int) and self.first <= 0 and self.end >= LANES


@dataclass(frozen=True)
class Head:
    """One head of a block, read into as many registers as its width needs.

    Attributes:
      block: [rows, lanes], whole registers of lanes.
      start: the head's first lane.
      width: values of the head.
    """

    block: jax.Ref
    start: Scalar
    width: int

    @property
    def rows(self) -> int:
        return self.block.shape[0]

    @property
    def offset(self) -> Scalar:
        """The first lane within the first register."""
        return self.start % LANES if isinstance(self.start, int) else jnp.bitwise_and(self.start, LANES - 1)

    def _pieces(self) -> list[RegisterPiece]:
        if self.width % LANES == 0:
            return [RegisterPiece(index, index, 0, LANES) for index in range(self.width // LANES)]
        count, offset = registers(self.width), self.offset
        pieces = [RegisterPiece(0, 0, offset, offset + self.width)]
        pieces += [RegisterPiece(index, index, 0, offset + self.width - index * LANES) for index in range(1, count)]
        beyond = offset + self.width - count * LANES
        if LANES % self.width and not (isinstance(beyond, int) and beyond <= 0):
            pieces.append(RegisterPiece(count, 0, 0, beyond))
        return pieces

    def _register(self, index: int) -> Span:
        """The lanes of a register in the block; those of the last register where the head ends before this one."""
        last = self.block.shape[1] - LANES
        if isinstance(self.start, int):
            first = min(self.start // LANES * LANES + index * LANES, last)
            return slice(first, first + LANES)
        first = jnp.bitwise_and(self.start, -LANES) + index * LANES
        return pl.ds(pl.multiple_of(jnp.minimum(first, last), LANES), LANES)

    def read(self, rows: Span) -> Float[Array, "rows lanes"]:
        """Some rows, with the neighbours that share the head's registers."""
        parts = [self.block[rows, self._register(index)] for index in range(registers(self.width))]
        for piece in self._pieces()[len(parts) :]:
            parts[0] = _within(piece, self.block[rows, self._register(piece.register)], parts[0])
        return _beside(parts)

    def alone(self, rows: Span, like: "Head | None" = None) -> Float[Array, "rows lanes"]:
        """Some rows with zeros around the head, rotated to the lanes in which the head `like` is read."""
        parts: list[Array | None] = [None] * registers(self.width)
        for piece in self._pieces():
            value, old = self.block[rows, self._register(piece.register)], parts[piece.to]
            parts[piece.to] = _within(piece, value, jnp.zeros_like(value) if old is None else old)
        value = _beside([part for part in parts if part is not None])
        return value if like is None else _rotated(value, like.offset - self.offset)

    def write(
        self,
        rows: Span,
        value: Float[Array, "rows lanes"],
        like: "Head | None" = None,
        only: Bool[Array, "rows 128"] | None = None,
    ) -> None:
        """Write some rows (of them only those where `only` is true) of a value in the lanes of the head `like`."""
        value = (value if like is None else _rotated(value, self.offset - like.offset)).astype(self.block.dtype)
        for piece in self._pieces():
            at, part = self._register(piece.register), value[:, piece.to * LANES : (piece.to + 1) * LANES]
            part = part if piece.is_whole else _within(piece, part, self.block[rows, at])
            self.block[rows, at] = part if only is None else jnp.where(only, part, self.block[rows, at])


@dataclass(frozen=True)
class Heads:
    """The heads of one block [rows, lanes], as it came from HBM or will go there."""

    block: jax.Ref
    width: int

    def head(self, index: Scalar) -> Head:
        return Head(self.block, index * self.width, self.width)


def clear_beyond(block: jax.Ref, rows: int, lanes: int) -> None:
    """Zeros after the first rows and lanes of a block that ends beyond its array: a transfer leaves there what was."""
    count, width = block.shape
    if rows < count:
        first = rows // ROWS_OF_A_REGISTER * ROWS_OF_A_REGISTER
        for start in range(0, width, LANES):
            part = block[first:, start : start + LANES]
            kept = first + jax.lax.broadcasted_iota(jnp.int32, part.shape, 0) < rows
            block[first:, start : start + LANES] = jnp.where(kept, part, jnp.zeros_like(part))
    if lanes < width:
        part = block[:, width - LANES :]
        kept = width - LANES + jax.lax.broadcasted_iota(jnp.int32, part.shape, 1) < lanes
        block[:, width - LANES :] = jnp.where(kept, part, jnp.zeros_like(part))


def registers(width: int) -> int:
    """The number of registers that hold `width` values."""
    return -(-width // LANES)


def _beside(parts: list[Array]) -> Float[Array, "rows lanes"]:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _within(
    piece: RegisterPiece, inside: Float[Array, "rows 128"], outside: Float[Array, "rows 128"]
) -> Float[Array, "rows 128"]:
    """The piece's lanes of `inside`, and the other lanes of `outside`."""
    if piece.is_whole:
        return inside
    lane = jax.lax.broadcasted_iota(jnp.int32, inside.shape, 1)
    return jnp.where((lane >= piece.first) & (lane < piece.end), inside, outside)


def _rotated(value: Float[Array, "rows lanes"], by: Scalar) -> Float[Array, "rows lanes"]:
    """Lanes moved up by `by`, and from the end to the beginning."""
    by = jnp.bitwise_and(by, value.shape[1] - 1)
    return pltpu.roll(value.astype(jnp.float32), by, 1).astype(value.dtype)


def column(row: Int[Array, "1 n"]) -> Int[Array, "n 128"]:
    """A row of numbers as a column, repeated in every lane."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def across(columns: Array, width: int) -> Array:
    """A column repeated in 128 lanes, repeated in `width` of them."""
    return columns if width == LANES else jnp.tile(columns, (1, width // LANES))


def row_sums(x: Float[Array, "n m"]) -> Float[Array, "1 n"]:
    """The sum of each row of x, as a row of numbers."""
    return jnp.sum(x.T, axis=0, keepdims=True)


def columns_to_rows(columns: jax.Ref, rows: jax.Ref, heads: list[Scalar]) -> None:
    """Write numbers that lie by query along sublanes, with a head in each lane, as a row of each head."""

    @pl.loop(0, columns.shape[0] // LANES)
    def _(index: Index) -> None:
        at = pl.ds(pl.multiple_of(index * LANES, LANES), LANES)
        turned = columns[at, :].T
        for lane, head in enumerate(heads):
            rows[head, :, at] = turned[lane : lane + 1, :]
