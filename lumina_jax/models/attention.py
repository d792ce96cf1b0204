"""Self-attention with QK-norm and rotary embedding, the zero-initialised text attention beside it, and the
cross-attention to text that DiT has after it.

In: tokens [b l m] and the text of each sample. Out: [b l m]. Beside self-attention, queries serve both attentions; the
sum goes through one output projection (Lumina-T2X, section 2.2). The softmax itself is `kernels.attend`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lumina_jax.config import ModelConfig
from lumina_jax.kernels.arguments import Attend, GatedText, Implementation, may_be_kernels
from lumina_jax.kernels.attention import attend, attend_text
from lumina_jax.kernels.flash.call import refusal_here
from lumina_jax.kernels.rotary import HeadsAffine, RotaryLanes, refusal, rotary_lanes, turned_heads
from lumina_jax.models.layers import Divisible, HeadsNorm, Linear, RMSNorm, normed, param, products, zeros
from lumina_jax.models.merged_attention import Merging
from lumina_jax.models.rope import Rotation, turned
from lumina_jax.models.shared_attention import Sharing
from lumina_jax.parallel.tensor import Tensor


class TokenContext(NamedTuple):
    """What every layer needs to know about the tokens besides their activations."""

    segment_ids: Int[Array, "b l"]
    rotation: Rotation | None
    """None: positions are added to the embedding of tokens instead."""
    key_scale: Float[Array, "b l 1 1"] | None
    """Factor of each token's keys, one for each sample: proportional attention; None: 1."""
    lanes: RotaryLanes | None = None
    """`rotation` as the kernel for QK-norm and rotary embedding reads it; None: XLA computes both."""
    sharing: Sharing | None = None
    """How the first sample of each row attends to the second; None: samples see themselves alone."""
    merging: Merging | None = None
    """Which keys are merged; None: each token has its own."""


class TextKeys(NamedTuple):
    """Keys and values of the text for one layer, or for all layers with a leading layer axis."""

    keys: Float[Array, "*n b t k d"]
    values: Float[Array, "*n b t k d"]


class LayerText(NamedTuple):
    """The text that tokens attend to in one layer."""

    keys: TextKeys
    segment_ids: Int[Array, "b t"]


class TextProjection(Divisible):
    """Caption features to keys and values: RMSNorm, two linears, LayerNorm of the keys.

    For a cross-attention (block "dit") the features are not normed, the linears have biases, and there is no gate.

    With `model.text_heads` there are keys and values for the first heads. The norm of the keys is over all heads, so
    that where there is one, the projection to keys is whole.
    """

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        open_width = config.text_key_heads * config.head_width
        kv_width = config.key_heads * config.head_width if config.qk_norm else open_width
        axes, is_crossed = (config.caption_axis, "kv_heads"), config.block == "dit"
        self.norm = None if is_crossed else RMSNorm(rngs, config.caption_width, config.norm_eps)
        self.key = Linear(rngs, config.caption_width, kv_width, axes=axes, bias=config.biases)
        self.value = Linear(rngs, config.caption_width, open_width, axes=axes, bias=config.biases)
        self.key_norm = HeadsNorm(rngs, kv_width, axis="kv_heads") if config.qk_norm else None
        self.gate = None if is_crossed else param(rngs, (config.text_query_heads,), zeros, axes=("heads",))
        self.head_width = config.head_width

    def __call__(self, features: Float[Array, "b t c"]) -> TextKeys:
        features = self.tensor.share(normed(features, self.norm))
        keys, values = normed(self.key(features), self.key_norm), self.value(features)
        split = (*features.shape[:2], -1, self.head_width)
        return TextKeys(keys[:, :, : values.shape[-1]].reshape(split), values.reshape(split))


def gated(projection: TextProjection | None, text: LayerText | None) -> GatedText | None:
    """The text with the gates of a layer."""
    if projection is None or projection.gate is None or text is None:
        return None
    return GatedText(*text.keys, projection.gate[...], text.segment_ids)


