"""Reading published text encoders, and the masked attention that they share.

In: a folder with config.json and safetensors files, as Hugging Face writes them. Out: a frozen nnx module, loaded one
tensor at a time. It maps token ids [b t] and a mask [b t], which is true at real tokens, to features [b t m] in
float32.

The features are one of two states: "last" is the output of the last layer after the final norm; "penultimate" is the
input of the last layer, without a norm (`hidden_states[-2]` in transformers). For "penultimate" the last layer is
neither read nor run.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from typing_extensions import TypedDict

from lumina_jax.documents import parse_json, read_json
from lumina_jax.encoders.numbers import Count, Epsilon, Layers, VocabularySize
from lumina_jax.encoders.stored import StoredWeights, stored_weights
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.weights.files import Renamed
from lumina_jax.weights.modules import load_module, named_parameters
from lumina_jax.weights.rules import Rule

CONFIG_FILE, WEIGHTS = "config.json", ("model", "pytorch_model")
SIZE_TYPES: dict[str, Any] = {
    "vocabulary": VocabularySize, "positions": VocabularySize, "layers": Layers, "norm_eps": Epsilon, "activation": str,
}  # fmt: skip
"""The types of sizes, by their names in `EncoderConfig`; a size that is not listed is a `Count`."""
FLOAT32 = jnp.dtype(jnp.float32)
HiddenState = Literal["last", "penultimate"]
Module = TypeVar("Module", bound=nnx.Module)
Layer = TypeVar("Layer", bound=nnx.Module)
Rename = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a network."""

    state: HiddenState | None = None
    """The state that the features are taken from; None: the usual one of the architecture."""
    dtype: jnp.dtype = FLOAT32
    """The type of parameters and activations; softmax and norms are always computed in float32."""
    tokens: int = 2
    """The length of captions in tokens; it is checked against the positions of the network before weights are read."""
    mesh: Mesh | None = None
    """Devices over which parameters are sharded, see parallel/axes.py; None: the default device holds them all."""


DEFAULT_OPTIONS = LoadOptions()


class SpecialTokens(NamedTuple):
    """Token ids that are put before and after those of a caption, before it is truncated."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes and options that all encoders have."""

    vocabulary: int
    width: int
    layers: int
    """The number of layers that are run; for the penultimate state it is one less than published."""
    heads: int
    mlp_width: int
    positions: int | None
    """The greatest length of a caption in tokens; None: there is no limit."""
    norm_eps: float
    state: HiddenState
    special_tokens: SpecialTokens | None = None
    """None: the tokenizer adds the special tokens, and keeps the closing one when it truncates."""


@runtime_checkable
class Network(Protocol):
    """A frozen encoder."""

    config: Any
    """An `EncoderConfig`."""

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]: ...


class _Architecture(TypedDict, total=False):
    model_type: str


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json in a folder.

    Raises:
      ValueError: the file is missing or not a JSON object, or its `model_type` is not a string.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{file} is missing, which has the sizes of the network; copy it there")
    read_json(file, _Architecture)
    return read_json(file, dict[str, Any])


