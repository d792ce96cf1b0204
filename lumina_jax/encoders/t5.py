"""The encoder of T5 and T5 v1.1, read from its published files.

In: token ids [b t] and a mask [b t], which is true at real tokens. Out: features [b t m] in float32.
Raffel et al., arXiv 1910.10683, use pre-norm layers with RMSNorm. Instead of absolute positions there is a bias on the
attention logits, which depends on head and distance and is shared by all layers; logits are not divided by sqrt(d). The
activation of the feed-forward network is ReLU (T5) or a gated tanh-GELU (v1.1, Flan). Features are the last state after
the final norm, or the penultimate state. The published layout is `model_type: t5`; a decoder is not read.
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
    DEFAULT_OPTIONS,
    EncoderConfig,
    LoadOptions,
    Rename,
    apply_layers,
    attention_mask,
    check_rules,
    check_settings,
    layers_needed,
    load_network,
    masked_attention,
    read_config,
    read_sizes,
    read_weights,
    split_heads,
    stack_layers,
    unused_layer_prefix,
)
from lumina_jax.models.layers import Linear, ParameterKeys, RMSNorm, param, small_normal
from lumina_jax.weights.rules import Rule, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(EncoderConfig):
    """Sizes of a T5 encoder."""

    head_width: int
    is_gated: bool
    buckets: int
    """The number of distance buckets, for both directions together."""
    max_distance: int
    """Larger distances all fall into the last bucket of their direction."""


class T5Layer(nnx.Module):
    """Self-attention and a feed-forward network, both pre-norm and residual."""

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
        self, x: Float[Array, "b t m"], bias: Float[Array, "h t t"], allowed: Bool[Array, "b t t"]
    ) -> Float[Array, "b t m"]:
        y = self.attention_norm(x)
        q, k, v = (split_heads(part(y), self.heads) for part in (self.query, self.key, self.value))
        x = x + self.output(masked_attention(q, k, v, allowed, scale=1.0, bias=bias))
        y = self.mlp_norm(x)
        if self.gate is None:
            return x + self.down(jax.nn.relu(self.up(y)))
        return x + self.down(jax.nn.gelu(self.gate(y), approximate=True) * self.up(y))


class T5Encoder(nnx.Module):
    """The stacked layers that the chosen state needs, and the final norm if the state includes it."""

    def __init__(self, rngs: nnx.Rngs, config: T5Config):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.distances = param(rngs, (config.buckets, config.heads), small_normal, axes=(None, None))
        self.layers = stack_layers(lambda rngs: T5Layer(rngs, config), rngs, config.layers)
        self.norm = RMSNorm(rngs, config.width, config.norm_eps) if config.state == "last" else None
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """Return the hidden state of each token. Every token attends to the real tokens only."""
        config = self.config
        buckets = distance_buckets(token_ids.shape[1], buckets=config.buckets, max_distance=config.max_distance)
        with jax.default_matmul_precision("highest"):
            bias = jnp.moveaxis(self.distances[...].astype(jnp.float32)[buckets], -1, 0)
            x = apply_layers(self.layers, self.words[...][token_ids], bias, attention_mask(mask, is_causal=False))
            return (x if self.norm is None else self.norm(x)).astype(jnp.float32)


def distance_buckets(tokens: int, *, buckets: int, max_distance: int) -> Int[np.ndarray, "t t"]:
    """Return the bucket of the distance from each query token (first axis) to each key token (second axis).

    The first half of the buckets is for keys at or before the query, the second half for keys after it. Within each
    half, the first half of the buckets hold one distance each; the others widen geometrically up to `max_distance`.
    """
    after = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    distance, one_way = np.abs(after), buckets // 2
    exact = one_way // 2
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    wide = np.minimum(exact + (growth * (one_way - exact)).astype(np.int32), one_way - 1)
    return np.where(after > 0, one_way, 0) + np.where(distance < exact, distance, wide)


def load_t5(folder: Path, options: LoadOptions = DEFAULT_OPTIONS) -> T5Encoder:
    """Read the encoder of the T5 in `folder`. Only the tensors that the chosen state needs are read.

    Raises:
      ValueError: a file is missing or unreadable, the configuration describes a network that is not implemented here,
        or names or shapes of the tensors do not match the configuration. The message lists them.
    """
    config = _config(folder, options)
    rules = [*_RULES, *(_GATED if config.is_gated else _PLAIN)]
    if config.state == "last":
        rules += norm("encoder.final_layer_norm", "norm", bias=False)
    rename = _rename(config, has_shared="shared.weight" in read_weights(folder))
    return load_network(
        lambda: T5Encoder(ParameterKeys(0), config), rules, rename, folder, config=config, options=options
    )


def _rename(config: T5Config, *, has_shared: bool) -> Rename:
    """Return the function that renames tensors. The word vectors may be stored under either or both of two names."""
    unused = ("decoder.", "lm_head.", *unused_layer_prefix(config.layers, "encoder.block", config.state))
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
"""The defaults of the published format: configurations older than these settings do not contain them."""


def _config(folder: Path, options: LoadOptions) -> T5Config:
    values = {**_DEFAULTS, **read_config(folder)}
    found = read_sizes(values, _PUBLISHED, folder)
    check_settings(values, {"feed_forward_proj": ["relu", "gated-gelu"]}, folder)
    buckets, furthest = found["buckets"], found["max_distance"]
    rules = {
        f"relative_attention_num_buckets={buckets} must be even and at least 4": buckets % 2 == 0 and buckets >= 4,
        f"relative_attention_max_distance={furthest} must exceed {buckets // 4}": furthest > buckets // 4,
    }
    check_rules(rules, folder)
    state = options.state or "last"
    found["layers"] = layers_needed(found["layers"], state, folder)
    is_gated = values["feed_forward_proj"] == "gated-gelu"
    return T5Config(**found, positions=None, state=state, is_gated=is_gated)