class Attention(Divisible):
    """Self-attention within each sample, plus gated attention to its text."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        width, heads_width, kv_width = config.width, config.heads_width, config.key_heads * config.head_width
        self.query = Linear(rngs, width, heads_width, axes=("embed", "heads"), bias=config.biases)
        self.key = Linear(rngs, width, kv_width, axes=("embed", "kv_heads"), bias=config.biases)
        self.value = Linear(rngs, width, kv_width, axes=("embed", "kv_heads"), bias=config.biases)
        self.out = Linear(rngs, heads_width, width, axes=("heads", "embed"), bias=config.biases)
        self.query_norm = HeadsNorm(rngs, heads_width, axis="heads") if config.qk_norm else None
        self.key_norm = HeadsNorm(rngs, kv_width, axis="kv_heads") if config.qk_norm else None
        has_text_query = config.own_text_query and config.conditioning == "text"
        text_width = heads_width if config.qk_norm else config.text_query_heads * config.head_width  # a norm is of all
        self.text_query = Linear(rngs, width, text_width, axes=("embed", "heads")) if has_text_query else None
        has_text_norm = has_text_query and config.qk_norm
        self.text_query_norm = HeadsNorm(rngs, heads_width, axis="heads") if has_text_norm else None
        self.head_width, self.query_factor = config.head_width, config.query_factor
        self.implementation, self.kernels = config.attention, may_be_kernels(config.attention)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        tokens: TokenContext,
        text: GatedText | None,
        attend: Attend,
    ) -> Float[Array, "b l m"]:
        x = self.tensor.share(x)
        own_text = [self.text_query] if text is not None and self.text_query is not None else []
        linears, norms = [self.query, self.key, *own_text], [self.query_norm, self.key_norm, self.text_query_norm]
        *turning, v = products(x, [*linears, self.value], kernels=self.kernels)
        projected = list(zip(turning, norms))
        q, k, *text_queries = normed_and_turned(projected, tokens, self.head_width)
        q, v = scaled(q, self.query_factor), v.reshape(k.shape)
        if text is not None and text_queries:
            queries = text_queries[0][:, :, : text.gate.shape[0]]
            text = text._replace(queries=scaled(queries, self.query_factor))
        if tokens.key_scale is not None:
            k = k * tokens.key_scale.astype(k.dtype)
        asked: dict[str, Any] = {"segment_ids": tokens.segment_ids, "scale": 1 / math.sqrt(self.head_width)}
        if tokens.merging is not None:
            out = tokens.merging.attended(lambda: attend(q, k, v, **asked), q, k, v, **asked)
            out = out if text is None else with_text(out, q, text, tokens.segment_ids, self.implementation)
        elif tokens.sharing is None:
            out = attend(q, k, v, **asked, text=text)
        else:
            alone = attend(q, k, v, **asked)
            matched_q, matched_k = self._matched(projected[:2], tokens, tokens.sharing)
            out = tokens.sharing.attended(alone, matched_q, matched_k, v, tokens.segment_ids)
            out = out if text is None else with_text(out, q, text, tokens.segment_ids, tokens.sharing.implementation)
        return self.out(out.reshape(*x.shape[:2], -1), self.tensor)

    def _matched(
        self, projected: list[tuple[Float[Array, "b l _"], HeadsNorm | None]], tokens: TokenContext, sharing: Sharing
    ) -> list[Float[Array, "b l _ d"]]:
        """Queries and keys, of which those of samples are matched to their references before they are turned."""
        split = (*projected[0][0].shape[:2], -1, self.head_width)
        heads = [sharing.matched(normed(x, norm).reshape(split), tokens.segment_ids) for x, norm in projected]
        q, k = (turned(x, tokens.rotation) for x in heads)
        k = k if tokens.key_scale is None else k * tokens.key_scale.astype(k.dtype)
        return [scaled(q, self.query_factor), k]


class CrossAttention(Divisible):
    """Attention of tokens to the text of their sample, with queries and an output of its own; adds nothing at first."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        width, heads_width = config.width, config.heads_width
        self.query = Linear(rngs, width, heads_width, axes=("embed", "heads"), bias=config.biases)
        self.query_norm = HeadsNorm(rngs, heads_width, axis="heads") if config.qk_norm else None
        self.out = Linear(rngs, heads_width, width, axes=("heads", "embed"), init=zeros, bias=config.biases)
        self.head_width, self.query_factor = config.head_width, config.query_factor
        self.implementation = config.attention

    def __call__(self, x: Float[Array, "b l m"], tokens: TokenContext, text: LayerText) -> Float[Array, "b l m"]:
        q = normed(self.query(self.tensor.share(x)), self.query_norm)
        q = scaled(q.reshape(*q.shape[:2], -1, self.head_width), self.query_factor)
        out = attend_text(
            q, *text.keys, segment_ids=tokens.segment_ids, text_ids=text.segment_ids, implementation=self.implementation
        )
        return self.out(out.reshape(*x.shape[:2], -1), self.tensor)


