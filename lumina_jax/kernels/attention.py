"""The one door to attention: `attend`, not causal, over packed rows, plus gated attention to text.

In: queries, keys and values [b l h d], segment ids that say who sees whom, and text keys and values with one gate
a head. Out: softmax(scale q k^T) v + tanh(gate) softmax(q k_text^T / sqrt(d)) v_text (Lumina-T2X, section 2.2), each
softmax with its own denominator. Where only the first heads have text, the others are self-attention alone. Tokens that
may see nothing get zeros.
"""

import logging
import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.kernels import blockwise, cudnn
from lumina_jax.kernels.arguments import HIDDEN, GatedText, Implementation, same_segment
from lumina_jax.kernels.flash import call as flash

logger = logging.getLogger(__name__)

Chosen = Literal["reference", "xla", "pallas", "cudnn", "blockwise"]
"""The function that computes self-attention."""


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    *,
    segment_ids: Int[Array, "b l"],
    scale: float,
    text: GatedText | None = None,
    segments: int | None = None,
    implementation: Implementation = "auto",
    interpret: flash.Interpret = False,
) -> Float[Array, "b l h d"]:
    """Attention within segments, plus gated attention to the text of the same segment.

    Args:
      segment_ids: 0 is padding, which sees nothing and is seen by nothing.
      scale: factor of the self-attention logits; the text logits always have 1/sqrt(d).
      text: what to add, or None.
      segments: the most segments of a row, where each row has them in the order of `tokens.packing`: numbered from 1,
        the tokens of each side by side, padding at the end. None: not known; cuDNN cannot be used then.
      implementation: `reference` forms every logit in float32; `xla` leaves the layout to XLA; `pallas` is our kernel
        for TPUs (`flash/call.py`); `cudnn` is that of NVIDIA GPUs (`cudnn.py`). `auto` is `pallas` where it is traced
        for a TPU and the kernel takes these arrays, and `cudnn` where it is traced for such a GPU and cuDNN does; else
        `xla`, on GPUs some queries at a time (`blockwise.py`), with the reason in the log. Key/value heads may be fewer
        than query heads, in groups.
      interpret: run the kernels for TPUs on any device, slowly; see `flash.call.flash_attention`.

    Raises:
      ValueError: heads that key heads do not divide; `pallas` or `cudnn` where they cannot run.
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
    chosen = _chosen(q, k, text_tokens, segments, implementation, interpret)
    if chosen == "pallas":
        return flash.flash_attention(q, k, v, segment_ids=segment_ids, scale=scale, text=text, interpret=interpret)
    if chosen == "cudnn":
        assert segments is not None
        out = cudnn.attention(q, k, v, segment_ids=segment_ids, segments=segments, scale=scale)
    elif chosen == "blockwise":
        out = blockwise.attention(q, k, v, segment_ids=segment_ids, scale=scale)
    else:
        softmax_attention = _reference if chosen == "reference" else _xla
        out = softmax_attention(q, k, v, same_segment(segment_ids, segment_ids), scale)
    if text is None:
        return out
    from_text = attend_text(
        text.queries_among(q), text.keys, text.values, segment_ids=segment_ids, text_ids=text.segment_ids,
        segments=segments, implementation=implementation,
    )  # fmt: skip
    return text.added_to(out, from_text)


def _chosen(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    text_tokens: int,
    segments: int | None,
    implementation: Implementation,
    interpret: flash.Interpret,
) -> Chosen:
    """Which function computes self-attention.

    Raises:
      ValueError: the one that is asked for cannot.
    """
    auto = implementation == "auto"
    if implementation in ("reference", "xla"):
        return implementation
    if interpret and implementation != "cudnn":
        return "pallas"
    kernel: Chosen = "cudnn" if implementation == "cudnn" or (auto and cudnn.on_cuda()) else "pallas"
    if kernel == "cudnn":
        why_not, remedy = cudnn.refusal(q, k, segments, auto=auto), "Ask for 'auto' or 'xla'"
    else:
        why_not = flash.refusal(q, k, text_tokens, auto=auto)
        remedy = "Ask for 'auto' or 'xla', or, to see the kernel's values on any device, for interpret=True"
    if why_not is None:
        return kernel
    if not auto:
        raise ValueError(f"implementation={implementation!r} cannot be used: {why_not}. {remedy}")
    if jax.default_backend() == "tpu":
        logger.warning("attention over %s by XLA, not by our kernel: %s", q.shape, why_not)
    if jax.default_backend() != "gpu":
        return "xla"
    at_once = blockwise.queries_at_once(q, k)
    if at_once < q.shape[1]:
        logger.warning("attention over %s by XLA, %d queries at a time: %s", q.shape, at_once, why_not)
    return "blockwise" if at_once < q.shape[1] else "xla"


def attend_text(
    q: Float[Array, "b l h d"],
    keys: Float[Array, "b t k d"],
    values: Float[Array, "b t k d"],
    *,
    segment_ids: Int[Array, "b l"],
    text_ids: Int[Array, "b t"],
    segments: int | None = None,
    implementation: Implementation,
) -> Float[Array, "b l h d"]:
    """softmax(q k^T / sqrt(d)) v over the text of each token's segment; zeros for tokens that have none.

    Texts are short and every device has all of them, so this works where tokens or heads are divided. `reference` is
    the definition in float32; `auto` and `cudnn` are cuDNN's kernel where it can serve, with `segments` as in `attend`;
    everything else leaves the layout to XLA.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    asked = implementation in ("auto", "cudnn")
    if asked and segments is not None and not cudnn.refusal(q, keys, segments, auto=implementation == "auto"):
        return cudnn.attention(
            q, keys, values, segment_ids=segment_ids, key_ids=text_ids, segments=segments, scale=scale
        )
    softmax_attention = _reference if implementation == "reference" else _xla
    return softmax_attention(q, keys, values, same_segment(segment_ids, text_ids), scale)


