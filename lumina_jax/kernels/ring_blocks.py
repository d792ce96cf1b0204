"""One block of ring attention by our TPU kernels: a `BlockAttention` that replaces the matrix products of `ring.py`.

In: this device's queries, a block of keys and values [b l h d], and the segment ids of both. Out: the results of
`ring.forward_block` and `ring.backward_block`. The kernels use logarithms to the base 2, the ring natural ones; a query
that sees nothing has weights of 0 in both.
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernels import blockwise
from lumina_jax.kernels.arguments import HIDDEN, Implementation
from lumina_jax.kernels.flash.backward import backward
from lumina_jax.kernels.flash.call import apart, padded_rows, refusal, side_by_side
from lumina_jax.kernels.flash.forward import ForwardOutputs, forward
from lumina_jax.kernels.flash.plan import Interpret, kernel_plan
from lumina_jax.kernels.flash.tiles import LOG2E
from lumina_jax.kernels.ring import PLAIN, BlockAttention

logger = logging.getLogger(__name__)


def block_attention(
    q: Float[Array, "b l h d"], k: Float[Array, "b n k d"], implementation: Implementation, interpret: Interpret = False
) -> BlockAttention:
    """How a ring computes a block of these queries and keys; the choice is made as `attend` makes it.

    Args:
      implementation: `pallas`: our kernels; `auto`: our kernels where this is traced for a TPU and they take these
        arrays, else plain matrix products, on GPUs for some queries at a time; else plain matrix products.
      interpret: of the kernels: run on any device, slowly; see `flash.call.flash_attention`.

    Raises:
      ValueError: `pallas` where its kernels cannot run; `cudnn`, whose kernel is for whole rows.
    """
    if implementation == "cudnn":
        raise ValueError(
            "implementation='cudnn' cannot be used in a ring, because jax does not give the denominators of cuDNN's "
            "softmax to a backward pass; ask for mesh.ring 1, which exchanges heads for tokens, or for 'auto'"
        )
    if implementation not in ("auto", "pallas"):
        return PLAIN
    why_not = None
    if q.shape[1] != k.shape[1]:
        why_not = f"a block has {k.shape[1]} keys for {q.shape[1]} queries, and the kernels take as many"
    elif not interpret:
        why_not = refusal(q, k, 0, auto=implementation == "auto")
    if why_not is None:
        kernels = functools.partial(_forward, interpret=interpret), functools.partial(_backward, interpret=interpret)
        return BlockAttention(*kernels)
    if implementation == "pallas":
        raise ValueError(
            f"implementation='pallas' cannot be used in a ring: {why_not}; ask for 'auto' or 'xla', or for mesh.ring 1"
        )
    if jax.default_backend() == "tpu":
        logger.warning("ring attention over %s by plain matrix products, not by our kernel: %s", q.shape, why_not)
    if implementation == "auto" and jax.default_backend() == "gpu":
        at_once = blockwise.queries_at_once(q, k)
        message = (
            "ring attention over %s by plain matrix products, %d queries at a time; with mesh.ring 1 cuDNN can serve"
        )
        logger.warning(message, q.shape, min(at_once, q.shape[1]))
        return blockwise.blocks(at_once)
    return PLAIN


def _forward(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    k_segments: Int[Array, "b l"],
    q_segments: Int[Array, "b l"],
    *,
    scale: float,
    interpret: Interpret,
) -> tuple[Float[Array, "b l h d"], Float[Array, "b h l"]]:
    """As `ring.forward_block`."""
    plan = kernel_plan(q, k, scale=scale, residuals=True)
    ids, key_ids = (padded_rows(x, plan.length) for x in (q_segments, k_segments))
    rows, keys, values = (side_by_side(x, plan, plan.rows) for x in (q, k, v))
    found = forward(plan, rows, keys, values, ids, key_ids, None, interpret=interpret)
    assert found.logs is not None
    logs = found.logs[:, :, 0, : q.shape[1]]
    sees = (q_segments > 0)[:, None] & (logs < -HIDDEN / 2)
    return apart(found.out, plan, q), jnp.where(sees, logs / LOG2E, HIDDEN)


def _backward(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    k_segments: Int[Array, "b l"],
    q_segments: Int[Array, "b l"],
    out: Float[Array, "b l h d"],
    lse: Float[Array, "b h l"],
    d_out: Float[Array, "b l h d"],
    *,
    scale: float,
    interpret: Interpret,
) -> tuple[Float[Array, "b l h d"], Float[Array, "b l k d"], Float[Array, "b l k d"]]:
    """As `ring.backward_block`."""
    plan = kernel_plan(q, k, scale=scale, residuals=True)
    ids, key_ids = (padded_rows(x, plan.length) for x in (q_segments, k_segments))
    # For the kernels padding, and a query that sees nothing, have a huge denominator, so that their weights are 0.
    sees = (q_segments > 0)[:, None] & (lse > HIDDEN / 2)
    logs = jnp.where(sees, lse * LOG2E, -HIDDEN)[:, :, None]
    logs = jnp.pad(logs, [(0, 0)] * 3 + [(0, plan.length - q.shape[1])])
    rows, keys, values, whole, given = (side_by_side(x, plan, plan.rows) for x in (q, k, v, out, d_out))
    found = ForwardOutputs(whole, logs, None)
    gradients = backward(plan, rows, keys, values, ids, key_ids, None, found, given, interpret=interpret)
    assert gradients.tokens is not None
    d_k, d_v = gradients.tokens.keys, gradients.tokens.values
    return apart(gradients.queries, plan, q), apart(d_k, plan, k), apart(d_v, plan, v)
