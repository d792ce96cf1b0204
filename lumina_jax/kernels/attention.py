"""The one door to attention: `attend`, not causal, over packed rows, plus gated attention to text.

In: queries, keys and values [b l h d], segment ids that say who sees whom, and text keys and values with one gate
a head. Out: softmax(scale q k^T) v + tanh(gate) softmax(q k_text^T / sqrt(d)) v_text (Lumina-T2X, section 2.2), each
softmax with its own denominator. Where only the first heads have text, the others are self-attention alone. Tokens that
may see nothing get zeros.
"""

import logging
import math

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.kernels.arguments import HIDDEN, GatedText, Implementation, same_segment
from lumina_jax.kernels.flash import call as flash

logger = logging.getLogger(__name__)


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    *,
    segment_ids: Int[Array, "b l"],
    scale: float,
    text: GatedText | None = None,
    implementation: Implementation = "auto",
    interpret: flash.Interpret = False,
) -> Float[Array, "b l h d"]:
    """Attention within segments, plus gated attention to the text of the same segment.

    Args:
      segment_ids: 0 is padding, which sees nothing and is seen by nothing.
      scale: factor of the self-attention logits; the text logits always have 1/sqrt(d).
      text: what to add, or None.
      implementation: `reference` forms every logit in float32; `xla` leaves the layout to XLA; `pallas` is our kernel
        for TPUs (`flash/call.py`); `auto` is `pallas` where it is traced for a TPU and the kernel takes these arrays,
        else `xla`, with the reason in the log. Key/value heads may be fewer than query heads, in groups.
      interpret: run the kernels on any device, slowly; see `flash.call.flash_attention`.

    Raises:
      ValueError: heads that key heads do not divide; `pallas` where its kernels cannot run.
    """
    chex.assert_rank([q, k], 4)
    chex.assert_equal_shape([k, v])
    chex.assert_equal_shape([q, k], dims=[0, 1, 3])
    chex.assert_shape(segment_ids, q.shape[:2])
    chex.assert_type([q, segment_ids], [float, int])
    heads, key_heads = q.shape[2], k.shape[2]
    if heads % key_heads:
        raise ValueError(f"{heads} query heads must be a multiple of {key_heads} key/value heads")
    text_tokens = 0 if text is None else text.keys.shape[1]
    why_not = None
    if implementation in ("auto", "pallas") and not interpret:
        why_not = flash.refusal(q, k, text_tokens, auto=implementation == "auto")
    if implementation == "pallas" and why_not:
        raise ValueError(
            f"implementation='pallas' cannot be used: {why_not}. Ask for 'auto' or 'xla', or, to see the kernel's "
            "values on any device, for interpret=True"
        )
    if implementation == "pallas" or (implementation == "auto" and why_not is None):
        return flash.flash_attention(q, k, v, segment_ids=segment_ids, scale=scale, text=text, interpret=interpret)
    if implementation == "auto" and jax.default_backend() == "tpu":
        logger.warning("attention over %s by XLA, not by our kernel: %s", q.shape, why_not)
    softmax_attention = _reference if implementation == "reference" else _xla
    visible = same_segment(segment_ids, segment_ids)
    out = softmax_attention(q, k, v, visible, scale)
    if text is None:
        return out
    ids = {"segment_ids": segment_ids, "text_ids": text.segment_ids}
    from_text = attend_text(text.queries_among(q), text.keys, text.values, **ids, implementation=implementation)
    return text.added_to(out, from_text)


def attend_text(
    q: Float[Array, "b l h d"],
    keys: Float[Array, "b t k d"],
    values: Float[Array, "b t k d"],
    *,
    segment_ids: Int[Array, "b l"],
    text_ids: Int[Array, "b t"],
    implementation: Implementation,
) -> Float[Array, "b l h d"]:
    """softmax(q k^T / sqrt(d)) v over the text of each token's segment; zeros for tokens that have none.

    Texts are short and every device has all of them, so this works where tokens or heads are divided, and there is no
    kernel for it: `reference` is the definition in float32, everything else leaves the layout to XLA.
    """
    softmax_attention = _reference if implementation == "reference" else _xla
    return softmax_attention(q, keys, values, same_segment(segment_ids, text_ids), 1 / math.sqrt(q.shape[-1]))


def _reference(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    visible: Bool[Array, "b l n"],
    scale: float,
) -> Float[Array, "b l h d"]:
    """The definition, in float32."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2).astype(jnp.float32) for x in (k, v))
    logits = jnp.einsum("blhd,bnhd->bhln", q.astype(jnp.float32), k, precision="highest") * scale
    logits = jnp.where(visible[:, None], logits, -jnp.inf)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bhln,bnhd->blhd", weights, v, precision="highest").astype(q.dtype)


def _xla(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    visible: Bool[Array, "b l n"],
    scale: float,
) -> Float[Array, "b l h d"]:
    """Two batched matrix products with heads in front; queries that share a key head are rows of one product.

    The softmax's denominator divides the sum over values, not each weight: one pass less over the logits.
    """
    group = q.shape[2] // k.shape[2]
    q = rearrange(q, "b l (k g) d -> b k (g l) d", g=group)
    k, v = rearrange(k, "b n k d -> b k n d"), rearrange(v, "b n k d -> b k n d")
    logits = jnp.einsum("bkld,bknd->bkln", q, k, preferred_element_type=jnp.float32) * scale
    hidden = jnp.where(visible, 0.0, HIDDEN)[:, None, None]
    logits = rearrange(logits, "b k (g l) n -> b k g l n", g=group) + hidden
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = rearrange(jnp.sum(weights, axis=-1), "b k g l -> b k (g l) 1")
    weights = rearrange(weights, "b k g l n -> b k (g l) n").astype(v.dtype)
    out = jnp.einsum("bkln,bknd->bkld", weights, v, preferred_element_type=jnp.float32) / total
    out = rearrange(out, "b k (g l) d -> b l (k g) d", g=group).astype(v.dtype)
    sees_any = jnp.any(visible, axis=-1)[:, :, None, None]
    return jnp.where(sees_any, out, jnp.zeros((), out.dtype))
