"""Integers that steer the kernels, computed from the segment ids of packed rows before a kernel runs.

In: segment ids of queries, keys and text [b l], where 0 (or less) is padding. Out: `Visits`, for each tile of queries
the range of tiles of keys that holds everything it sees; and `Runs`, a packed row as a list of tiles of one sample
each. Both are flat, because kernels read them as scalars.

Samples lie one after the other in a row, so a range of `Visits` is tight. It is still right for ids in any other order,
because what lies in the range and may not be seen is masked.

A tile on a fixed grid that straddles two samples would see the keys of both. So tiles of `Runs` start where a sample
does, at the multiple of 16 below. The last rows of a tile, and up to 15 before its first, may belong to another sample:
they are computed and not written. Because a sample lies in one piece, its keys are a range, and need no ids.
"""

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.flash.blocks import ROWS_OF_A_REGISTER

NO_SEGMENT = 2**30
"""Greater than every segment id."""

Leaf = TypeVar("Leaf")
"""An array outside of a kernel, a reference to it inside."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visits(Generic[Leaf]):
    """What each tile and each block of queries sees.

    Attributes:
      first, end: the range of tiles of keys that a tile of queries sees [b * tiles]; empty where it sees nothing.
      single: the one segment of a block of queries [b * blocks] that sees most of the row; 0: work tile by tile.
      alone: 1 where, besides, all keys are of that segment or padding [b * blocks].
      padding: 1 where a block of queries holds padding [b * blocks].
    """

    first: Leaf
    end: Leaf
    single: Leaf
    alone: Leaf
    padding: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextScalars(Generic[Leaf]):
    """What steers a kernel's work on the text: gates of all heads, and ranges of tiles as in `Visits`."""

    gate: Leaf
    first: Leaf
    end: Leaf


class Tile(NamedTuple):
    """Some rows of a block, of which one sample is computed.

    Attributes:
      start: the tile's first row in the block.
      low, high: the range of rows in the block that belong to the sample.
      first, end: the range of keys that the sample sees.
      text_first, text_end: the range of the text that it sees.
    """

    start: Int[Array, "..."]
    low: Int[Array, "..."]
    high: Int[Array, "..."]
    first: Int[Array, "..."]
    end: Int[Array, "..."]
    text_first: Int[Array, "..."]
    text_end: Int[Array, "..."]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Runs(Generic[Leaf]):
    """Tiles of one sample each.

    Attributes:
      counts: tiles of each block of queries [b * blocks]; -1 where the ids do not allow a list: a segment in several
        pieces, or more tiles than there is room for.
      tiles: the fields of a `Tile` one after the other, for each tile [b * blocks * room].
    """

    counts: Leaf
    tiles: Leaf


