"""What all published text encoders share: reading their folder, and attention under a mask.

In: a folder as Hugging Face writes it, config.json and safetensors. Out: a frozen network of nnx, filled tensor by
tensor, that takes token ids [b t] and the mask [b t] of the real tokens, and answers features [b t m] in float32.

Which features: "last" is the output of the last layer after the final norm; "penultimate" is what the last layer takes
in, without a norm (`hidden_states[-2]` of transformers). For the latter the last layer is neither read nor run.
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
from lumina_jax.encoders.numbers import Count, Epsilon, Layers, Words
from lumina_jax.encoders.stored import StoredWeights, stored_weights
from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.weights.files import Renamed
from lumina_jax.weights.modules import fill, named_parameters
from lumina_jax.weights.rules import Rule

CONFIG_FILE, WEIGHTS = "config.json", ("model", "pytorch_model")
KINDS: dict[str, Any] = {
    "vocabulary": Words, "positions": Words, "layers": Layers, "norm_eps": Epsilon, "activation": str,
}  # fmt: skip
"""Types of the sizes of a network, by our names; the others are counts."""
FLOAT32 = jnp.dtype(jnp.float32)
State = Literal["last", "penultimate"]
Module = TypeVar("Module", bound=nnx.Module)
Layer = TypeVar("Layer", bound=nnx.Module)
Rename = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How a network is read."""

    state: State | None = None
    """Which features; None: those that the architecture is used with."""
    dtype: jnp.dtype = FLOAT32
    """Of parameters and activations; softmax and norms are float32 always."""
    tokens: int = 2
    """Of the captions; more than the network has positions are refused before it is read."""
    mesh: Mesh | None = None
    """Over which the parameters are cut, by the table of parallel/axes.py; None: the default device holds all."""


AS_USUAL = Loading()


class Marks(NamedTuple):
    """Token ids put before and after those of a caption, which is then cut at its end."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What is to be known of any encoder."""

    vocabulary: int
    width: int
    layers: int
    """That are run: one less than published for the penultimate state."""
    heads: int
    mlp_width: int
    positions: int | None
    """The longest caption in tokens; None: there is no limit."""
    norm_eps: float
    state: State
    marks: Marks | None = None
    """None: the tokenizer puts its own marks, and keeps the closing one when it cuts."""


@runtime_checkable
class Network(Protocol):
    """A frozen encoder."""

    config: Any
    """An `EncoderConfig`."""

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]: ...


class _Architecture(TypedDict, total=False):
    model_type: str


def settings(folder: Path) -> dict[str, Any]:
    """The values of the configuration in a folder.

    Raises:
      ValueError: the file is missing or no JSON object, or its `model_type` is no text.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"there is no {file}; copy it there, it tells the sizes of the network")
    read_json(file, _Architecture)
    return read_json(file, dict[str, Any])


def sizes(values: Mapping[str, Any], published: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The values that `published` names, under our names, the keys of it.

    Raises:
      ValueError: some are missing, null, of another type, or out of range; the message lists them.
    """
    missing = [theirs for theirs in published.values() if values.get(theirs) is None]
    if missing:
        raise ValueError(f"{folder / CONFIG_FILE} must give the sizes of the network, but has no {', '.join(missing)}")
    kinds = {theirs: KINDS.get(ours, Count) for ours, theirs in published.items()}
    found = typed(values, kinds, folder)
    return {ours: found[theirs] for ours, theirs in published.items()}


