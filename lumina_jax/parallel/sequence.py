"""Rows of tokens divided between devices, and attention that crosses them.

In: an `attend` of whole rows. Out: an `attend` for devices that each hold a part of every row, inside `jax.shard_map`:
it takes and returns this device's tokens, all heads of them. Everything else in the network works on tokens one by one.

There are two ways, which can be combined. Devices exchange heads for tokens (DeepSpeed-Ulysses, arXiv 2309.14509): each
gets all tokens of some heads, attends with any back end, and exchanges them back; this needs at least as many heads as
devices. Ring attention (`kernels/ring.py`): keys and values are passed from device to device; this works for any number
of devices. Combined, heads are exchanged within groups of neighbours, and keys are passed from group to group.

Every device has the whole texts of its rows. Tokens are divided in order: the first device has the first tokens.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernels.arguments import Attend, GatedText, Implementation
from lumina_jax.kernels.flash.plan import Interpret
from lumina_jax.kernels.ring import KeyBlock, ring_attention
from lumina_jax.kernels.ring_blocks import block_attention
from lumina_jax.parallel.mesh import AnyMesh, axes_of, axis_size


def attend_across(
    attend: Attend, mesh: AnyMesh, implementation: Implementation = "auto", *, interpret: Interpret = False
) -> Attend:
    """`attend` over the devices of `mesh` that share the tokens of a row.

    Args:
      attend: `kernels.attention.attend` with a back end. A ring does not use it.
      implementation, interpret: how a ring computes each block; see `kernels.ring_blocks.block_attention`.
    """
    ring, heads = axes_of(mesh, "sequence_ring"), axes_of(mesh, "sequence_heads")
    if ring:
        attend = _around(ring, axis_size(mesh, "sequence_ring"), implementation, interpret)
    return _exchanging(attend, heads, axis_size(mesh, "sequence_heads")) if heads else attend


def _around(axes: tuple[str, ...], size: int, implementation: Implementation, interpret: Interpret) -> Attend:
    """`attend` that passes keys and values round a ring."""

    def attend(
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        *,
        segment_ids: Int[Array, "b l"],
        scale: float,
        text: GatedText | None = None,
        segments: int | None = None,
    ) -> Float[Array, "b l h d"]:
        keys, attention = KeyBlock(k, v, segment_ids), block_attention(q, k, implementation, interpret)
        out = ring_attention(q, keys, segment_ids, scale=scale, axes=axes, size=size, attention=attention)
        if text is None:
            return out
        queries, block = text.queries_among(q), KeyBlock(text.keys, text.values, text.segment_ids)
        from_text = ring_attention(queries, block, segment_ids, scale=1 / math.sqrt(q.shape[-1]), axes=(), size=1)
        return text.added_to(out, from_text)

    return attend


def _exchanging(attend: Attend, axes: tuple[str, ...], size: int) -> Attend:
    """`attend` with an exchange of heads for tokens before it, and of tokens for heads after it."""

    def attended(
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        *,
        segment_ids: Int[Array, "b l"],
        scale: float,
        text: GatedText | None = None,
        segments: int | None = None,
    ) -> Float[Array, "b l h d"]:
        def all_tokens(x: Float[Array, "b l h d"]) -> Float[Array, "b _ _ d"]:
            return jax.lax.all_to_all(_for_all(x, size), axes, split_axis=2, concat_axis=1, tiled=True)

        def local_heads(x: Float[Array, "b t k d"]) -> Float[Array, "b t _ d"]:
            return _share(_for_all(x, size), 2, axes, size)

        if text is not None:
            text = text.for_heads(q.shape[2])  # each device has other heads, but all run one program
            text = GatedText(
                local_heads(text.keys),
                local_heads(text.values),
                _share(text.gate, 0, axes, size),
                text.segment_ids,
                None if text.queries is None else all_tokens(text.queries),
            )
        ids = jax.lax.all_gather(segment_ids, axes, axis=1, tiled=True)
        tokens = all_tokens(q), all_tokens(k), all_tokens(v)
        out = attend(*tokens, segment_ids=ids, scale=scale, text=text, segments=segments)
        return jax.lax.all_to_all(out, axes, split_axis=1, concat_axis=2, tiled=True)

    return attended


def _for_all(x: Float[Array, "b l k d"], size: int) -> Float[Array, "b l _ d"]:
    """At least one head for each device: with fewer heads than devices, each is repeated for those that use it."""
    heads = x.shape[2]
    return x if heads % size == 0 else jnp.repeat(x, size // heads, axis=2)


def _share(x: Array, axis: int, axes: tuple[str, ...], size: int) -> Array:
    """This device's part of an array that all devices have whole."""
    each = x.shape[axis] // size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * each, each, axis)
