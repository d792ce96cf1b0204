"""What the network learns about captions: their pooled features, and a text encoder that is trained with it.

The encoder is for phonemes, whose features come from no trained model. In: features of the symbols of each text. Out:
features of the network's width, each of which has seen the whole text: layers of self-attention within each text, with
rotary embedding, and a feed-forward network, each behind an RMSNorm.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumina_jax.config import ModelConfig
from lumina_jax.kernels.arguments import Attend, may_be_kernels
from lumina_jax.models.attention import Attention, TokenContext
from lumina_jax.models.layers import LayerNorm, Linear, RMSNorm, SwiGLU, zeros
from lumina_jax.models.rope import RopeScaling, rotation
from lumina_jax.tokens import TextFeatures


class CaptionPooling(nnx.Module):
    """The mean of each caption's features through LayerNorm and a zero-initialised linear."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.norm = LayerNorm(rngs, config.caption_width)
        axes = (config.caption_axis, "condition")
        self.linear = Linear(rngs, config.caption_width, config.condition_width, axes=axes, init=zeros, bias=True)

    def __call__(self, text: TextFeatures, segments: int) -> Float[Array, "b s c"]:
        member = (text.segment_ids[:, None, :] == jnp.arange(1, segments + 1)[:, None]).astype(jnp.float32)
        total = jnp.einsum("bst,btc->bsc", member, text.features.astype(jnp.float32), precision="highest")
        mean = total / jnp.maximum(jnp.sum(member, axis=-1, keepdims=True), 1)
        return self.linear(self.norm(mean))


class TextLayer(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.attention_norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.attention = Attention(rngs, config)
        self.mlp_norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.mlp = SwiGLU(rngs, config.width, config.mlp_width, kernels=may_be_kernels(config.attention))

    def __call__(self, x: Float[Array, "b t m"], tokens: TokenContext, attend: Attend) -> Float[Array, "b t m"]:
        x = x + self.attention(self.attention_norm(x), tokens, None, attend)
        return x + self.mlp(self.mlp_norm(x))


class TextLayers(nnx.Module):
    """A linear to the network's width, then `model.text_layers` layers and a norm."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.embedding = Linear(rngs, config.text_width, config.width, axes=(None, "embed"), bias=True)
        self.layers = nnx.List([TextLayer(rngs, config) for _ in range(config.text_layers)])
        self.norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.head_width, self.theta = config.head_width, config.rope_theta

    def __call__(self, text: TextFeatures, attend: Attend, dtype: jnp.dtype) -> TextFeatures:
        """The texts with features [b t m] in the type `dtype`."""
        segment_ids = jnp.asarray(text.segment_ids)
        # Attention sees only differences of positions, so they need not restart at 0 with each text of a row.
        positions = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)[:, :, None]
        turns = rotation(positions, head_width=self.head_width, theta=self.theta, scaling=RopeScaling())
        x = self.embedding(jnp.asarray(text.features, dtype))
        for layer in self.layers:
            x = layer(x, TokenContext(segment_ids, turns, None), attend)
        return TextFeatures(self.norm(x), segment_ids)
