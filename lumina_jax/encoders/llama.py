"""Decoder-only language models, LLaMA and Gemma, read from their published files as text encoders.

In: token ids [b t] and a mask [b t], which is true at real tokens; padding is on the right. Out: features [b t m] in
float32.
LLaMA-2 (Touvron et al., arXiv 2307.09288; `model_type: llama`) has pre-norm layers with RMSNorm, rotary positions,
SwiGLU, and causal attention with grouped key heads. Its features are the last state after the final norm. A caption is
enclosed in the tokens <s> and </s> and then truncated, so that a long caption loses </s>.
Gemma-1 (arXiv 2403.08295; `model_type: gemma`) differs in three ways: word vectors are multiplied by sqrt(width), the
weights of norms are stored as w and used as 1 + w, and the tanh approximation of GELU replaces SiLU. Its features are
the penultimate state, and captions begin with <bos> and have no closing token.
Rotary positions pair dimension i of a head with dimension i + d/2, as published, not with its neighbour.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NotRequired

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from typing_extensions import TypedDict

from lumina_jax.encoders.numbers import Count, Frequency
from lumina_jax.encoders.published import (
    DEFAULT_OPTIONS,
    EncoderConfig,
    HiddenState,
    LoadOptions,
    SpecialTokens,
    apply_layers,
    attention_mask,
    check_rules,
    check_settings,
    heads_divide_width,
    layers_needed,
    load_network,
    masked_attention,
    read_config,
    read_sizes,
    split_heads,
    stack_layers,
    typed_values,
    unused_layer_prefix,
)
from lumina_jax.models.layers import Linear, ParameterKeys, RMSNorm, param, small_normal, zeros
from lumina_jax.weights.rules import Rule, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(EncoderConfig):
    """Sizes of a decoder, and its model family."""

    family: Literal["llama", "gemma"]
    kv_heads: int
    head_width: int
    theta: float
    """The base of the rotary frequencies."""

    @property
    def is_gemma(self) -> bool:
        return self.family == "gemma"


class GemmaNorm(nnx.Module):
    """x / rms(x) * (1 + w), computed in float32."""

    def __init__(self, rngs: nnx.Rngs, width: int, eps: float):
        self.weight = param(rngs, (width,), zeros, axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (y * (1 + self.weight[...].astype(jnp.float32))).astype(x.dtype)


class DecoderLayer(nnx.Module):
    """Causal self-attention and a gated feed-forward network, both pre-norm and residual."""

    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig):
        width, hidden, head = config.width, config.mlp_width, config.head_width

        def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> Linear:
            return Linear(rngs, inputs, outputs, axes=axes, init=small_normal)

        self.attention_norm = _norm(rngs, config)
        self.query = linear(width, config.heads * head, ("embed", "heads"))
        self.key = linear(width, config.kv_heads * head, ("embed", "kv_heads"))
        self.value = linear(width, config.kv_heads * head, ("embed", "kv_heads"))
        self.output = linear(config.heads * head, width, ("heads", "embed"))
        self.mlp_norm = _norm(rngs, config)
        self.gate = linear(width, hidden, ("embed", "mlp"))
        self.up = linear(width, hidden, ("embed", "mlp"))
        self.down = linear(hidden, width, ("mlp", "embed"))
        self.config = config

    def __call__(
        self, x: Float[Array, "b t m"], angles: Float[Array, "t f"], allowed: Bool[Array, "b t t"]
    ) -> Float[Array, "b t m"]:
        y, config = self.attention_norm(x), self.config
        q = rotate(split_heads(self.query(y), config.heads), angles)
        k = rotate(split_heads(self.key(y), config.kv_heads), angles)
        v = split_heads(self.value(y), config.kv_heads)
        x = x + self.output(masked_attention(q, k, v, allowed, scale=1 / math.sqrt(config.head_width)))
        y = self.mlp_norm(x)
        gate = jax.nn.gelu(self.gate(y), approximate=True) if config.is_gemma else jax.nn.silu(self.gate(y))
        return x + self.down(gate * self.up(y))


class CausalDecoder(nnx.Module):
    """The stacked layers that the chosen state needs, and the final norm if the state includes it."""

    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.layers = stack_layers(lambda rngs: DecoderLayer(rngs, config), rngs, config.layers)
        self.norm = _norm(rngs, config) if config.state == "last" else None
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """Return the hidden state of each token. A token attends to the real tokens up to and including itself."""
        config = self.config
        with jax.default_matmul_precision("highest"):
            x = self.words[...][token_ids]
            if config.is_gemma:
                x = x * jnp.asarray(math.sqrt(config.width), x.dtype)
            angles = rotary_angles(token_ids.shape[1], config.head_width, theta=config.theta)
            x = apply_layers(self.layers, x, angles, attention_mask(mask, is_causal=True))
            return (x if self.norm is None else self.norm(x)).astype(jnp.float32)


def rotary_angles(tokens: int, head_width: int, *, theta: float) -> Float[Array, "t f"]:
    """Return position * theta^(-2i / head_width) for i = 0, ..., head_width / 2 - 1."""
    frequencies = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    return jnp.arange(tokens, dtype=jnp.float32)[:, None] * frequencies


def rotate(x: Float[Array, "b t h d"], angles: Float[Array, "t f"]) -> Float[Array, "b t h d"]:
    """Rotate dimensions i and i + d/2 of each head by angle i, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def load_decoder(folder: Path, options: LoadOptions = DEFAULT_OPTIONS) -> CausalDecoder:
    """Read the LLaMA or Gemma in `folder`. Only the tensors that the chosen state needs are read.

    Raises:
      ValueError: a file is missing or unreadable, the configuration describes a network that is not implemented here,
        or names or shapes of the tensors do not match the configuration. The message lists them.
    """
    config = _config(folder, options)
    is_normed = config.state == "last"
    unused = (
        "lm_head.",
        *unused_layer_prefix(config.layers, "layers", config.state),
        *(() if is_normed else ("norm.",)),
    )

    def rename(stored: str) -> str | None:
        name = stored.removeprefix("model.")
        return None if name.startswith(unused) or name.endswith("rotary_emb.inv_freq") else name

    rules = (*_RULES, *norm("norm", "norm", bias=False)) if is_normed else _RULES
    return load_network(
        lambda: CausalDecoder(ParameterKeys(0), config), rules, rename, folder, config=config, options=options
    )


