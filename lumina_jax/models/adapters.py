"""Fine-tuning as a change of the tree of parameters, of which the network knows nothing.

In: the parameters of a trained model (the base), and what trains besides them. Out: a tree of the same names that the
network computes with. What trains is a flat dictionary from names of parameters to

    an array            that stands instead of the parameter; with fewer layers, instead of its last ones
    `Factors` A and B   a low-rank adapter (LoRA, Hu et al., arXiv 2106.09685): the weight is W + scale A B
    `Decomposed` A, B   such an adapter of the direction of each column, whose length m trains, too (DoRA, Liu et al.,
    and m               arXiv 2402.09353, equation 5): the weight is m (W + scale A B) / |W + scale A B|, where no
                        gradient flows through the norms |..| of the columns (section 4.3)

so that full training of some parameters, of biases (BitFit), of the last layers, and adapters are one mechanism.

A weight with an adapter is one leaf of the network's tree, a `LowRank`. It is no array, but like one it can be cast and
multiplied: x (W + A B) is computed as x W + (x A) B, so that neither A B nor the gradient of W ever exists. Because it
is a pytree of W, A and B, a scan over layers takes A and B of a layer with its W, FSDP gathers W and leaves A and B as
they are, and rematerialization, packing and attention kernels see arrays as before. The scale is a part of B while the
network computes: other scales, and other adapters of these shapes, need no other program. So are the norms of DoRA,
which are computed once for a step, from all of W.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, UInt32

from lumina_jax.config import FinetuneConfig
from lumina_jax.models.quantised import QuantisedWeight, digest, is_quantised, mixed, weight_shardings
from lumina_jax.parallel.axes import LOGICAL
from lumina_jax.weights.modules import dotted, named_parameters


class Factors(NamedTuple):
    """A low-rank change A B of a matrix of i inputs and o outputs, or of one of each layer."""

    a: Float[Array | np.ndarray, "*n i r"]
    b: Float[Array | np.ndarray, "*n r o"]


class Decomposed(NamedTuple):
    """A low-rank change of the direction of each column of such a matrix, and the length of each column."""

    a: Float[Array | np.ndarray, "*n i r"]
    b: Float[Array | np.ndarray, "*n r o"]
    magnitude: Float[Array | np.ndarray, "*n o"]


Trained = dict[str, Array | Factors | Decomposed]
"""What trains, by the dotted names of parameters."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The weight W + A B, or W diag(gain) + A B, which is multiplied without being computed."""

    base: Any
    a: Any
    b: Any
    gain: Any = None
    """A factor for each column of W; None: 1."""

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    def __getitem__(self, everything: Any) -> "LowRank":
        """The weight itself: `variable[...]` reads a parameter of a module."""
        if everything is not Ellipsis:
            raise TypeError("a weight with an adapter has no parts; take those of its base and its factors")
        return self

    def astype(self, dtype: Any) -> "LowRank":
        gain = None if self.gain is None else self.gain.astype(dtype)
        return LowRank(self.base.astype(dtype), self.a.astype(dtype), self.b.astype(dtype), gain)

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        product = x @ self.base
        return (product if self.gain is None else product * self.gain) + (x @ self.a) @ self.b


def new_trained(settings: FinetuneConfig, base: dict[str, Any], key: Key[Array, ""]) -> Trained:
    """What trains at the first step, when it changes nothing: A is random, B is 0, and parameters are copies. The
    lengths of columns are those of the base.

    A is uniform up to 1 / sqrt(i), as in PEFT.

    Raises:
      ValueError: the settings fit no parameter of this model, or more layers than it has, or parameters are to train
        themselves that the base does not hold in float32.
    """
    named = named_parameters(base)
    layers = jax.tree.leaves(base["blocks"])[0].shape[0]
    if settings.last_layers is not None and settings.last_layers > layers:
        raise ValueError(
            f"finetune.last_layers={settings.last_layers} must be at most the {layers} layers of the model"
        )
    trained: Trained = {}
    for index, (name, rank) in enumerate(settings.ranks(list(named)).items()):
        value = named[name]
        kept = settings.last_layers if name.startswith("blocks.") else None
        if rank is None:
            if is_quantised(value) or value.dtype != jnp.float32:
                raise ValueError(
                    f"parameters train themselves in float32, but finetune.base={settings.base!r} does not hold {name} "
                    "so; give finetune.rank for adapters of the matrices, or leave out finetune.base"
                )
            trained[name] = jnp.copy(_last(value, kept))
            continue
        *stacked, inputs, outputs = value.shape
        stacked = stacked if kept is None else [kept]
        bound = inputs**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, index), (*stacked, inputs, rank), minval=-bound, maxval=bound)
        trained[name] = Factors(a, jnp.zeros((*stacked, rank, outputs)))
        if settings.dora:
            length = jnp.linalg.norm(_last(value, kept).astype(jnp.float32), axis=-2)
            trained[name] = Decomposed(a, jnp.zeros((*stacked, rank, outputs)), length)
    return trained


