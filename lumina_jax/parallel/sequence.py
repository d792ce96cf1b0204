"""Rows of tokens divided between devices, and attention that crosses them.

In: an `attend` of whole rows. Out: an `attend` for devices that each hold a part of every row, inside `jax.shard_map`:
it takes and returns this device's tokens, all heads of them. Everything else in the network works on tokens one by one.

Two ways, and their product. Heads exchanged for tokens (DeepSpeed-Ulysses, arXiv 2309.14509): each device gets all
tokens of some heads, attends by any back end, and gives them back; it needs at least as many heads as devices. Ring
attention (`kernels/ring.py`): keys and values pass by all devices; any number of devices. With both, heads are
exchanged within groups of neighbours, and keys go round from group to group.

A row's texts are whole on every device. Tokens are divided in order: the first device of a row has its first tokens.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernels.arguments import GatedText, Implementation
from lumina_jax.kernels.flash.plan import Interpret
from lumina_jax.kernels.ring import KeyBlock, ring_attention
from lumina_jax.kernels.ring_blocks import block_attention
from lumina_jax.parallel.mesh import AnyMesh, axes_of, axis_size


def attend_across(
    attend: Any, mesh: AnyMesh, implementation: Implementation = "auto", *, interpret: Interpret = False
) -> Any:
    """`attend` over the devices of `mesh` that share the tokens of a row.

    Args:
      attend: as `kernels.attention.attend`, with its back end chosen. A ring does not use it.
      implementation, interpret: how a ring computes each block; see `kernels.ring_blocks.block_attention`.
    """
    ring, heads = axes_of(mesh, "sequence_ring"), axes_of(mesh, "sequence_heads")
    if ring:
        attend = _around(ring, axis_size(mesh, "sequence_ring"), implementation, interpret)
    return _exchanging(attend, heads, axis_size(mesh, "sequence_heads")) if heads else attend


def _around(axes: tuple[str, ...], size: int, implementation: Implementation, interpret: Interpret) -> Any:
    """`attend` whose keys and values are passed round a ring."""

    def attend(
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        *,
        segment_ids: Int[Array, "b l"],
        scale: float,
        text: GatedText | None = None,
    ) -> Float[Array, "b l h d"]:
        own, attention = KeyBlock(k, v, segment_ids), block_attention(q, k, implementation, interpret)
        out = ring_attention(q, own, segment_ids, scale=scale, axes=axes, size=size, attention=attention)
        if text is None:
            return out
        queries, block = q if text.queries is None else text.queries, KeyBlock(text.keys, text.values, text.segment_ids)
        from_text = ring_attention(queries, block, segment_ids, scale=1 / math.sqrt(q.shape[-1]), axes=(), size=1)
        return out + jnp.tanh(text.gate).astype(out.dtype)[:, None] * from_text

    return attend


def _exchanging(attend: Any, axes: tuple[str, ...], size: int) -> Any:
    """`attend` for which devices exchange heads for tokens before it, and back after it."""

    def attended(
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        *,
        segment_ids: Int[Array, "b l"],
        scale: float,
        text: GatedText | None = None,
    ) -> Float[Array, "b l h d"]:
        def of_heads(x: Float[Array, "b l h d"]) -> Float[Array, "b _ _ d"]:
            return jax.lax.all_to_all(_for_all(x, size), axes, split_axis=2, concat_axis=1, tiled=True)

        def own_heads(x: Float[Array, "b t k d"]) -> Float[Array, "b t _ d"]:
            return _share(_for_all(x, size), 2, axes, size)

        if text is not None:
            text = GatedText(
                own_heads(text.keys),
                own_heads(text.values),
                _share(text.gate, 0, axes, size),
                text.segment_ids,
                None if text.queries is None else of_heads(text.queries),
            )
        ids = jax.lax.all_gather(segment_ids, axes, axis=1, tiled=True)
        out = attend(of_heads(q), of_heads(k), of_heads(v), segment_ids=ids, scale=scale, text=text)
        return jax.lax.all_to_all(out, axes, split_axis=1, concat_axis=2, tiled=True)

    return attended


def _for_all(x: Float[Array, "b l k d"], size: int) -> Float[Array, "b l _ d"]:
    """Heads for every device: key heads that are fewer are repeated, each for the devices of its query heads."""
    heads = x.shape[2]
    return x if heads % size == 0 else jnp.repeat(x, size // heads, axis=2)


def _share(x: Array, axis: int, axes: tuple[str, ...], size: int) -> Array:
    """This device's part of what all devices have whole."""
    each = x.shape[axis] // size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * each, each, axis)
