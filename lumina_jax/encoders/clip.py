"""The text encoder of CLIP, such as OpenAI's CLIP-L and OpenCLIP-bigG, read from its published files.

In: token ids [b t] and a mask [b t], which is true at real tokens; padding is on the right. Out: features [b t m] in
float32. Radford et al., arXiv 2103.00020, use learned absolute positions, pre-norm layers and causal attention. GELU is
x sigmoid(1.702 x) ("quick_gelu") in OpenAI's networks and exact in OpenCLIP's. Features are the last state after the
final norm, or the penultimate state, which SDXL uses. The published layouts are `model_type: clip_text_model` and
`clip`; the image encoder and the projections of the latter are read by `clip_image`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.published import (
    DEFAULT_OPTIONS,
    EncoderConfig,
    LoadOptions,
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
from lumina_jax.models.layers import LayerNorm, Linear, ParameterKeys, normed, param, small_normal
from lumina_jax.weights.rules import Rule, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(EncoderConfig):
    """Sizes of a CLIP text encoder."""

    positions: int
    activation: Literal["quick_gelu", "gelu"]


@runtime_checkable
class ClipSizes(Protocol):
    """The sizes of a layer of CLIP."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> str: ...


class ClipLayer(nnx.Module):
    """Self-attention and a feed-forward network, both pre-norm and residual."""

    def __init__(self, rngs: nnx.Rngs, config: ClipSizes):
        width, hidden = config.width, config.mlp_width

        def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> Linear:
            return Linear(rngs, inputs, outputs, axes=axes, init=small_normal, bias=True)

        self.attention_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.query = linear(width, width, ("embed", "heads"))
        self.key = linear(width, width, ("embed", "heads"))
        self.value = linear(width, width, ("embed", "heads"))
        self.output = linear(width, width, ("heads", "embed"))
        self.mlp_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.up = linear(width, hidden, ("embed", "mlp"))
        self.down = linear(hidden, width, ("mlp", "embed"))
        self.config = config

    def __call__(self, x: Float[Array, "b t m"], allowed: Bool[Array, "b t t"]) -> Float[Array, "b t m"]:
        y = self.attention_norm(x)
        q, k, v = (split_heads(part(y), self.config.heads) for part in (self.query, self.key, self.value))
        x = x + self.output(masked_attention(q, k, v, allowed, scale=1 / math.sqrt(q.shape[-1])))
        y = self.up(self.mlp_norm(x))
        if self.config.activation == "quick_gelu":
            return x + self.down(y * jax.nn.sigmoid(1.702 * y))
        return x + self.down(jax.nn.gelu(y, approximate=False))


class ClipText(nnx.Module):
    """The stacked layers that the chosen state needs, and the final norm if the state includes it."""

    def __init__(self, rngs: nnx.Rngs, config: ClipTextConfig):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.positions = param(rngs, (config.positions, config.width), small_normal, axes=(None, "embed"))
        self.layers = stack_layers(lambda rngs: ClipLayer(rngs, config), rngs, config.layers)
        self.norm = LayerNorm(rngs, config.width, eps=config.norm_eps) if config.state == "last" else None
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """Return the hidden state of each token. A token attends to the real tokens up to and including itself."""
        tokens = token_ids.shape[1]
        if tokens > self.config.positions:
            raise ValueError(
                f"a caption has {tokens=}, but this encoder has only {self.config.positions} positions; set a lower "
                "max_tokens"
            )
        with jax.default_matmul_precision("highest"):
            x = self.words[...][token_ids] + self.positions[...][:tokens]
            x = apply_layers(self.layers, x, attention_mask(mask, is_causal=True))
            return normed(x, self.norm).astype(jnp.float32)


def load_clip(folder: Path, options: LoadOptions = DEFAULT_OPTIONS) -> ClipText:
    """Read the text encoder of the CLIP in `folder`. Only the tensors that the chosen state needs are read.

    Raises:
      ValueError: a file is missing or unreadable, the configuration describes a network that is not implemented here,
        or names or shapes of the tensors do not match the configuration. The message lists them.
    """
    config = _config(folder, options)
    is_normed = config.state == "last"
    unused = (*_UNUSED, *unused_layer_prefix(config.layers, "encoder.layers", config.state))
    unused = unused if is_normed else (*unused, "final_layer_norm.")

    def rename(stored: str) -> str | None:
        name = stored.removeprefix("text_model.")
        return None if name.startswith(unused) else name

    rules = (*_RULES, *norm("final_layer_norm", "norm", bias=True)) if is_normed else _RULES
    return load_network(
        lambda: ClipText(ParameterKeys(0), config), rules, rename, folder, config=config, options=options
    )


_LAYER = "encoder.layers.{layer}"
CLIP_LAYER_RULES = (
    *norm(f"{_LAYER}.layer_norm1", "layers.attention_norm", bias=True),
    *linear(f"{_LAYER}.self_attn.q_proj", "layers.query", bias=True),
    *linear(f"{_LAYER}.self_attn.k_proj", "layers.key", bias=True),
    *linear(f"{_LAYER}.self_attn.v_proj", "layers.value", bias=True),
    *linear(f"{_LAYER}.self_attn.out_proj", "layers.output", bias=True),
    *norm(f"{_LAYER}.layer_norm2", "layers.mlp_norm", bias=True),
    *linear(f"{_LAYER}.mlp.fc1", "layers.up", bias=True),
    *linear(f"{_LAYER}.mlp.fc2", "layers.down", bias=True),
)
"""The rules of the layers, which the text encoder and the image encoder share."""
_RULES = (
    Rule("embeddings.token_embedding.weight", "words"),
    Rule("embeddings.position_embedding.weight", "positions"),
    *CLIP_LAYER_RULES,
)
_UNUSED = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "embeddings.position_ids")
"""Prefixes of tensors that are ignored: the image encoder, the projections, and the position ids 0, 1, 2, ..."""

_PUBLISHED = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "positions": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}
"""The defaults of the published format: the `text_config` of a whole CLIP may list only values that differ."""


def _config(folder: Path, options: LoadOptions) -> ClipTextConfig:
    values = read_config(folder)
    if values["model_type"] == "clip":
        given = typed_values(values, dict.fromkeys(("text_config", "text_config_dict"), dict[str, Any]), folder)
        older = given.get("text_config_dict")  # if present, it replaces text_config in this format
        values = {**_DEFAULTS, **(given.get("text_config", {}) if older is None else older)}
    found = read_sizes(values, _PUBLISHED, folder)
    check_settings(values, {"hidden_act": ["quick_gelu", "gelu"]}, folder)
    check_rules(heads_divide_width(found), folder)
    state = options.state or "last"
    found["layers"] = layers_needed(found["layers"], state, folder)
    return ClipTextConfig(**found, state=state)