def read_sizes(values: Mapping[str, Any], published: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the sizes in a configuration.

    Args:
      published: our name of each size, and its name in config.json.

    Raises:
      ValueError: sizes are missing, null, out of range or of the wrong type; the message lists them.
    """
    missing = [theirs for theirs in published.values() if values.get(theirs) is None]
    if missing:
        raise ValueError(
            f"{folder / CONFIG_FILE} must have the sizes of the network, but lacks {', '.join(missing)}; copy it again"
        )
    types = {theirs: SIZE_TYPES.get(ours, Count) for ours, theirs in published.items()}
    found = typed_values(values, types, folder)
    return {ours: found[theirs] for ours, theirs in published.items()}


def typed_values(values: Mapping[str, Any], types: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values that `types` lists and that are present; null counts as absent.

    Raises:
      ValueError: a value has the wrong type; the message names it.
    """
    given = {name: values[name] for name in types if values.get(name) is not None}
    model = _model(tuple((name, types[name]) for name in given))
    return dict(parse_json(json.dumps(given), model, str(folder / CONFIG_FILE)))


@functools.lru_cache(maxsize=64)
def _model(types: tuple[tuple[str, Any], ...]) -> Any:
    from pydantic import create_model  # slow to import

    return create_model("Settings", **{name: (kind, ...) for name, kind in types})  # type: ignore[call-overload]


def check_rules(rules: Mapping[str, bool], folder: Path) -> None:
    """Refuse sizes that contradict each other.

    Args:
      rules: each rule in words, with its values, and whether it holds.

    Raises:
      ValueError: a rule does not hold; the message lists all that do not.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(f"{folder / CONFIG_FILE}: {'; '.join(broken)}; copy it again")


def heads_divide_width(found: Mapping[str, Any]) -> dict[str, bool]:
    """Return the rule of networks whose heads divide the width evenly."""
    width, heads = found["width"], found["heads"]
    return {f"hidden_size={width} must be a multiple of num_attention_heads={heads}": width % heads == 0}


def check_settings(values: Mapping[str, Any], known: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Refuse a configuration with a value that is not implemented here. A setting may be absent.

    Raises:
      ValueError: a setting has none of its known values.
    """
    for name, allowed in known.items():
        if name in values and values[name] not in allowed:
            raise ValueError(
                f"{folder / CONFIG_FILE} has {name}={values[name]!r}, but this network only supports "
                f"{' or '.join(repr(value) for value in allowed)}; choose another encoder"
            )


def layers_needed(published: int, state: HiddenState, folder: Path) -> int:
    """Return how many of the published layers the state needs."""
    if state == "last":
        return published
    if published < 2:
        raise ValueError(
            f"the penultimate state needs at least 2 layers, but the network has {published}; use {folder}:last"
        )
    return published - 1


def read_weights(folder: Path) -> StoredWeights:
    """Return the tensors of a folder; see `stored_weights`.

    Raises:
      ValueError: there are none, or a file is missing or damaged; the message lists the files that are there.
    """
    return stored_weights(folder, WEIGHTS)


def load_network(
    build: Callable[[], Module],
    rules: Sequence[Rule],
    rename: Rename,
    folder: Path,
    *,
    config: EncoderConfig,
    options: LoadOptions,
    stored: Any = None,
) -> Module:
    """Build a network and load the tensors of a folder into it; see `load_module`.

    Args:
      build: makes the network; it is only evaluated abstractly.
      rename: maps a stored name to the name in the rules, or to None if the tensor is not used.
      stored: the tensors, with an attribute `path`; None: those of the safetensors files in the folder.

    Raises:
      ValueError: captions would be longer than the network has positions, files are missing or damaged, or names or
        shapes do not match the configuration.
    """
    if config.positions is not None and options.tokens > config.positions:
        raise ValueError(
            f"max_tokens={options.tokens} must be at most the {config.positions} positions of the encoder in {folder}"
        )
    tensors = read_weights(folder) if stored is None else stored
    sharding = None
    if options.mesh is not None:
        abstract = nnx.split(nnx.eval_shape(build))[1]
        sharding = named_parameters(nnx.to_pure_dict(shardings(abstract, options.mesh, FSDP_TENSOR)))
    try:
        return load_module(
            build, Renamed(tensors, rename), rules, layers=config.layers, dtype=options.dtype, shardings=sharding
        )
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not match {folder / CONFIG_FILE}: {error}") from error


def unused_layer_prefix(layers: int, prefix: str, state: HiddenState) -> tuple[str, ...]:
    """Return the prefix of the layer after the first `layers`, which the penultimate state does not use."""
    return (f"{prefix}.{layers}.",) if state == "penultimate" else ()


def stack_layers(layer: Callable[[nnx.Rngs], Layer], rngs: nnx.Rngs, count: int) -> Layer:
    """Build `count` layers as one module for `apply_layers`; the first axis of each parameter counts layers."""
    return jax.vmap(lambda key: layer(ParameterKeys(key)))(jax.random.split(rngs.params(), count))


def apply_layers(layers: Any, x: Float[Array, "b t m"], *inputs: Any) -> Float[Array, "b t m"]:
    """Apply stacked layers to x one after another; each layer receives the same `inputs`."""
    return jax.lax.scan(lambda x, layer: (layer(x, *inputs), None), x, layers)[0]


def attention_mask(mask: Bool[Array, "b t"], *, is_causal: bool) -> Bool[Array, "b t t"]:
    """Return which query (second axis) attends to which key (third axis).

    Keys are real tokens; if `is_causal`, they are not after the query.
    """
    tokens = mask.shape[1]
    allowed = jnp.tril(jnp.ones((tokens, tokens), bool)) if is_causal else jnp.ones((tokens, tokens), bool)
    return allowed & mask[:, None, :]


def masked_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s k d"],
    v: Float[Array, "b s k d"],
    allowed: Bool[Array, "b t s"],
    *,
    scale: float,
    bias: Float[Array, "h t s"] | None = None,
) -> Float[Array, "b t m"]:
    """Softmax attention whose heads are concatenated; h / k consecutive query heads share a key head."""
    q = rearrange(q, "b t (k g) d -> b t k g d", k=k.shape[2])
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits += rearrange(bias, "(k g) t s -> k g t s", k=k.shape[2])
    logits = jnp.where(allowed[:, None, None], logits, jnp.finfo(jnp.float32).min)
    mixed = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(logits).astype(v.dtype), v)
    return rearrange(mixed, "b t k g d -> b t (k g d)")


def split_heads(x: Float[Array, "b t m"], heads: int) -> Float[Array, "b t h d"]:
    return rearrange(x, "b t (h d) -> b t h d", h=heads)