def normed_and_turned(
    projected: list[tuple[Float[Array, "b l _"], HeadsNorm | None]], tokens: TokenContext, head_width: int
) -> list[Float[Array, "b l _ d"]]:
    """Projections through their norms, if they have some, and turned, heads apart.

    Where devices divide the heads, XLA computes the norms, whose statistics are sums over devices.
    """
    split = (*projected[0][0].shape[:2], -1, head_width)
    if tokens.lanes is None:
        return [turned(normed(x, norm).reshape(split), tokens.rotation) for x, norm in projected]
    inputs, norms, eps = [], [], 0.0
    for x, norm in projected:
        is_fused = norm is not None and not norm.tensor.axes
        inputs.append(x if is_fused else normed(x, norm))
        norms.append(HeadsAffine(norm.weight[...], norm.bias[...]) if norm is not None and is_fused else None)
        eps = norm.eps if norm is not None else eps
    return [x.reshape(split) for x in turned_heads(inputs, norms, tokens.lanes, eps=eps)]


def with_text(
    out: Float[Array, "b l h d"],
    q: Float[Array, "b l h d"],
    text: GatedText,
    segment_ids: Int[Array, "b l"],
    implementation: Implementation,
) -> Float[Array, "b l h d"]:
    """The output of a self-attention and gated attention to the text."""
    from_text = attend_text(
        text.queries_among(q), text.keys, text.values, segment_ids=segment_ids, text_ids=text.segment_ids,
        implementation=implementation,
    )  # fmt: skip
    return text.added_to(out, from_text)


def lanes_for_kernel(config: ModelConfig, tensor: Tensor, by: Rotation) -> RotaryLanes | None:
    """The angles for the kernel for QK-norm and rotary embedding; None where it cannot run, or is not wanted."""
    widths = [heads * config.head_width // tensor.size for heads in (config.heads, config.key_heads)]
    if not may_be_kernels(config.attention) or refusal_here(auto=config.attention == "auto"):
        return None
    return None if refusal(widths, config.head_width) else rotary_lanes(*by)


def scaled(queries: Float[Array, "b l h d"], factor: float) -> Float[Array, "b l h d"]:
    """Queries times `model.query_factor`, for which the scale of the logits is the same with and without text."""
    return queries if factor == 1 else queries * jnp.asarray(factor, queries.dtype)


def attend_with(config: ModelConfig) -> Attend:
    """`attend` with the back end that the configuration names."""
    return functools.partial(attend, implementation=config.attention)


def proportional_scale(
    segment_ids: Int[Array, "b l"], segments: int, base_length: int, row: tuple[str, ...] = ()
) -> Float[Array, "b l 1 1"]:
    """sqrt(log_base(L)) for each token, where its sample has L tokens, markers included (Lumina-T2X, section 2.3).

    `row` names the mesh axes over which the tokens of a row are divided.
    """
    one_hot = segment_ids[:, :, None] == jnp.arange(1, segments + 1)
    lengths = jnp.sum(one_hot, axis=1)
    lengths = jax.lax.psum(lengths, row) if row else lengths
    length = jnp.sum(jnp.where(one_hot, lengths[:, None, :], 0), axis=-1)
    factor = jnp.sqrt(jnp.log(jnp.maximum(length, 1).astype(jnp.float32)) / math.log(base_length))
    return factor[:, :, None, None]
