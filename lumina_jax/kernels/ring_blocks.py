"""One block of ring attention by our TPU kernels: the `BlockAttention` that `ring.py` takes in the place of its own.

In: this device's queries and a block of keys and values [b l h d], and who belongs to which segment. Out: what
`ring.forward_block` and `ring.backward_block` return. The kernels count in logarithms to the base 2, the ring in
natural ones; a query that sees nothing has weights of 0 in both.
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernels import flash
from lumina_jax.kernels.attention import Implementation
from lumina_jax.kernels.blocks import UNKNOWN, choose, known_chip, padded_length
from lumina_jax.kernels.flash_backward import backward
from lumina_jax.kernels.flash_forward import Interpret, forward
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.ring import NEVER, PLAIN, BlockAttention
from lumina_jax.kernels.softmax_tiles import HIDDEN, LOG2E

logger = logging.getLogger(__name__)


def block_attention(
    q: Float[Array, "b l h d"], k: Float[Array, "b n k d"], implementation: Implementation, interpret: Interpret = False
) -> BlockAttention:
    """How a ring computes a block of these queries and keys; the choice is made as `attend` makes it.

    Args:
      implementation: `pallas`: our kernels; `auto`: our kernels where this is traced for a TPU and they take these
        arrays, else plain matrix products; else plain matrix products.
      interpret: of the kernels: run on any device, slowly; see `flash.flash_attention`.

    Raises:
      ValueError: `pallas` where its kernels cannot run.
    """
    if implementation not in ("auto", "pallas"):
        return PLAIN
    why_not = None
    if q.shape[1] != k.shape[1]:
        why_not = f"a block has {k.shape[1]} keys for {q.shape[1]} queries, and the kernels take as many"
    elif not interpret:
        why_not = flash.refusal(q, k, 0, auto=implementation == "auto")
    if why_not is None:
        kernels = functools.partial(_forward, interpret=interpret), functools.partial(_backward, interpret=interpret)
        return BlockAttention(*kernels)
    if implementation == "pallas":
        raise ValueError(
            f"implementation='pallas' cannot be used in a ring: {why_not}; ask for 'auto' or 'xla', or for mesh.ring 1"
        )
    if jax.default_backend() == "tpu":
        logger.warning("ring attention over %s by plain matrix products, not by our kernel: %s", q.shape, why_not)
    return PLAIN


def _plan(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], scale: float) -> Plan:
    sizes, chip = flash.sizes_of(q, k, 0), known_chip() or UNKNOWN
    length = padded_length(sizes.length)
    return Plan(
        batch=q.shape[0],
        length=length,
        keys=length,
        text=0,
        heads=sizes.heads,
        key_heads=sizes.key_heads,
        width=sizes.width,
        scale=scale,
        text_scale=scale,
        own_queries=False,
        blocks=choose(sizes, chip),
        unit=chip.matrix_unit,
        residuals=True,
        vmem=int(0.95 * chip.vmem),
    )


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
    plan = _plan(q, k, scale)
    ids, key_ids = (flash.padded_rows(x, plan.length) for x in (q_segments, k_segments))
    rows, keys, values = (flash.side_by_side(x, plan, plan.length) for x in (q, k, v))
    out, logs = forward(plan, rows, keys, values, ids, key_ids, None, interpret=interpret)
    length = q.shape[1]
    logs = logs[:, :, 0, :length]
    sees = (q_segments > 0)[:, None] & (logs < -HIDDEN / 2)
    return flash.apart(out, plan, q), jnp.where(sees, logs / LOG2E, NEVER)


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
    plan = _plan(q, k, scale)
    ids, key_ids = (flash.padded_rows(x, plan.length) for x in (q_segments, k_segments))
    # Padding, and what sees nothing, has to the kernels a huge denominator, so that its weights are 0.
    sees = (q_segments > 0)[:, None] & (lse > NEVER / 2)
    logs = jnp.where(sees, lse * LOG2E, -HIDDEN)[:, :, None]
    logs = jnp.pad(logs, [(0, 0)] * 3 + [(0, plan.length - q.shape[1])])
    rows, keys, values, whole, given = (flash.side_by_side(x, plan, plan.length) for x in (q, k, v, out, d_out))
    gradients = backward(plan, rows, keys, values, ids, key_ids, None, whole, [logs], given, interpret=interpret)
    d_q, d_k, d_v = (flash.apart(x, plan, of) for x, of in zip(gradients, (q, k, v), strict=True))
    return d_q, d_k, d_v
