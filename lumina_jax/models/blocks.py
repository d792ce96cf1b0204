"""The layers that a network may consist of: those of Flag-DiT, Next-DiT and DiT.

In: activations [b l m], the vectors of adaLN of each sample [b s v], and the text of each sample for attention. Out:
activations [b l m]. Each layer is attention, then a feed-forward; they differ in norms, adaLN, biases, and in how they
read the text: Flag-DiT and Next-DiT beside the self-attention, DiT after it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lumina_jax.config import ModelConfig
from lumina_jax.kernels.arguments import Attend, may_be_kernels
from lumina_jax.models.attention import (
    Attention,
    CrossAttention,
    LayerText,
    TextProjection,
    TokenContext,
    gated,
)
from lumina_jax.models.branches import BranchInput, BranchOutput, between
from lumina_jax.models.layers import GeluMLP, Linear, PlainLayerNorm, RMSNorm, SwiGLU, zeros
from lumina_jax.parallel.columns import DividedColumns
from lumina_jax.tokens import spread


class Modulation(nnx.Module):
    """adaLN: SiLU and a zero-initialised linear from the condition to `parts` vectors of the model width."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig, parts: int):
        outputs = parts * config.width
        axes = ("condition", "modulation")
        self.linear = Linear(rngs, config.condition_width, outputs, axes=axes, init=zeros, bias=True)
        self.parts = parts

    def __call__(self, condition: Float[Array, "b s c"], segment_ids: Int[Array, "b l"]) -> list[Float[Array, "b _ m"]]:
        return vectors(self.values(condition), self.parts, segment_ids)

    def values(self, condition: Float[Array, "b s c"]) -> Float[Array, "b s v"]:
        """The vectors of each sample, side by side."""
        return self.linear(jax.nn.silu(condition))


def values_across(
    stacked: Modulation, condition: Float[Array, "b s c"], devices: DividedColumns
) -> Float[Array, "k b s v"]:
    """`Modulation.values` for each of the stacked layers, by the devices that divide their columns."""
    x = jax.nn.silu(condition).reshape(-1, condition.shape[-1])
    linear = stacked.linear
    assert linear.bias is not None
    y = devices.product(x, linear.kernel[...], linear.bias[...])
    return y.reshape(-1, *condition.shape[:2], y.shape[-1])


def vectors(values: Float[Array, "b s v"], parts: int, segment_ids: Int[Array, "b l"]) -> list[Float[Array, "b _ m"]]:
    """Vectors that lie side by side, each for the tokens of its sample."""
    return [spread(part, segment_ids) for part in jnp.split(values, parts, axis=-1)]


FEED_FORWARD = "feed_forward"
"""The name by which `model.remat` keeps the output of the feed-forward. The gradients of its gate, or of the norm after
it, need it, and its last product is among the dearest to compute again."""


def branch_norm(rngs: nnx.Rngs, config: ModelConfig) -> RMSNorm | PlainLayerNorm:
    """The norm before attention and before the feed-forward."""
    if config.norm_kind == "layer":
        return PlainLayerNorm(config.norm_eps)
    return RMSNorm(rngs, config.width, config.norm_eps, weight=config.norm_weights)