def visits(
    queries: Int[Array, "b l"], keys: Int[Array, "b n"], *, block: int, tile_q: int, tile_kv: int, most: float
) -> Visits[Array]:
    """For blocks of `block` queries, cut into tiles of `tile_q`, and tiles of `tile_kv` keys.

    Args:
      most: the share of a row's tiles that a block must see to count as seeing most of the row.
    """
    batch = queries.shape[0]
    low, high = _segment_range(queries, tile_q)
    key_low, key_high = _segment_range(keys, tile_kv)
    meets = (key_low[:, None, :] <= high[:, :, None]) & (key_high[:, None, :] >= low[:, :, None])
    first, end = _hull(meets)
    tiles = keys.shape[1] // tile_kv
    seen = jnp.sum((end - first).reshape(batch, -1, block // tile_q), axis=-1)
    sees_most = seen >= most * tiles * (block // tile_q)
    block_low, block_high = _segment_range(queries, block)
    single = jnp.where(sees_most & (block_low == block_high), block_high, 0)
    row_low, row_high = _segment_range(keys, keys.shape[1])
    alone = (single > 0) & (row_low == single) & (row_high == single)
    padding = jnp.min(queries.reshape(batch, -1, block), axis=-1) <= 0
    return Visits(*(x.reshape(-1).astype(jnp.int32) for x in (first, end, single, alone, padding)))


def runs(
    queries: Int[Array, "b l"], keys: Int[Array, "b n"], text: Int[Array, "b t"] | None, *, block: int, tile: int
) -> Runs[Array]:
    """For blocks of `block` queries and tiles of `tile`, both multiples of 16."""
    batch, most = queries.shape[0], room(block, tile)
    ids = jnp.maximum(queries, 0).reshape(-1, block)
    starts, first = ids[:, 1:] != ids[:, :-1], jnp.ones((ids.shape[0], 1), bool)
    number = jnp.cumsum(jnp.concatenate([first, starts], axis=1), axis=1)
    indices = jnp.arange(most)
    low = jnp.sum(number[:, None] <= indices[:, None], axis=-1)
    high = jnp.concatenate([low[:, 1:], jnp.full_like(low[:, :1], block)], axis=1)
    segments = jnp.where(high > low, jnp.take_along_axis(ids, jnp.minimum(low, block - 1), axis=1), 0)
    base = low // ROWS_OF_A_REGISTER * ROWS_OF_A_REGISTER
    counts = jnp.where(high > low, -(-(high - base) // tile), 0)
    last = jnp.cumsum(counts, axis=1)
    fits = (number[:, -1] <= most) & (last[:, -1] <= most)
    ranges, pieces = [low, high], [fits]
    for others in (keys, text):
        found = [low * 0, low * 0] if others is None else _ranges(segments.reshape(batch, -1), others)
        ranges += [x.reshape(low.shape) for x in found[:2]]
        pieces += [jnp.all(x.reshape(low.shape), axis=1) for x in found[2:]]
    run = jnp.minimum(jnp.sum(last[:, None] <= indices[:, None], axis=-1), most - 1)
    base, before, *ranges = [jnp.take_along_axis(x, run, axis=1) for x in (base, last - counts, *ranges)]
    tiles = jnp.stack(Tile(jnp.clip(base + (indices - before) * tile, 0, block - tile), *ranges), axis=-1)
    listed = jnp.all(jnp.stack(pieces), axis=0)
    return Runs(jnp.where(listed, last[:, -1], -1).astype(jnp.int32), tiles.reshape(-1).astype(jnp.int32))


def room(block: int, tile: int) -> int:
    """Tiles that a block has room for: whole ones, and one more for every register of tokens."""
    return -(-block // tile) + block // LANES


def _segment_range(ids: Int[Array, "b l"], tile: int) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """Least and greatest segment of each tile; an empty range where all is padding."""
    ids = ids.reshape(ids.shape[0], -1, tile)
    low = jnp.min(jnp.where(ids > 0, ids, NO_SEGMENT), axis=-1)
    high = jnp.max(jnp.where(ids > 0, ids, -NO_SEGMENT), axis=-1)
    return low, high


def _hull(meets: Bool[Array, "b n m"]) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """First and one past the last True of each row."""
    count = meets.shape[-1]
    first = jnp.argmax(meets, axis=-1)
    end = count - jnp.argmax(meets[..., ::-1], axis=-1)
    some = jnp.any(meets, axis=-1)
    return jnp.where(some, first, 0), jnp.where(some, end, 0)


def _ranges(
    segments: Int[Array, "b m"], ids: Int[Array, "b n"]
) -> tuple[Int[Array, "b m"], Int[Array, "b m"], Bool[Array, "b m"]]:
    """Where the ids of each segment start and end (0 and 0: nowhere), and whether they lie in one piece."""
    same = (ids[:, None] == segments[:, :, None]) & (segments[:, :, None] > 0)
    indices = jnp.arange(ids.shape[1])
    first = jnp.min(jnp.where(same, indices, ids.shape[1]), axis=-1)
    end = jnp.max(jnp.where(same, indices + 1, 0), axis=-1)
    some = end > first
    return jnp.where(some, first, 0), end, (jnp.sum(same, axis=-1) == end - first) | ~some