def typed(values: Mapping[str, Any], kinds: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Those of the values that have a kind; null counts as absent.

    Raises:
      ValueError: one is of another kind; the message names it.
    """
    given = {name: values[name] for name in kinds if values.get(name) is not None}
    kind = _model(tuple((name, kinds[name]) for name in given))
    return dict(parse_json(json.dumps(given), kind, str(folder / CONFIG_FILE)))


@functools.lru_cache(maxsize=64)
def _model(kinds: tuple[tuple[str, Any], ...]) -> Any:
    from pydantic import create_model  # slow to import

    return create_model("Settings", **{name: (kind, ...) for name, kind in kinds})  # type: ignore[call-overload]


def check_rules(rules: Mapping[str, bool], folder: Path) -> None:
    """Refuse sizes that do not fit together.

    Args:
      rules: what must hold, in words with the values, and whether it does.

    Raises:
      ValueError: one does not; the message lists them.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(f"{folder / CONFIG_FILE}: {'; '.join(broken)}; copy it again")


def whole_heads(found: Mapping[str, Any]) -> dict[str, bool]:
    """The rule of networks whose heads share the width."""
    width, heads = found["width"], found["heads"]
    return {f"hidden_size={width} must be a multiple of num_attention_heads={heads}": width % heads == 0}


def check_settings(values: Mapping[str, Any], known: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Refuse a configuration that asks for what the network here doesn't do; a setting that is absent is fine.

    Raises:
      ValueError: a setting has none of its known values.
    """
    for name, allowed in known.items():
        if name in values and values[name] not in allowed:
            raise ValueError(
                f"{folder / CONFIG_FILE} asks for {name}={values[name]!r}, but this network knows only "
                f"{' or '.join(repr(value) for value in allowed)}; choose another encoder"
            )


def layers_of_state(published: int, state: State, folder: Path) -> int:
    """How many of the published layers the state needs."""
    if state == "last":
        return published
    if published < 2:
        raise ValueError(f"before the last of {published} layers there is no state of the text; take {folder}:last")
    return published - 1


def weights(folder: Path) -> StoredWeights:
    """The tensors of a folder; see `stored_weights`.

    Raises:
      ValueError: there are none, or a file is missing or damaged; the message names what is there instead.
    """
    return stored_weights(folder, WEIGHTS)


def load(
    build: Callable[[], Module],
    rules: Sequence[Rule],
    rename: Rename,
    folder: Path,
    *,
    config: EncoderConfig,
    loading: Loading,
    stored: Any = None,
) -> Module:
    """The network that `build()` would make, with the tensors of the folder; see `fill`.

    Args:
      stored: tensors with their `path`, where they are no safetensors of the folder.
      rename: stored names to the names of the rules, None for what is not used.

    Raises:
      ValueError: captions would be longer than the network has positions; files are missing or damaged; names or shapes
        are not those that the configuration promises.
    """
    if config.positions is not None and loading.tokens > config.positions:
        raise ValueError(
            f"max_tokens={loading.tokens} must be at most the {config.positions} positions of the encoder in {folder}"
        )
    tensors = weights(folder) if stored is None else stored
    places = None
    if loading.mesh is not None:
        abstract = nnx.split(nnx.eval_shape(build))[1]
        places = named_parameters(nnx.to_pure_dict(shardings(abstract, loading.mesh, FSDP_TENSOR)))
    try:
        return fill(build, Renamed(tensors, rename), rules, layers=config.layers, dtype=loading.dtype, shardings=places)
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not fit the {CONFIG_FILE} beside it: {error}") from error


def unused_layer(layers: int, prefix: str, state: State) -> tuple[str, ...]:
    """The beginning of the names of the layer that a penultimate state leaves out; the first ones are `layers`."""
    return (f"{prefix}.{layers}.",) if state == "penultimate" else ()


def stacked(layer: Callable[[nnx.Rngs], Layer], rngs: nnx.Rngs, count: int) -> Layer:
    """`count` layers as one, each parameter with a first axis of layers, for `through`."""
    return jax.vmap(lambda key: layer(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))


def through(layers: Any, x: Float[Array, "b t m"], *inputs: Any) -> Float[Array, "b t m"]:
    """x through every layer of a stack in turn; `inputs` are the same for all."""
    return jax.lax.scan(lambda x, layer: (layer(x, *inputs), None), x, layers)[0]


def visible(mask: Bool[Array, "b t"], *, is_causal: bool) -> Bool[Array, "b t t"]:
    """Which token (second axis) sees which (third): real ones only; when causal, itself and those before it only."""
    tokens = mask.shape[1]
    seen = jnp.tril(jnp.ones((tokens, tokens), bool)) if is_causal else jnp.ones((tokens, tokens), bool)
    return seen & mask[:, None, :]


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s k d"],
    v: Float[Array, "b s k d"],
    seen: Bool[Array, "b t s"],
    *,
    scale: float,
    bias: Float[Array, "h t s"] | None = None,
) -> Float[Array, "b t m"]:
    """Softmax attention, the heads side by side again; h / k consecutive query heads share a key head."""
    q = rearrange(q, "b t (k g) d -> b t k g d", k=k.shape[2])
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits += rearrange(bias, "(k g) t s -> k g t s", k=k.shape[2])
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(jnp.float32).min)
    mixed = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(logits).astype(v.dtype), v)
    return rearrange(mixed, "b t k g d -> b t (k g d)")


def split_heads(x: Float[Array, "b t m"], heads: int) -> Float[Array, "b t h d"]:
    return rearrange(x, "b t (h d) -> b t h d", h=heads)
