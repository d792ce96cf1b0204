"""A text encoder that is trained with the network: for phonemes, whose features hold no learned number.

In: features of the symbols of each text. Out: features of the network's width that know their neighbours: layers of
self-attention within each text, with rotary embedding, and a feed-forward network, each behind an RMSNorm.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumina_jax.config import ModelConfig
from lumina_jax.models.attention import Attend, Attention, Sequence
from lumina_jax.models.layers import Linear, RMSNorm, SwiGLU
from lumina_jax.models.rope import RopeScaling, rotation
from lumina_jax.parallel.tensor import ALONE, Tensor
from lumina_jax.tokens import TextFeatures


class TextLayer(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.attention_norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.attention = Attention(rngs, config)
        self.mlp_norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.mlp = SwiGLU(rngs, config.width, config.mlp_width)

    def __call__(
        self, x: Float[Array, "b t m"], sequence: Sequence, attend: Attend, tensor: Tensor = ALONE
    ) -> Float[Array, "b t m"]:
        x = x + self.attention(self.attention_norm(x), sequence, None, attend, tensor)
        return x + self.mlp(self.mlp_norm(x), tensor)


class TextLayers(nnx.Module):
    """`model.text_layers` of them, after a linear to the network's width."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.embedding = Linear(rngs, config.text_width, config.width, axes=("text", None), bias=True)
        self.layers = nnx.List([TextLayer(rngs, config) for _ in range(config.text_layers)])
        self.norm = RMSNorm(rngs, config.width, config.norm_eps)
        self.head_width, self.theta = config.head_width, config.rope_theta

    def __call__(self, text: TextFeatures, attend: Attend, dtype: jnp.dtype, tensor: Tensor = ALONE) -> TextFeatures:
        """The same texts with features [b t m] of type `dtype`."""
        segment_ids = jnp.asarray(text.segment_ids)
        # attention sees only differences of places, so texts of a row may count on from one another
        places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)[:, :, None]
        turns = rotation(places, head_width=self.head_width, theta=self.theta, scaling=RopeScaling())
        x = self.embedding(jnp.asarray(text.features, dtype))
        for layer in self.layers:
            x = layer(x, Sequence(segment_ids, turns, None), attend, tensor)
        return TextFeatures(self.norm(x), segment_ids)