def attend_merged(
    q: Float[Array, "b l h d"],
    keys: Float[Array, "b g k d"],
    values: Float[Array, "b g k d"],
    *,
    segment_ids: Int[Array, "b l"],
    key_ids: Int[Array, "b g"],
    sizes: Int[Array, " g"],
    scale: float,
) -> Float[Array, "b l h d"]:
    """softmax(log sizes + scale q k^T) v within segments: each key counts as often as it stands for tokens.

    Plain matrix products, some queries at a time where the logits of all would take too much memory.
    """

    def some(queries: tuple[Float[Array, "b n h d"], Int[Array, "b n"]]) -> Float[Array, "b n h d"]:
        q, ids = queries
        return _xla(q, keys, values, same_segment(ids, key_ids), scale, jnp.log(sizes.astype(jnp.float32)))

    at_once = blockwise.queries_at_once(q, keys)
    if q.shape[1] <= at_once:
        return some((q, segment_ids))
    parts = -(-q.shape[1] // at_once)
    missing = parts * at_once - q.shape[1]
    padded = jnp.pad(q, ((0, 0), (0, missing), (0, 0), (0, 0))), jnp.pad(segment_ids, ((0, 0), (0, missing)))
    out = jax.lax.map(some, tuple(rearrange(x, "b (p n) ... -> p b n ...", p=parts) for x in padded))
    return rearrange(out, "p b n h d -> b (p n) h d")[:, : q.shape[1]]


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
    bias: Float[Array, " n"] | None = None,
) -> Float[Array, "b l h d"]:
    """Two batched matrix products with heads in front; queries that share a key head are rows of one product.

    The softmax's denominator divides the sum over values, not each weight: one pass less over the logits.
    """
    group = q.shape[2] // k.shape[2]
    q = rearrange(q, "b l (k g) d -> b k (g l) d", g=group)
    k, v = rearrange(k, "b n k d -> b k n d"), rearrange(v, "b n k d -> b k n d")
    logits = jnp.einsum("bkld,bknd->bkln", q, k, preferred_element_type=jnp.float32) * scale
    hidden = jnp.where(visible, 0.0 if bias is None else bias, HIDDEN)[:, None, None]
    logits = rearrange(logits, "b k (g l) n -> b k g l n", g=group) + hidden
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = rearrange(jnp.sum(weights, axis=-1), "b k g l -> b k (g l) 1")
    weights = rearrange(weights, "b k g l n -> b k (g l) n").astype(v.dtype)
    out = jnp.einsum("bkln,bknd->bkld", weights, v, preferred_element_type=jnp.float32) / total
    out = rearrange(out, "b k (g l) d -> b l (k g) d", g=group).astype(v.dtype)
    sees_any = jnp.any(visible, axis=-1)[:, :, None, None]
    return jnp.where(sees_any, out, jnp.zeros((), out.dtype))
