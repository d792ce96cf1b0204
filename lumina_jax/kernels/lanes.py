"""Heads side by side in the lanes of [tokens, heads * width], and the matrix products of the attention kernels.

Queries, keys and values keep the layout of the projections that made them: nothing is transposed in HBM, and no head is
moved in VMEM. A head narrower than its registers is read with its neighbours, and where it begins in one register and
ends in the next, its end takes the place of the neighbour before its beginning: a head of 96 that begins at lane 64 has
its last 32 values in lanes 0 to 31. Products do not ask for the order of lanes, only that both sides have the same, and
zeros on one side for what is not of the head. So queries are read `alone`, keys and values as they are, and of the
result only the head's own lanes are written.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.chips import LANES

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


class Piece(NamedTuple):
    """Lanes of one register of a block that a head has in one of its own."""

    register: int
    own: int
    first: Any
    end: Any


@dataclass(frozen=True)
class Head:
    """One head of a block, in as many registers as its width needs.

    Attributes:
      block: [rows, lanes], whole registers of lanes.
      start: the head's first lane.
      width: its values.
    """

    block: Ref
    start: Any
    width: int

    @property
    def rows(self) -> int:
        return self.block.shape[0]

    @property
    def offset(self) -> Any:
        """The first lane within the first register."""
        return self.start % LANES if isinstance(self.start, int) else jnp.bitwise_and(self.start, LANES - 1)

    def _pieces(self) -> list[Piece]:
        if self.width % LANES == 0:
            return [Piece(index, index, 0, LANES) for index in range(self.width // LANES)]
        count, offset = registers(self.width), self.offset
        pieces = [Piece(0, 0, offset, offset + self.width)]
        pieces += [Piece(index, index, 0, offset + self.width - index * LANES) for index in range(1, count)]
        beyond = offset + self.width - count * LANES
        if LANES % self.width and not (isinstance(beyond, int) and beyond <= 0):
            pieces.append(Piece(count, 0, 0, beyond))
        return pieces

    def _register(self, index: int) -> Any:
        """Where in the block; the last register where the head, as it turns out, does not reach so far."""
        last = self.block.shape[1] - LANES
        if isinstance(self.start, int):
            first = min(self.start // LANES * LANES + index * LANES, last)
            return slice(first, first + LANES)
        first = jnp.bitwise_and(self.start, -LANES) + index * LANES
        return pl.ds(pl.multiple_of(jnp.minimum(first, last), LANES), LANES)

    def read(self, rows: Any) -> Float[Array, "rows lanes"]:
        """Some rows with all that is in the head's registers."""
        parts = [self.block[rows, self._register(index)] for index in range(registers(self.width))]
        for piece in self._pieces()[len(parts) :]:
            parts[0] = _within(piece, self.block[rows, self._register(piece.register)], parts[0])
        return _beside(parts)

    def alone(self, rows: Any, like: "Head | None" = None) -> Float[Array, "rows lanes"]:
        """Some rows with zeros around the head, which is turned to the lanes that the head `like` has in its own."""
        parts: list[Any] = [None] * registers(self.width)
        for piece in self._pieces():
            value, old = self.block[rows, self._register(piece.register)], parts[piece.own]
            parts[piece.own] = _within(piece, value, jnp.zeros_like(value) if old is None else old)
        value = _beside(parts)
        return value if like is None else _turned(value, like.offset - self.offset)

    def write(
        self,
        rows: Any,
        value: Float[Array, "rows lanes"],
        like: "Head | None" = None,
        only: Bool[Array, "rows 128"] | None = None,
    ) -> None:
        """Write some rows, or of them `only` some, from where the head `like` would have the values."""
        value = (value if like is None else _turned(value, self.offset - like.offset)).astype(self.block.dtype)
        for piece in self._pieces():
            at, part = self._register(piece.register), value[:, piece.own * LANES : (piece.own + 1) * LANES]
            part = _within(piece, part, lambda at=at: self.block[rows, at])
            self.block[rows, at] = part if only is None else jnp.where(only, part, self.block[rows, at])


@dataclass(frozen=True)
class Heads:
    """The heads of one block [rows, lanes], as it came from HBM or will go there."""

    block: Ref
    width: int

    def head(self, index: Any) -> Head:
        return Head(self.block, index * self.width, self.width)


def registers(width: int) -> int:
    """How many registers hold `width` values."""
    return -(-width // LANES)


def _beside(parts: list[Array]) -> Float[Array, "rows lanes"]:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _within(piece: Piece, inside: Float[Array, "rows 128"], outside: Any) -> Float[Array, "rows 128"]:
    """The piece's lanes of one register, the other lanes of another (or of what the function gives)."""
    if isinstance(piece.first, int) and isinstance(piece.end, int) and piece.first <= 0 and piece.end >= LANES:
        return inside
    outside = outside() if callable(outside) else outside
    lane = jax.lax.broadcasted_iota(jnp.int32, inside.shape, 1)
    return jnp.where((lane >= piece.first) & (lane < piece.end), inside, outside)


def _turned(value: Float[Array, "rows lanes"], by: Any) -> Float[Array, "rows lanes"]:
    """Lanes moved up by some, and from the end to the beginning."""
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
