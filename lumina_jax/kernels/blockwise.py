"""Attention by plain matrix products, some queries at a time: for GPUs, where cuDNN's kernel cannot serve.

In: queries, keys and values [b l h d] and segment ids. Out: softmax(scale q k^T) v within segments. Logits of some
queries exist at one time, also in the backward pass, which computes them again (`ring.py`, with one block).
"""

import functools

from jaxtyping import Array, Float, Int

from lumina_jax.kernels.ring import BlockAttention, KeyBlock, backward_block, forward_block, ring_attention

LOGITS_AT_ONCE = 2**27
"""512 MiB in float32."""
FEWEST, MOST = 128, 1024
"""Queries at a time: with fewer, products would be slow; more gain nothing."""


def queries_at_once(q: Float[Array, "b l h d"], k: Float[Array, "b n k d"]) -> int:
    """How many queries have their logits at one time."""
    each = LOGITS_AT_ONCE // (q.shape[0] * q.shape[2] * k.shape[1])
    return min(max(FEWEST, each - each % FEWEST), MOST)


def blocks(at_once: int) -> BlockAttention:
    """Plain matrix products for that many queries at a time."""
    forward = functools.partial(forward_block, at_once=at_once)
    return BlockAttention(forward, functools.partial(backward_block, at_once=at_once))


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    *,
    segment_ids: Int[Array, "b l"],
    scale: float,
) -> Float[Array, "b l h d"]:
    """softmax(scale q k^T) v within segments; zeros for padding. The types of the results are those of the inputs."""
    attention = blocks(queries_at_once(q, k))
    return ring_attention(
        q, KeyBlock(k, v, segment_ids), segment_ids, scale=scale, axes=(), size=1, attention=attention
    )
