"""BERT, read from its published files: token ids in, a hidden state of every token out.

In: token ids [b t] and a mask [b t] of the real tokens. Out: features [b t m], unpooled, in float32.
The encoder of Devlin et al., arXiv 1810.04805: learned absolute positions, LayerNorm after each residual sum, the exact
(erf) GELU. Published layout: config.json and model.safetensors as Hugging Face writes them (`model_type: bert`).
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
    AS_USUAL,
    EncoderConfig,
    Loading,
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
    whole_heads,
)
from lumina_jax.models.layers import LayerNorm, Linear, param, small_normal
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

    def __call__(self, x: Float[Array, "b t m"], seen: Bool[Array, "b t t"]) -> Float[Array, "b t m"]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        x = self.attention_norm(x + self.output(attend(q, k, v, seen, scale=1 / math.sqrt(q.shape[-1]))))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """The encoder; its layers are stacked, and one scan runs them."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.positions = param(rngs, (config.positions, config.width), small_normal, axes=(None, "embed"))
        self.token_types = param(rngs, (config.token_types, config.width), small_normal, axes=(None, "embed"))
        self.norm = LayerNorm(rngs, config.width, eps=config.norm_eps)
        self.layers = stacked(lambda rngs: BertLayer(rngs, config), rngs, config.layers)
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """The hidden state of each token; real tokens see only real tokens, and `mask` says which those are."""
        tokens = token_ids.shape[1]
        if tokens > self.config.positions:
            raise ValueError(f"{tokens=} of a caption exceed the {self.config.positions} positions of this encoder")
        with jax.default_matmul_precision("highest"):
            x = self.norm(self.words[...][token_ids] + self.positions[...][:tokens] + self.token_types[...][0])
            return through(self.layers, x, visible(mask, is_causal=False)).astype(jnp.float32)


def load_bert(folder: Path, loading: Loading = AS_USUAL) -> Bert:
    """The encoder in `folder`; its state is the last one, unless `loading` asks for another.

    Raises:
      ValueError: a file is missing or unreadable; the configuration asks for another network than this one; names or
        shapes of the tensors are not those that the configuration promises. The message lists them.
    """
    config = bert_config(folder, loading)

    def rename(stored: str) -> str | None:
        return bert_name(stored, config)

    return load(lambda: Bert(nnx.Rngs(0), config), BERT_RULES, rename, folder, config=config, loading=loading)


def bert_name(stored: str, config: BertConfig) -> str | None:
    """The name in the rules of a stored one; None for what is not used."""
    name = stored.removeprefix("bert.")
    for first, now in _FIRST_NAMES.items():
        name = name.replace(first, now)
    return None if name.startswith((*_UNUSED, *unused_layer(config.layers, "encoder.layer", config.state))) else name


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
"""Beginnings of names that hold no part of the encoder: the pooled sentence, heads of the pretraining, 0, 1, 2, ..."""
_FIRST_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""How the first published checkpoints, still in use, call the parameters of a LayerNorm."""

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


def bert_config(folder: Path, loading: Loading) -> BertConfig:
    """The sizes in the config.json of a folder; errors as `load_bert`."""
    values = settings(folder)
    found = sizes(values, _PUBLISHED, folder)
    check_settings(values, _KNOWN, folder)
    check_rules(whole_heads(found), folder)
    state = loading.state or "last"
    found["layers"] = layers_of_state(found["layers"], state, folder)
    return BertConfig(**found, state=state)
