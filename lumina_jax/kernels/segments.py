"""Which tiles of keys each tile of queries may see, from the segment ids of a packed row.

In: segment ids of queries and keys [b l], 0 (or less) for padding. Out: for each tile of queries the range of tiles of
keys that holds everything it sees. Samples lie one after the other in a row, so that the range is tight; for ids in any
other order it is still right, because what lies in it and may not be seen is masked.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

WHOLE = 0.4
"""From this share of the tiles on, a block of queries is computed against the whole row in large products."""
NOBODY = 2**30


class Visits(NamedTuple):
    """Flat, because they are read as scalars: [b * tiles of queries], and `single`, `padding` [b * blocks of queries].

    Attributes:
      first, end: the range of tiles of keys; empty where nothing is seen.
      single: the one segment of a block of queries that sees most of the row; 0: work tile by tile.
      alone: 1 where, besides, all keys are of that segment or padding.
      padding: 1 where a block of queries holds padding.
    """

    first: Int[Array, " n"]
    end: Int[Array, " n"]
    single: Int[Array, " m"]
    alone: Int[Array, " m"]
    padding: Int[Array, " m"]


def visits(
    queries: Int[Array, "b l"],
    keys: Int[Array, "b n"],
    *,
    block: int,
    tile_q: int,
    tile_kv: int,
    most: float = WHOLE,
) -> Visits:
    """For blocks of `block` queries, cut into tiles of `tile_q`, and tiles of `tile_kv` keys.

    `most`: the share of a row that counts as most of it.
    """
    batch = queries.shape[0]
    low, high = _span(queries, tile_q)
    key_low, key_high = _span(keys, tile_kv)
    meets = (key_low[:, None, :] <= high[:, :, None]) & (key_high[:, None, :] >= low[:, :, None])
    first, end = _hull(meets)
    tiles = keys.shape[1] // tile_kv
    seen = jnp.sum((end - first).reshape(batch, -1, block // tile_q), axis=-1)
    sees_most = seen >= most * tiles * (block // tile_q)
    block_low, block_high = _span(queries, block)
    single = jnp.where(sees_most & (block_low == block_high), block_high, 0)
    row_low, row_high = _span(keys, keys.shape[1])
    alone = (single > 0) & (row_low == single) & (row_high == single)
    padding = jnp.min(queries.reshape(batch, -1, block), axis=-1) <= 0
    return Visits(*(x.reshape(-1).astype(jnp.int32) for x in (first, end, single, alone, padding)))


def _span(ids: Int[Array, "b l"], tile: int) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """Least and greatest segment of each tile; an empty span where all is padding."""
    ids = ids.reshape(ids.shape[0], -1, tile)
    low = jnp.min(jnp.where(ids > 0, ids, NOBODY), axis=-1)
    high = jnp.max(jnp.where(ids > 0, ids, -NOBODY), axis=-1)
    return low, high


def _hull(meets: Bool[Array, "b n m"]) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """First and one past the last True of each row."""
    count = meets.shape[-1]
    first = jnp.argmax(meets, axis=-1)
    end = count - jnp.argmax(meets[..., ::-1], axis=-1)
    some = jnp.any(meets, axis=-1)
    return jnp.where(some, first, 0), jnp.where(some, end, 0)
