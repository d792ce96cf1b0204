"""The BERT text encoder, read from its published files.

In: token ids [b t] and a mask [b t], which is true at real tokens. Out: unpooled features [b t m] in float32. The
encoder of Devlin et al., arXiv 1810.04805, has learned absolute positions, a LayerNorm after each residual sum, and the
exact (erf) GELU. It is read from config.json and model.safetensors as Hugging Face writes them (`model_type: bert`).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

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
    unused_layer_prefix,
)
from lumina_jax.models.layers import LayerNorm, Linear, ParameterKeys, param, small_normal
from lumina_jax.weights.rules import Rule, linear, norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """Sizes of a BERT encoder."""

    positions: int
    token_types: int


class BertLayer(nnx.Module):
    """Self-attention and feed-forward, each followed by LayerNorm of the residual sum."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig):
        width, hidden = config.width, config.mlp_width

        def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> Linear:
            return Linear(rngs, inputs, outputs, axes=axes, init=small_normal, bias=True)

        self.query = linear(width, width, ("embed", "heads"))
        self.key = linear(width, width, ("embed", "heads"))
        self.value = linear(width, width, ("embed", "heads"))
        self.output = linear(width, width, ("heads", "embed"))
        self.attention_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.up = linear(width, hidden, ("embed", "mlp"))
        self.down = linear(hidden, width, ("mlp", "embed"))
        self.mlp_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "b t m"], allowed: Bool[Array, "b t t"]) -> Float[Array, "b t m"]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        x = self.attention_norm(x + self.output(masked_attention(q, k, v, allowed, scale=1 / math.sqrt(q.shape[-1]))))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """The encoder. Its layers are stacked along the first axis and run by one scan."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.positions = param(rngs, (config.positions, config.width), small_normal, axes=(None, "embed"))
        self.token_types = param(rngs, (config.token_types, config.width), small_normal, axes=(None, "embed"))
        self.norm = LayerNorm(rngs, config.width, eps=config.norm_eps)
        self.layers = stack_layers(lambda rngs: BertLayer(rngs, config), rngs, config.layers)
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """Return the hidden state of each token. Every token attends to the real tokens only."""
        tokens = token_ids.shape[1]
        if tokens > self.config.positions:
            raise ValueError(
                f"a caption has {tokens=}, but this encoder has only {self.config.positions} positions; set a lower "
                "max_tokens"
            )
        with jax.default_matmul_precision("highest"):
            x = self.norm(self.words[...][token_ids] + self.positions[...][:tokens] + self.token_types[...][0])
            return apply_layers(self.layers, x, attention_mask(mask, is_causal=False)).astype(jnp.float32)


def load_bert(folder: Path, options: LoadOptions = DEFAULT_OPTIONS) -> Bert:
    """Read the encoder in `folder`. Its features are the last state unless `options` asks for another.

    Raises:
      ValueError: a file is missing or unreadable, the configuration describes a network that is not implemented here,
        or names or shapes of the tensors do not match the configuration. The message lists them.
    """
    config = bert_config(folder, options)

    def rename(stored: str) -> str | None:
        return bert_name(stored, config)

    return load_network(
        lambda: Bert(ParameterKeys(0), config), BERT_RULES, rename, folder, config=config, options=options
    )


def bert_name(stored: str, config: BertConfig) -> str | None:
    """Return the name that the rules use for a stored tensor, or None if the tensor is not used."""
    name = stored.removeprefix("bert.")
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return (
        None
        if name.startswith((*_UNUSED, *unused_layer_prefix(config.layers, "encoder.layer", config.state)))
        else name
    )


_LAYER = "encoder.layer.{layer}"
BERT_RULES = (
    Rule("embeddings.word_embeddings.weight", "words"),
    Rule("embeddings.position_embeddings.weight", "positions"),
    Rule("embeddings.token_type_embeddings.weight", "token_types"),
    *norm("embeddings.LayerNorm", "norm", bias=True),
    *linear(f"{_LAYER}.attention.self.query", "layers.query", bias=True),
    *linear(f"{_LAYER}.attention.self.key", "layers.key", bias=True),
    *linear(f"{_LAYER}.attention.self.value", "layers.value", bias=True),
    *linear(f"{_LAYER}.attention.output.dense", "layers.output", bias=True),
    *norm(f"{_LAYER}.attention.output.LayerNorm", "layers.attention_norm", bias=True),
    *linear(f"{_LAYER}.intermediate.dense", "layers.up", bias=True),
    *linear(f"{_LAYER}.output.dense", "layers.down", bias=True),
    *norm(f"{_LAYER}.output.LayerNorm", "layers.mlp_norm", bias=True),
)
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")
"""Prefixes of tensors that are ignored: the pooler, the pretraining heads, and the position ids 0, 1, 2, ..."""
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of LayerNorm parameters in the oldest published checkpoints, which are still in use."""

_PUBLISHED = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
_KNOWN: dict[str, list[Any]] = {"hidden_act": ["gelu"], "position_embedding_type": ["absolute"], "is_decoder": [False]}


def bert_config(folder: Path, options: LoadOptions) -> BertConfig:
    """Read the sizes from config.json in `folder`. It raises the same errors as `load_bert`."""
    values = read_config(folder)
    found = read_sizes(values, _PUBLISHED, folder)
    check_settings(values, _KNOWN, folder)
    check_rules(heads_divide_width(found), folder)
    state = options.state or "last"
    found["layers"] = layers_needed(found["layers"], state, folder)
    return BertConfig(**found, state=state)