def _norm(rngs: nnx.Rngs, config: DecoderConfig) -> RMSNorm | GemmaNorm:
    return (GemmaNorm if config.is_gemma else RMSNorm)(rngs, config.width, config.norm_eps)


_LAYER = "layers.{layer}"
_RULES = (
    Rule("embed_tokens.weight", "words"),
    *norm(f"{_LAYER}.input_layernorm", "layers.attention_norm", bias=False),
    *linear(f"{_LAYER}.self_attn.q_proj", "layers.query", bias=False),
    *linear(f"{_LAYER}.self_attn.k_proj", "layers.key", bias=False),
    *linear(f"{_LAYER}.self_attn.v_proj", "layers.value", bias=False),
    *linear(f"{_LAYER}.self_attn.o_proj", "layers.output", bias=False),
    *norm(f"{_LAYER}.post_attention_layernorm", "layers.mlp_norm", bias=False),
    *linear(f"{_LAYER}.mlp.gate_proj", "layers.gate", bias=False),
    *linear(f"{_LAYER}.mlp.up_proj", "layers.up", bias=False),
    *linear(f"{_LAYER}.mlp.down_proj", "layers.down", bias=False),
)

_PUBLISHED = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
_STATES: dict[str, HiddenState] = {"llama": "last", "gemma": "penultimate"}
_DEFAULT_BOS, _DEFAULT_EOS = {"llama": 1, "gemma": 2}, {"llama": 2, "gemma": 1}
"""Ids of the opening and closing tokens if config.json does not give them."""


class Rope(TypedDict):
    rope_type: NotRequired[str | None]
    type: NotRequired[str | None]
    rope_theta: NotRequired[Frequency | None]


_DEFAULT_THETA = 10_000.0
"""The rotary base if config.json does not give one, as in the first published LLaMA-2."""
_KNOWN_IN_BOTH: dict[str, list[Any]] = {
    "attention_bias": [False],
    "mlp_bias": [False],
    "use_bidirectional_attention": [None, False],
}
_KNOWN: dict[str, dict[str, list[Any]]] = {
    "llama": {"hidden_act": ["silu"]},
    # Gemma was published with "gelu", which always meant the tanh approximation.
    "gemma": {"hidden_act": ["gelu_pytorch_tanh", "gelu"], "hidden_activation": [None, "gelu_pytorch_tanh"]},
}


def _config(folder: Path, options: LoadOptions) -> DecoderConfig:
    values = read_config(folder)
    family = values["model_type"]
    found = read_sizes(values, _PUBLISHED, folder)
    check_settings(values, {**_KNOWN_IN_BOTH, **_KNOWN[family]}, folder)
    state = options.state or _STATES[family]
    found["layers"] = layers_needed(found["layers"], state, folder)
    given = typed_values(values, {"num_key_value_heads": Count, "head_dim": Count}, folder)
    heads, kv_heads = found["heads"], given.get("num_key_value_heads", found["heads"])
    head_width = given.get("head_dim", found["width"] // heads)
    rules = {
        f"num_attention_heads={heads} must be a multiple of num_key_value_heads={kv_heads}": heads % kv_heads == 0,
        f"head width {head_width} must be even": head_width > 0 and head_width % 2 == 0,
    }
    check_rules(rules if "head_dim" in given else {**heads_divide_width(found), **rules}, folder)
    return DecoderConfig(
        **found,
        family=family,
        state=state,
        kv_heads=kv_heads,
        head_width=head_width,
        theta=_theta(values, folder),
        special_tokens=_special_tokens(values, found["vocabulary"], folder),
    )


def _theta(values: dict[str, Any], folder: Path) -> float:
    given = typed_values(values, {"rope_parameters": Rope, "rope_scaling": Rope, "rope_theta": Frequency}, folder)
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ValueError(
            f"the encoder in {folder} scales its rotary positions ({kind!r}), but only 'default' is supported; choose "
            "a model without rope scaling, such as LLaMA-2 or Gemma-1"
        )
    return float(rope.get("rope_theta") or given.get("rope_theta", _DEFAULT_THETA))


def _special_tokens(values: dict[str, Any], vocabulary: int, folder: Path) -> SpecialTokens:
    """Return <bos>, and for LLaMA also <eos>, as the released text-to-image models were trained."""
    family = values["model_type"]
    opening = values.get("bos_token_id", _DEFAULT_BOS[family])
    closing = values.get("eos_token_id", _DEFAULT_EOS[family])
    if any(not isinstance(token, int) or isinstance(token, bool) for token in (opening, closing)):
        raise ValueError(
            f"bos_token_id and eos_token_id in {folder}/config.json must be one token each, but are {opening} and "
            f"{closing}; choose a base model"
        )
    rule = f"bos_token_id={opening} and eos_token_id={closing} must be in 0..{vocabulary - 1}, see vocab_size"
    check_rules({rule: min(opening, closing) >= 0 and max(opening, closing) < vocabulary}, folder)
    return SpecialTokens((opening,), (closing,) if family == "llama" else ())