class FlagBlock(nnx.Module):
    """A layer of Flag-DiT: attention, then the feed-forward. The input of each is normed, scaled and shifted, and its
    output is gated and added."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.modulation = Modulation(rngs, config, parts=6)
        self.attention_norm = branch_norm(rngs, config)
        self.attention = Attention(rngs, config)
        self.text = TextProjection(rngs, config) if config.conditioning == "text" else None
        self.mlp_norm = branch_norm(rngs, config)
        self.kernels = may_be_kernels(config.attention)
        self.mlp = SwiGLU(rngs, config.width, config.mlp_width, kernels=self.kernels)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        modulation: Float[Array, "b s v"],
        tokens: TokenContext,
        text: LayerText | None,
        attend: Attend,
    ) -> Float[Array, "b l m"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = vectors(modulation, 6, tokens.segment_ids)
        x, z = between(x, None, BranchInput(self.attention_norm, scale, shift), kernels=self.kernels)
        y = self.attention(z, tokens, gated(self.text, text), attend)
        x, z = between(x, BranchOutput(y, gate), BranchInput(self.mlp_norm, mlp_scale, mlp_shift), kernels=self.kernels)
        return between(x, BranchOutput(self.mlp(z), mlp_gate, kept_as=FEED_FORWARD), None, kernels=self.kernels)[0]


class NextBlock(nnx.Module):
    """A layer of Next-DiT: attention, then the feed-forward. The input of each is normed and scaled, and its output is
    normed again ("sandwich norm"), gated through tanh and added."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        width, eps = config.width, config.norm_eps
        self.modulation = Modulation(rngs, config, parts=4)
        self.attention_norm = branch_norm(rngs, config)
        self.attention = Attention(rngs, config)
        self.attention_out_norm = RMSNorm(rngs, width, eps)
        self.text = TextProjection(rngs, config) if config.conditioning == "text" else None
        self.mlp_norm = branch_norm(rngs, config)
        self.mlp = SwiGLU(rngs, width, config.mlp_width, kernels=may_be_kernels(config.attention))
        self.mlp_out_norm = RMSNorm(rngs, width, eps)
        self.kernels = may_be_kernels(config.attention)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        modulation: Float[Array, "b s v"],
        tokens: TokenContext,
        text: LayerText | None,
        attend: Attend,
    ) -> Float[Array, "b l m"]:
        scale, gate, mlp_scale, mlp_gate = vectors(modulation, 4, tokens.segment_ids)
        x, z = between(x, None, BranchInput(self.attention_norm, scale), kernels=self.kernels)
        y = self.attention(z, tokens, gated(self.text, text), attend)
        output = BranchOutput(y, jnp.tanh(gate), self.attention_out_norm)
        x, z = between(x, output, BranchInput(self.mlp_norm, mlp_scale), kernels=self.kernels)
        output = BranchOutput(self.mlp(z), jnp.tanh(mlp_gate), self.mlp_out_norm, FEED_FORWARD)
        return between(x, output, None, kernels=self.kernels)[0]


class DiTBlock(nnx.Module):
    """A layer of DiT (arXiv 2212.09748, section 3.2, adaLN-zero; SiT has the same): attention, then a feed-forward with
    GELU, both with biases. The input of each is normed, scaled and shifted, and its output is gated and added.

    Text is read by a cross-attention between them, which adds to its input without a norm or a gate (PixArt-alpha,
    arXiv 2310.00426, section 2.3)."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.modulation = Modulation(rngs, config, parts=6)
        self.attention_norm = branch_norm(rngs, config)
        self.attention = Attention(rngs, config)
        has_text = config.conditioning == "text"
        self.text = TextProjection(rngs, config) if has_text else None
        self.text_attention = CrossAttention(rngs, config) if has_text else None
        self.mlp_norm = branch_norm(rngs, config)
        self.mlp = GeluMLP(rngs, config.width, config.mlp_width)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        modulation: Float[Array, "b s v"],
        tokens: TokenContext,
        text: LayerText | None,
        attend: Attend,
    ) -> Float[Array, "b l m"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = vectors(modulation, 6, tokens.segment_ids)
        y = self.attention_norm(x) * (1 + scale) + shift
        x = x + gate * self.attention(y, tokens, None, attend)
        if self.text_attention is not None and text is not None:
            x = x + self.text_attention(x, tokens, text)
        y = self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift
        return x + mlp_gate * checkpoint_name(self.mlp(y), FEED_FORWARD)


Block = FlagBlock | NextBlock | DiTBlock
BLOCKS: dict[str, type[Block]] = {"flag": FlagBlock, "next": NextBlock, "dit": DiTBlock}
"""The layer for each `model.block`."""
