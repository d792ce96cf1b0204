"""The encoder of T5 and T5 v1.1, read from its published files.

In: token ids [b t] and a mask [b t] of the real tokens. Out: features [b t m], in float32.
Raffel et al., arXiv 1910.10683: pre-norm, RMSNorm, no absolute positions but a bias on the attention logits, which
depends on head and distance and is the same in every layer; logits are not divided by sqrt(d). The feed-forward is
ReLU (T5), or a gated tanh-GELU (v1.1, Flan). Features are the last state, after the final norm, unless the penultimate
one is asked for. Published layout: `model_type: t5`, with or without the decoder, which is left alone.
"""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.published import (
    AS_USUAL,
    EncoderConfig,
    Loading,
    Rename,
    attend,
    check_rules,
    check_settings,
    layers_of_state,
    load,
    settings,
    sizes,
    split_heads,
    stacked,
    through,
    unused_layer,
    visible,
    weights,
)
from lumina_jax.models.layers import Linear, RMSNorm, param, small_normal
from lumina_jax.weights.rules import Rule, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(EncoderConfig):
    """Sizes of a T5 encoder."""

    head_width: int
    is_gated: bool
    buckets: int
    """Of distances, for both directions together."""
    max_distance: int
    """From which on all distances are in the last bucket of their direction."""


class T5Layer(nnx.Module):
    """Self-attention and feed-forward, each of the normed input and added to it."""

    def __init__(self, rngs: nnx.Rngs, config: T5Config):
        width, hidden, inner = config.width, config.mlp_width, config.heads * config.head_width

        def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> Linear:
            return Linear(rngs, inputs, outputs, axes=axes, init=small_normal)

        self.attention_norm = RMSNorm(rngs, width, config.norm_eps)
        self.query = linear(width, inner, ("embed", "heads"))
        self.key = linear(width, inner, ("embed", "heads"))
        self.value = linear(width, inner, ("embed", "heads"))
        self.output = linear(inner, width, ("heads", "embed"))
        self.mlp_norm = RMSNorm(rngs, width, config.norm_eps)
        self.gate = linear(width, hidden, ("embed", "mlp")) if config.is_gated else None
        self.up = linear(width, hidden, ("embed", "mlp"))
        self.down = linear(hidden, width, ("mlp", "embed"))
        self.heads = config.heads

    def __call__(
        self, x: Float[Array, "b t m"], bias: Float[Array, "h t t"], seen: Bool[Array, "b t t"]
    ) -> Float[Array, "b t m"]:
        y = self.attention_norm(x)
        q, k, v = (split_heads(part(y), self.heads) for part in (self.query, self.key, self.value))
        x = x + self.output(attend(q, k, v, seen, scale=1.0, bias=bias))
        y = self.mlp_norm(x)
        if self.gate is None:
            return x + self.down(jax.nn.relu(self.up(y)))
        return x + self.down(jax.nn.gelu(self.gate(y), approximate=True) * self.up(y))


class T5Encoder(nnx.Module):
    """The layers that the state needs, stacked, and the final norm if it needs that."""

    def __init__(self, rngs: nnx.Rngs, config: T5Config):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.distances = param(rngs, (config.buckets, config.heads), small_normal, axes=(None, None))
        self.layers = stacked(lambda rngs: T5Layer(rngs, config), rngs, config.layers)
        self.norm = RMSNorm(rngs, config.width, config.norm_eps) if config.state == "last" else None
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """The hidden state of each token; real tokens see only real tokens."""
        config = self.config
        buckets = distance_buckets(token_ids.shape[1], buckets=config.buckets, max_distance=config.max_distance)
        with jax.default_matmul_precision("highest"):
            bias = jnp.moveaxis(self.distances[...].astype(jnp.float32)[buckets], -1, 0)
            x = through(self.layers, self.words[...][token_ids], bias, visible(mask, is_causal=False))
            return (x if self.norm is None else self.norm(x)).astype(jnp.float32)


