"""Packed rows as a list of tiles, each of one sample: where its queries lie and which keys it sees.

In: segment ids of queries, keys and text [b l], 0 (or less) for padding. Out: integers that steer the forward kernel.

A tile that straddles two samples would see the keys of both. So tiles start where a sample does, at the multiple of 16
below: a tile's last rows, and up to 15 before its first, may be of another sample; they are computed and not written.
Because a sample lies in one piece, its keys are told by where they start and end, without their ids.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.blocks import ROWS_OF_A_REGISTER

FIELDS = 7


class Runs(NamedTuple):
    """Flat, because they are read as scalars.

    Attributes:
      counts: tiles of each block of queries [b * blocks]; -1 where the ids do not allow a list: a segment in several
        pieces, or more tiles than there is room for.
      tiles: FIELDS numbers for each tile [b * blocks * room]: its first row in the block; the first and one past the
        last row in the block that are of its sample; the same of the keys it sees, and of the text.
    """

    counts: Int[Array, " m"]
    tiles: Int[Array, " n"]


def room(block: int, tile: int) -> int:
    """Tiles there is room for in a block: whole ones, and one more for every register of tokens."""
    return -(-block // tile) + block // LANES


def runs(
    queries: Int[Array, "b l"], keys: Int[Array, "b n"], text: Int[Array, "b t"] | None, *, block: int, tile: int
) -> Runs:
    """For blocks of `block` queries and tiles of `tile`, both multiples of 16."""
    batch, most = queries.shape[0], room(block, tile)
    ids = jnp.maximum(queries, 0).reshape(-1, block)
    starts, first = ids[:, 1:] != ids[:, :-1], jnp.ones((ids.shape[0], 1), bool)
    number = jnp.cumsum(jnp.concatenate([first, starts], axis=1), axis=1)
    places = jnp.arange(most)
    low = jnp.sum(number[:, None] <= places[:, None], axis=-1)
    high = jnp.concatenate([low[:, 1:], jnp.full_like(low[:, :1], block)], axis=1)
    segments = jnp.where(high > low, jnp.take_along_axis(ids, jnp.minimum(low, block - 1), axis=1), 0)
    base = low // ROWS_OF_A_REGISTER * ROWS_OF_A_REGISTER
    counts = jnp.where(high > low, -(-(high - base) // tile), 0)
    last = jnp.cumsum(counts, axis=1)
    fits = (number[:, -1] <= most) & (last[:, -1] <= most)
    spans, pieces = [low, high], [fits]
    for others in (keys, text):
        found = [low * 0, low * 0] if others is None else _spans(segments.reshape(batch, -1), others)
        spans += [x.reshape(low.shape) for x in found[:2]]
        pieces += [jnp.all(x.reshape(low.shape), axis=1) for x in found[2:]]
    run = jnp.minimum(jnp.sum(last[:, None] <= places[:, None], axis=-1), most - 1)
    of_run = [jnp.take_along_axis(x, run, axis=1) for x in (base, last - counts, *spans)]
    start = jnp.clip(of_run[0] + (places - of_run[1]) * tile, 0, block - tile)
    tiles = jnp.stack([start, *of_run[2:]], axis=-1)
    listed = jnp.all(jnp.stack(pieces), axis=0)
    return Runs(jnp.where(listed, last[:, -1], -1).astype(jnp.int32), tiles.reshape(-1).astype(jnp.int32))


def _spans(
    segments: Int[Array, "b m"], ids: Int[Array, "b n"]
) -> tuple[Int[Array, "b m"], Int[Array, "b m"], Bool[Array, "b m"]]:
    """Where the ids of each segment start and end (0 and 0: nowhere), and whether they lie in one piece."""
    same = (ids[:, None] == segments[:, :, None]) & (segments[:, :, None] > 0)
    places = jnp.arange(ids.shape[1])
    first = jnp.min(jnp.where(same, places, ids.shape[1]), axis=-1)
    end = jnp.max(jnp.where(same, places + 1, 0), axis=-1)
    some = end > first
    return jnp.where(some, first, 0), end, (jnp.sum(same, axis=-1) == end - first) | ~some