def scaled(trained: Mapping[str, Any], settings: FinetuneConfig) -> Trained:
    """What trains, with the scale of each adapter in its B."""
    return {
        name: value._replace(b=value.b * settings.scale(value.a.shape[-1]))
        if isinstance(value, Factors | Decomposed)
        else value
        for name, value in trained.items()
    }


def column_norms(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Float[Array, "*n o"]]:
    """The norm |W + A B| of each column that `Decomposed` changes, of which A B is never computed; no gradient flows
    through it.

    Args:
      base: whole arrays, not the shares of one device.
    """
    named = named_parameters(base)

    def one(weight: Any, change: Decomposed) -> Float[Array, "*n o"]:
        weight = weight[-len(change.a) :] if change.a.ndim == 3 else weight
        weight, a, b = (jax.lax.stop_gradient(jnp.asarray(part, jnp.float32)) for part in (weight, *change[:2]))
        mixed = 2 * jnp.einsum("...ir,...io->...ro", a, weight) + jnp.einsum("...ir,...is->...rs", a, a) @ b
        norm = jnp.sqrt(jnp.maximum(jnp.sum(weight**2, axis=-2) + jnp.sum(mixed * b, axis=-2), 0))
        return jnp.where(norm > 0, norm, 1)  # a column of zeros stays one

    return {name: one(named[name], change) for name, change in changes.items() if isinstance(change, Decomposed)}


def adapted(
    base: dict[str, Any], changes: Mapping[str, Any], norms: Mapping[str, Float[Array, "*n o"]] | None = None
) -> dict[str, Any]:
    """The tree that the network computes with: the base, changed.

    Args:
      norms: `column_norms` of these, which shares of parameters cannot give; None: they are computed here.
    """
    norms = column_norms(base, changes) if norms is None else norms

    def one(path: tuple[Any, ...], value: Any) -> Any:
        change = changes.get(dotted(path))
        if change is None:
            return value
        if isinstance(change, Factors):
            return LowRank(value, *(_with_layers(factor, value.shape[0]) for factor in change))
        if isinstance(change, Decomposed):
            gain = change.magnitude / norms[dotted(path)]
            a, b = (_with_layers(factor, len(value)) for factor in (change.a, change.b * gain[..., None, :]))
            rest = jnp.ones((len(value) - len(gain), gain.shape[-1])) if value.ndim == 3 else gain[:0]
            return LowRank(value, a, b, jnp.concatenate([rest, gain]))
        first = value.shape[0] - change.shape[0]
        changed: Any = type(value).of(change, first) if isinstance(value, QuantisedWeight) else change
        if changed.shape == value.shape:
            return changed
        return jax.tree.map(lambda before, after: jnp.concatenate([before[:first], after]), value, changed)

    return jax.tree.map_with_path(one, base, is_leaf=is_quantised)


