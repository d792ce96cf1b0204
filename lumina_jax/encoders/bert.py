"""BERT, read from its published files: token ids in, the last hidden state of every token out.

In: token ids [b t] and a mask [b t] of the real tokens. Out: features [b t m], unpooled, in float32.
The encoder of Devlin et al., arXiv 1810.04805: learned absolute positions, LayerNorm after each residual sum, the exact
(erf) GELU. Published layout: config.json and model.safetensors as Hugging Face writes them, a Linear as [out, in].
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num
from safetensors import SafetensorError, safe_open

from lumina_jax.models.layers import LayerNorm, Linear, param, small_normal

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT encoder."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    positions: int
    token_types: int
    norm_eps: float


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

    def __call__(self, x: Float[Array, "b t m"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        q, k, v = (
            rearrange(part(x), "b t (h d) -> b t h d", h=self.heads) for part in (self.query, self.key, self.value)
        )
        logits = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(x.dtype).min)
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v)
        x = self.attention_norm(x + self.output(rearrange(mixed, "b t h d -> b t (h d)")))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """The encoder; its layers are stacked, and one scan runs them."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig):
        self.words = param(rngs, (config.vocabulary, config.width), small_normal, axes=("vocab", "embed"))
        self.positions = param(rngs, (config.positions, config.width), small_normal, axes=(None, "embed"))
        self.token_types = param(rngs, (config.token_types, config.width), small_normal, axes=(None, "embed"))
        self.norm = LayerNorm(rngs, config.width, eps=config.norm_eps)
        self.layers = jax.vmap(lambda key: BertLayer(nnx.Rngs(key), config))(
            jax.random.split(rngs.params(), config.layers)
        )
        self.config = config

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """The last hidden state of each token; real tokens see only real tokens, and `mask` says which those are."""
        tokens = token_ids.shape[1]
        if tokens > self.config.positions:
            raise ValueError(f"{tokens=} of a caption exceed the {self.config.positions} positions of this encoder")
        with jax.default_matmul_precision("highest"):
            x = self.norm(self.words[...][token_ids] + self.positions[...][:tokens] + self.token_types[...][0])
            return jax.lax.scan(lambda x, layer: (layer(x, mask), None), x, self.layers)[0]


def load_bert(folder: Path) -> Bert:
    """The encoder in `folder`.

    Raises:
      ValueError: a file is missing or unreadable; the configuration asks for another network than this one; names or
        shapes of the tensors are not those that the configuration promises. The message lists them.
    """
    config = _config(folder / CONFIG_FILE)
    weights = _to_ours(_read(folder / WEIGHTS_FILE), config.layers, folder / WEIGHTS_FILE)
    wrong: list[str] = []

    def fill(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if weights[name].shape != variable.shape:
            wrong.append(f"{name} is {weights[name].shape} instead of {variable.shape}")
        return variable.replace(jnp.asarray(weights[name], jnp.float32))

    abstract = jax.eval_shape(lambda: Bert(nnx.Rngs(0), config))
    model = jax.tree.map_with_path(fill, abstract, is_leaf=lambda node: isinstance(node, nnx.Variable))
    if wrong:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit the {CONFIG_FILE} beside it: {'; '.join(wrong)}")
    return model


class _Rule(NamedTuple):
    """A tensor of theirs, `{layer}` standing for the number of a layer, and our parameter."""

    theirs: str
    ours: str
    transposed: bool


def _linear(theirs: str, ours: str) -> list[_Rule]:
    return [_Rule(f"{theirs}.weight", f"{ours}.kernel", True), _Rule(f"{theirs}.bias", f"{ours}.bias", False)]


def _norm(theirs: str, ours: str) -> list[_Rule]:
    return [_Rule(f"{theirs}.{part}", f"{ours}.{part}", False) for part in ("weight", "bias")]


_LAYER = "encoder.layer.{layer}"
_RULES = (
    _Rule("embeddings.word_embeddings.weight", "words", False),
    _Rule("embeddings.position_embeddings.weight", "positions", False),
    _Rule("embeddings.token_type_embeddings.weight", "token_types", False),
    *_norm("embeddings.LayerNorm", "norm"),
    *_linear(f"{_LAYER}.attention.self.query", "layers.query"),
    *_linear(f"{_LAYER}.attention.self.key", "layers.key"),
    *_linear(f"{_LAYER}.attention.self.value", "layers.value"),
    *_linear(f"{_LAYER}.attention.output.dense", "layers.output"),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", "layers.attention_norm"),
    *_linear(f"{_LAYER}.intermediate.dense", "layers.up"),
    *_linear(f"{_LAYER}.output.dense", "layers.down"),
    *_norm(f"{_LAYER}.output.LayerNorm", "layers.mlp_norm"),
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
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


def _config(file: Path) -> BertConfig:
    values: dict[str, Any] = json.loads(file.read_text())
    missing = [name for name in _PUBLISHED.values() if name not in values]
    if missing:
        raise ValueError(f"{file} must give the sizes of a BERT encoder, but has no {', '.join(missing)}")
    for name, only in _ONLY.items():
        if values.get(name, only) != only:
            raise ValueError(f"{file} asks for {name}={values[name]!r}, but this BERT has {only!r} only")
    return BertConfig(**{ours: values[theirs] for ours, theirs in _PUBLISHED.items()})


def _read(file: Path) -> dict[str, Num[np.ndarray, "..."]]:
    """The encoder's tensors of a checkpoint, under the names of the table."""
    if not file.is_file():
        raise ValueError(f"there is no {file}; save the encoder with save_pretrained(folder, safe_serialization=True)")
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_tensor(stored) for stored, name in _names(tensors.keys()).items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}); copy it again") from error


def _names(stored: Iterable[str]) -> dict[str, str]:
    """Stored names to names of the table, without the tensors that are not used."""
    names = {}
    for name in stored:
        plain = name.removeprefix("bert.")
        for first, now in _FIRST_NAMES.items():
            plain = plain.replace(first, now)
        if not plain.startswith(_UNUSED):
            names[name] = plain
    return names


def _to_ours(theirs: Mapping[str, np.ndarray], layers: int, file: Path) -> dict[str, np.ndarray]:
    """Their tensors under our names, layers stacked along a new first axis."""
    sources = {
        rule: [rule.theirs.format(layer=layer) for layer in range(layers if "{layer}" in rule.theirs else 1)]
        for rule in _RULES
    }
    wanted = {name for names in sources.values() for name in names}
    missing, unknown = sorted(wanted - theirs.keys()), sorted(theirs.keys() - wanted)
    if missing or unknown:
        raise ValueError(
            f"the tensors of {file} are not those of a BERT of {layers=}: missing {missing or 'none'}, "
            f"unknown {unknown or 'none'}; check {CONFIG_FILE} against the checkpoint"
        )
    ours = {}
    for rule, names in sources.items():
        tensors = [theirs[name].T if rule.transposed else theirs[name] for name in names]
        ours[rule.ours] = np.stack(tensors) if "{layer}" in rule.theirs else tensors[0]
    return ours
