"""What all published text encoders share: reading their folder, and attention under a mask.

In: a folder as Hugging Face writes it, config.json and safetensors. Out: a frozen network of nnx, filled tensor by
tensor, that takes token ids [b t] and the mask [b t] of the real tokens, and answers features [b t m] in float32.

Which features: "last" is the output of the last layer after the final norm; "penultimate" is what the last layer takes
in, without a norm (`hidden_states[-2]` of transformers). For the latter the last layer is neither read nor run.
"""

import dataclasses
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

from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.weights.files import INDEX, Renamed, TensorFiles
from lumina_jax.weights.modules import fill, named_parameters
from lumina_jax.weights.rules import Rule

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_WEIGHTS = ("*.safetensors", "*.bin", "*.msgpack", "*.h5", "*.gguf")
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


def settings(folder: Path) -> dict[str, Any]:
    """The values of the configuration in a folder.

    Raises:
      ValueError: the file is missing or no JSON object.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"there is no {file}; copy it there, it tells the sizes of the network")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold one JSON object, but holds a {type(values).__name__}; copy it again")
    return values


def sizes(values: Mapping[str, Any], published: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The values that `published` names, under our names, the keys of it.

    Raises:
      ValueError: some are missing or null; the message lists them.
    """
    missing = [theirs for theirs in published.values() if values.get(theirs) is None]
    if missing:
        raise ValueError(f"{folder / CONFIG_FILE} must give the sizes of the network, but has no {', '.join(missing)}")
    return {ours: values[theirs] for ours, theirs in published.items()}


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


def weights(folder: Path) -> TensorFiles:
    """The tensors of a folder: model.safetensors if there is one, else the files of the only index.

    Raises:
      ValueError: there is neither, a file that the index names is missing, or one is damaged; the message names what is
        there instead, such as variants in half precision.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return TensorFiles(folder / WEIGHTS_FILE)
    if any(folder.glob(INDEX)):
        return TensorFiles(folder)
    found = sorted(path.name for ending in _WEIGHTS for path in folder.glob(ending))
    raise ValueError(
        f"there is no {folder / WEIGHTS_FILE} and no {INDEX}, only {', '.join(found) or 'no weights'}; copy it there, "
        f"rename the variant to use to {WEIGHTS_FILE}, or save the encoder in this format with "
        "save_pretrained(folder, safe_serialization=True)"
    )


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
