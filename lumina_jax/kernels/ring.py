"""Ring attention: softmax attention whose keys and values lie on several devices and are passed round, block by block
(Liu et al., arXiv 2310.01889). Nothing of size tokens x tokens ever crosses devices, or is kept.

In: this device's queries, keys and values [b l h d] inside `jax.shard_map`. Out: softmax(scale q k^T) v over the keys
of all devices of the ring, for this device's queries.

Each block gives its output o_i and the logarithm of its softmax's denominator, lse_i. Blocks are merged by

    lse = log(exp(lse_1) + exp(lse_2))        o = exp(lse_1 - lse) o_1 + exp(lse_2 - lse) o_2

and the backward pass needs only that lse from the other blocks: with p = exp(scale q k^T - lse) and D = rowsum(do * o),
ds = p (do v^T - D), each block of keys gets its gradients from every device it visits, on its way home (Dao et al.,
FlashAttention-2, arXiv 2307.08691, section 3.1).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.kernels.arguments import HIDDEN, same_segment

QUERIES_AT_ONCE = 1024
"""Most queries whose logits exist at one time in the plain block, if it divides their number."""

Tree = TypeVar("Tree")


class KeyBlock(NamedTuple):
    """A block of keys and values, and their segment ids, that is passed from device to device."""

    keys: Float[Array, "b n k d"]
    values: Float[Array, "b n k d"]
    segment_ids: Int[Array, "b n"]


class BlockAttention(NamedTuple):
    """Attention of queries to one block of keys, forward and backward, by the signatures of `forward_block` and
    `backward_block`."""

    forward: Callable[..., tuple[Float[Array, "b l h d"], Float[Array, "b h l"]]]
    backward: Callable[..., tuple[Float[Array, "b l h d"], Float[Array, "b n k d"], Float[Array, "b n k d"]]]


def ring_attention(
    q: Float[Array, "b l h d"],
    block: KeyBlock,
    segment_ids: Int[Array, "b l"],
    *,
    scale: float,
    axes: tuple[str, ...],
    size: int,
    attention: BlockAttention | None = None,
) -> Float[Array, "b l h d"]:
    """Attention within segments, over the keys of all devices along `axes`; tokens of segment 0 see nothing, get zeros.

    Args:
      block: this device's keys, values and their segments. Key heads may be fewer than query heads, in groups.
      segment_ids: of the queries.
      axes: mesh axes that form the ring; of `size` devices. None at all: keys stay where they are.
      attention: how one block is computed; None: by plain matrix products.
    """
    return _ring(scale, axes, size, attention or PLAIN, q, block.keys, block.values, segment_ids, block.segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _ring(
    scale: float,
    axes: tuple[str, ...],
    size: int,
    attention: BlockAttention,
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    q_segments: Int[Array, "b l"],
    k_segments: Int[Array, "b n"],
) -> Float[Array, "b l h d"]:
    return _ring_forward(scale, axes, size, attention, q, k, v, q_segments, k_segments)[0]


class RingResiduals(NamedTuple):
    """What the backward pass needs."""

    q: Float[Array, "b l h d"]
    block: KeyBlock
    q_segments: Int[Array, "b l"]
    out: Float[Array, "b l h d"]
    lse: Float[Array, "b h l"]


def _ring_forward(
    scale: float,
    axes: tuple[str, ...],
    size: int,
    attention: BlockAttention,
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    q_segments: Int[Array, "b l"],
    k_segments: Int[Array, "b n"],
) -> tuple[Float[Array, "b l h d"], RingResiduals]:
    here = block = KeyBlock(k, v, k_segments)
    merged = None
    for number in range(size):
        # The next block sets out before this one is used, so that it travels while this one is computed.
        following = _passed_on(block, axes, size) if number + 1 < size else block
        part = attention.forward(q, *block, q_segments, scale=scale)
        merged = part if merged is None else _merge(merged, part)
        block = following
    assert merged is not None
    out = checkpoint_name(merged[0].astype(q.dtype), "attention_out")
    lse = checkpoint_name(merged[1], "attention_lse")
    return out, RingResiduals(q, here, q_segments, out, lse)


def _ring_backward(
    scale: float, axes: tuple[str, ...], size: int, attention: BlockAttention, residuals: RingResiduals, d_out: Array
) -> tuple[Array, Array, Array, None, None]:
    q, block, q_segments, out, lse = residuals
    d_q, d_keys = jnp.zeros(q.shape, jnp.float32), None
    for number in range(size):
        following = _passed_on(block, axes, size) if number + 1 < size else block
        # What earlier devices gave to this block's gradients arrives while this device's share is computed.
        arriving = None if d_keys is None else _passed_on(d_keys, axes, size)
        to_q, *to_keys = attention.backward(q, *block, q_segments, out, lse, d_out, scale=scale)
        d_q = d_q + to_q.astype(jnp.float32)
        to_keys = [part.astype(jnp.float32) for part in to_keys]
        d_keys = to_keys if arriving is None else jax.tree.map(jnp.add, arriving, to_keys)
        block = following
    assert d_keys is not None
    d_k, d_v = _passed_on(d_keys, axes, size) if size > 1 else d_keys  # back to the device that they belong to
    return d_q.astype(q.dtype), d_k.astype(block.keys.dtype), d_v.astype(block.values.dtype), None, None


_ring.defvjp(_ring_forward, _ring_backward)


def _passed_on(block: Tree, axes: tuple[str, ...], size: int) -> Tree:
    """The block of the device before this one in the ring."""
    ring = [(index, (index + 1) % size) for index in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, ring), block)


def _merge(
    one: tuple[Float[Array, "b l h d"], Float[Array, "b h l"]],
    other: tuple[Float[Array, "b l h d"], Float[Array, "b h l"]],
) -> tuple[Float[Array, "b l h d"], Float[Array, "b h l"]]:
    """Two parts of one softmax as one, in float32."""
    (out, lse), (out_2, lse_2) = one, other
    total = jnp.logaddexp(lse, lse_2)
    return _weighted(out, lse - total) + _weighted(out_2, lse_2 - total), total


def _weighted(out: Float[Array, "b l h d"], log_weight: Float[Array, "b h l"]) -> Float[Array, "b l h d"]:
    return out.astype(jnp.float32) * jnp.exp(log_weight).swapaxes(1, 2)[..., None]


def forward_block(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    k_segments: Int[Array, "b n"],
    q_segments: Int[Array, "b l"],
    *,
    scale: float,
    at_once: int | None = None,
) -> tuple[Float[Array, "b l h d"], Float[Array, "b h l"]]:
    """softmax(scale q k^T) v within segments, and the log of its denominators, which is HIDDEN if nothing is seen.

    Logits of `at_once` queries exist at one time, whatever their number; None: see QUERIES_AT_ONCE.
    """

    def some(part: tuple[Array, ...]) -> tuple[Array, Array]:
        q, segments = part
        visible = _visible(segments, k_segments)
        logits = _logits(q, k, visible, scale)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.where(visible, jnp.exp(logits - largest), 0)
        total = jnp.sum(weights, axis=-1)
        out = jnp.einsum("bkgln,bnkd->blkgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out = out.reshape(*q.shape[:3], -1) / _by_query(jnp.where(total > 0, total, 1))
        lse = jnp.where(total > 0, largest[..., 0] + jnp.log(jnp.where(total > 0, total, 1)), HIDDEN)
        return out.astype(q.dtype), lse.reshape(q.shape[0], -1, q.shape[1])

    parts = _parts((q, q_segments), at_once)
    if parts is None:
        return some((q, q_segments))
    out, lse = jax.lax.map(some, parts)
    return _joined(out, q.shape[1]), _joined(lse.swapaxes(2, 3), q.shape[1]).swapaxes(1, 2)


def backward_block(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    k_segments: Int[Array, "b n"],
    q_segments: Int[Array, "b l"],
    out: Float[Array, "b l h d"],
    lse: Float[Array, "b h l"],
    d_out: Float[Array, "b l h d"],
    *,
    scale: float,
    at_once: int | None = None,
) -> tuple[Float[Array, "b l h d"], Float[Array, "b n k d"], Float[Array, "b n k d"]]:
    """This block's part of the gradients of q, k and v.

    Args:
      out, lse: of the whole softmax, all blocks together.
      d_out: the gradient of the output.
      at_once: as in `forward_block`.
    """
    delta = jnp.einsum("blhd,blhd->blh", d_out.astype(jnp.float32), out.astype(jnp.float32))

    def some(part: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, segments, lse, delta, d_out = part
        visible = _visible(segments, k_segments)
        group = (q.shape[0], k.shape[2], -1, q.shape[1])
        logits = _logits(q, k, visible, scale)
        weights = jnp.where(visible, jnp.exp(logits - lse.swapaxes(1, 2).reshape(*group, 1)), 0)
        d_out = _grouped(d_out, k.shape[2])
        d_v = jnp.einsum("bkgln,blkgd->bnkd", weights.astype(v.dtype), d_out, preferred_element_type=jnp.float32)
        d_weights = jnp.einsum("blkgd,bnkd->bkgln", d_out, v, preferred_element_type=jnp.float32)
        d_logits = weights * (d_weights - delta.swapaxes(1, 2).reshape(*group, 1)) * scale
        d_logits = d_logits.astype(q.dtype)
        d_q = jnp.einsum("bkgln,bnkd->blkgd", d_logits, k, preferred_element_type=jnp.float32).reshape(q.shape)
        d_k = jnp.einsum("bkgln,blkgd->bnkd", d_logits, _grouped(q, k.shape[2]), preferred_element_type=jnp.float32)
        return d_q, d_k, d_v

    def added(so_far: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        d_q, d_k, d_v = some(part)
        return (so_far[0] + d_k, so_far[1] + d_v), d_q

    arrays = (q, q_segments, lse.swapaxes(1, 2), delta, d_out)
    parts = _parts(arrays, at_once)
    if parts is None:
        return some(arrays)
    none_yet = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    (d_k, d_v), d_q = jax.lax.scan(added, none_yet, parts)
    return _joined(d_q, q.shape[1]), d_k, d_v


PLAIN = BlockAttention(forward_block, backward_block)
"""A block by plain matrix products."""


def _grouped(x: Float[Array, "b l h d"], key_heads: int) -> Float[Array, "b l k g d"]:
    """Heads by the key head that they share."""
    return x.reshape(*x.shape[:2], key_heads, -1, x.shape[-1])


def _visible(queries: Int[Array, "b l"], keys: Int[Array, "b n"]) -> Bool[Array, "b 1 1 l n"]:
    return same_segment(queries, keys)[:, None, None]


def _logits(
    q: Float[Array, "b l h d"], k: Float[Array, "b n k d"], visible: Bool[Array, "b 1 1 l n"], scale: float
) -> Float[Array, "b k g l n"]:
    products = jnp.einsum("blkgd,bnkd->bkgln", _grouped(q, k.shape[2]), k, preferred_element_type=jnp.float32)
    return jnp.where(visible, products * scale, HIDDEN)


def _by_query(x: Float[Array, "b k g l"]) -> Float[Array, "b l h 1"]:
    return x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)[..., None]


def _parts(arrays: tuple[Array, ...], at_once: int | None) -> tuple[Array, ...] | None:
    """The queries [b l ...] in parts [n b p ...] whose logits exist at one time; None: those of all may. The last part
    is filled with zeros, which are queries of no segment."""
    length = arrays[0].shape[1]
    if at_once is None:
        at_once = QUERIES_AT_ONCE if length % QUERIES_AT_ONCE == 0 else length
    if length <= at_once:
        return None
    missing = -length % at_once
    padded = (jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays)
    return tuple(x.reshape(x.shape[0], -1, at_once, *x.shape[2:]).swapaxes(0, 1) for x in padded)


def _joined(parts: Float[Array, "n b p *shape"], length: int) -> Float[Array, "b l *shape"]:
    """The results of the parts, one after another, of `length` queries."""
    whole = parts.swapaxes(0, 1)
    return whole.reshape(whole.shape[0], -1, *whole.shape[3:])[:, :length]