def distance_buckets(tokens: int, *, buckets: int, max_distance: int) -> Int[np.ndarray, "t t"]:
    """The bucket of the distance from each token (first axis) to each token that it sees (second axis).

    The first half of the buckets is for tokens before and the token itself, the second for those after. Half of each
    is one distance a bucket; in the other half buckets widen geometrically up to `max_distance`.
    """
    after = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    distance, one_way = np.abs(after), buckets // 2
    exact = one_way // 2
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    wide = np.minimum(exact + (growth * (one_way - exact)).astype(np.int32), one_way - 1)
    return np.where(after > 0, one_way, 0) + np.where(distance < exact, distance, wide)


def load_t5(folder: Path, loading: Loading = AS_USUAL) -> T5Encoder:
    """The encoder of the T5 in `folder`, of its tensors only those that the state needs.

    Raises:
      ValueError: a file is missing or unreadable; the configuration asks for another network than this one; names or
        shapes of the tensors are not those that the configuration promises. The message lists them.
    """
    config = _config(folder, loading)
    rules = [*_RULES, *(_GATED if config.is_gated else _PLAIN)]
    if config.state == "last":
        rules += norm("encoder.final_layer_norm", "norm", bias=False)
    rename = _rename(config, has_shared="shared.weight" in weights(folder))
    return load(lambda: T5Encoder(nnx.Rngs(0), config), rules, rename, folder, config=config, loading=loading)


def _rename(config: T5Config, *, has_shared: bool) -> Rename:
    """Without the decoder and its head; the word vectors are stored once or twice, under two names."""
    unused = ("decoder.", "lm_head.", *unused_layer(config.layers, "encoder.block", config.state))
    unused = unused if config.state == "last" else (*unused, "encoder.final_layer_norm.")
    unused = (*unused, "encoder.embed_tokens.") if has_shared else unused

    def rename(stored: str) -> str | None:
        if stored.startswith(unused):
            return None
        return "shared.weight" if stored == "encoder.embed_tokens.weight" else stored

    return rename


_LAYER = "encoder.block.{layer}.layer"
_RULES = (
    Rule("shared.weight", "words"),
    Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "distances"),
    *norm(f"{_LAYER}.0.layer_norm", "layers.attention_norm", bias=False),
    *linear(f"{_LAYER}.0.SelfAttention.q", "layers.query", bias=False),
    *linear(f"{_LAYER}.0.SelfAttention.k", "layers.key", bias=False),
    *linear(f"{_LAYER}.0.SelfAttention.v", "layers.value", bias=False),
    *linear(f"{_LAYER}.0.SelfAttention.o", "layers.output", bias=False),
    *norm(f"{_LAYER}.1.layer_norm", "layers.mlp_norm", bias=False),
    *linear(f"{_LAYER}.1.DenseReluDense.wo", "layers.down", bias=False),
)
_PLAIN = tuple(linear(f"{_LAYER}.1.DenseReluDense.wi", "layers.up", bias=False))
_GATED = (
    *linear(f"{_LAYER}.1.DenseReluDense.wi_0", "layers.gate", bias=False),
    *linear(f"{_LAYER}.1.DenseReluDense.wi_1", "layers.up", bias=False),
)

_PUBLISHED = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "layers": "num_layers",
    "heads": "num_heads",
    "head_width": "d_kv",
    "mlp_width": "d_ff",
    "norm_eps": "layer_norm_epsilon",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}
_DEFAULTS = {"relative_attention_max_distance": 128, "feed_forward_proj": "relu"}
"""Of the published format: configurations written before these settings existed don't name them."""


def _config(folder: Path, loading: Loading) -> T5Config:
    values = {**_DEFAULTS, **settings(folder)}
    found = sizes(values, _PUBLISHED, folder)
    check_settings(values, {"feed_forward_proj": ["relu", "gated-gelu"]}, folder)
    buckets, furthest = found["buckets"], found["max_distance"]
    rules = {
        f"relative_attention_num_buckets={buckets} must be even and at least 4": buckets % 2 == 0 and buckets >= 4,
        f"relative_attention_max_distance={furthest} must exceed {buckets // 4}": furthest > buckets // 4,
    }
    check_rules(rules, folder)
    state = loading.state or "last"
    found["layers"] = layers_of_state(found["layers"], state, folder)
    is_gated = values["feed_forward_proj"] == "gated-gelu"
    return T5Config(**found, positions=None, state=state, is_gated=is_gated)