def joined(adapters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several adapters as one whose change is the sum of theirs; they may be of different numbers of last layers.

    Raises:
      ValueError: one of several adapters of a matrix is of the kind DoRA, which changes the whole matrix.
    """

    def one(parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        if any(isinstance(part, Decomposed) for part in parts):
            raise ValueError(
                "a matrix with an adapter of the kind DoRA cannot have another one; name one of them alone"
            )
        layers = max(len(part.a) for part in parts)
        a, b = ([_with_layers(factor, layers) for factor in factors] for factors in zip(*parts))
        return Factors(jnp.concatenate(a, -1), jnp.concatenate(b, -2))

    names = dict.fromkeys(name for adapter in adapters for name in adapter)
    return {name: one([adapter[name] for adapter in adapters if name in adapter]) for name in names}


def merged(parameters: dict[str, Any]) -> dict[str, Any]:
    """Ordinary parameters: each product A B is added to its W in float32. A quantised W keeps its adapter beside it."""

    def one(weight: Any) -> Any:
        if not isinstance(weight, LowRank) or is_quantised(weight.base):
            return weight
        product = jnp.matmul(weight.a, weight.b, precision="highest")
        base = weight.base.astype(jnp.float32)
        base = base if weight.gain is None else base * weight.gain[..., None, :]
        return (base + product).astype(weight.dtype)

    return jax.tree.map(one, parameters, is_leaf=lambda node: isinstance(node, LowRank))


def unadapted(parameters: dict[str, Any]) -> dict[str, Any]:
    """The base of a network's tree, of parameters or of their shardings."""

    def one(weight: Any) -> Any:
        return weight.base if isinstance(weight, LowRank) else weight

    return jax.tree.map(one, parameters, is_leaf=lambda node: isinstance(node, LowRank))


def without_adapters(parameters: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The base as a tree of the same form as a network's, whose adapters change nothing: both need one program."""

    def one(weight: Any, value: Any) -> Any:
        if not isinstance(weight, LowRank):
            return value
        gain = None if weight.gain is None else jnp.ones_like(weight.gain)
        return LowRank(value, weight.a, jnp.zeros_like(weight.b), gain)

    return jax.tree.map(one, parameters, base, is_leaf=lambda node: isinstance(node, LowRank))


def adapted_shardings(base: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """A sharding for each array of the network's tree.

    Factors are small, and each device has all of them, but for the dimension that tensor parallelism divides.

    Args:
      base: a sharding for each parameter.
      parameters: the tree, abstract or real.
    """

    def one(sharding: Any, weight: Any) -> Any:
        if not isinstance(weight, LowRank):
            return weight_shardings(sharding, weight)
        base = weight_shardings(sharding, weight.base)
        if not isinstance(sharding, NamedSharding):
            return LowRank(base, sharding, sharding, None if weight.gain is None else sharding)
        *_, inputs, outputs = (axes if axes in LOGICAL["tensor"] else None for axes in _padded(sharding, weight))
        stacked = [None] * (weight.base.ndim - 2)
        a, b, gain = (
            NamedSharding(sharding.mesh, PartitionSpec(*stacked, *axes))
            for axes in ((inputs, None), (None, outputs), (outputs,))
        )
        return LowRank(base, a, b, None if weight.gain is None else gain)

    return jax.tree.map(one, base, parameters)


def trained_shardings(base: dict[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """A sharding for each array that trains: that of its parameter, or for factors on every device.

    Args:
      base: a `NamedSharding` for each parameter.
    """
    named = named_parameters(base)
    everywhere = NamedSharding(jax.tree.leaves(base)[0].mesh, PartitionSpec())

    def one(name: str, value: Any) -> Any:
        if isinstance(value, Factors | Decomposed):
            return type(value)(*(everywhere for _ in value))  # type: ignore[arg-type]
        return named[name]

    return {name: one(name, value) for name, value in trained.items()}


@jax.jit
def fingerprint(base: dict[str, Any]) -> UInt32[Array, " 2"]:
    """A number of 64 bits that tells models apart, the same on every mesh and for weights in float32 and bfloat16.

    It is a sum of products of whole numbers, whose order does not matter, over all parameters rounded to bfloat16; of
    quantised ones, over the values that they were made from.
    """
    words = jnp.zeros(2, jnp.uint32)
    for name, value in sorted(named_parameters(base).items()):
        sums = value.digest if isinstance(value, QuantisedWeight) else digest(value)
        words = mixed(words ^ jnp.uint32(hash_of_name(name))) + jnp.sum(sums.reshape(-1, 2), 0, dtype=jnp.uint32)
    return words


def hash_of_name(name: str) -> int:
    """32 bits of a name (FNV-1a)."""
    return functools.reduce(lambda value, byte: (value ^ byte) * 16777619 % 2**32, name.encode(), 2166136261)


def identity(words: Any) -> str:
    """A fingerprint in 16 hexadecimal digits."""
    return "".join(f"{int(word):08x}" for word in jax.device_get(words))


def check_base(wanted: str | UInt32[Array, " 2"], base: dict[str, Any], origin: str) -> None:
    """Refuse to change other parameters than those a change was trained for.

    Args:
      wanted: their fingerprint or identity.
      origin: of the base, for the message.

    Raises:
      ValueError: the base has another fingerprint.
    """
    wanted, found = wanted if isinstance(wanted, str) else identity(wanted), identity(fingerprint(base))
    if wanted != found:
        raise ValueError(
            f"adapters change the weights they were trained for, whose fingerprint is {wanted}, but that of {origin} "
            f"is {found}; name the weights that they were trained from"
        )


def _last(value: Float[Array, "n ..."], kept: int | None) -> Float[Array, "m ..."]:
    """The last layers of a parameter; None: all of it."""
    return value if kept is None else value[len(value) - kept :]


def _with_layers(factor: Float[Array | np.ndarray, "*n _ _"], count: int) -> Float[Array | np.ndarray, "*m _ _"]:
    """A factor with zeros for the first layers, which have no adapter; one that is not stacked is left as it is."""
    if factor.ndim == 2 or len(factor) == count:
        return factor
    return jnp.pad(factor, ((count - len(factor), 0), (0, 0), (0, 0)))


def _padded(sharding: NamedSharding, weight: LowRank) -> tuple[Any, ...]:
    """The mesh axes of each dimension; None for those that a spec leaves out at its end."""
    return (*sharding.spec, *[None] * (weight.base.ndim - len(sharding.spec)))
