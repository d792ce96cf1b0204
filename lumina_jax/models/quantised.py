"""Matrices held in 8 or 4 bits, of which the network knows nothing.

In: a matrix W of i inputs and o outputs, or of one of each layer. Out: a leaf of the network's tree that can be
multiplied as W can, and takes a quarter or an eighth of its memory. The values are

    int8    W = s q    q from -127 to 127, and a scale s for each output: max |W| / 127
    nf4     W = s v_q  16 values v (NormalFloat, Dettmers et al., arXiv 2305.14314, appendix E), and a scale s = max |W|
                       in bfloat16 for each 64 inputs of an output: 4.25 bits a value

With int8 the product is (x q) s, so that W never exists; with nf4 the W of one layer exists while it is multiplied. The
gradient of x is computed from the codes again, so that nothing else is kept for the backward pass, and W has none.

A weight also holds a digest of the W it was made from, which makes the fingerprint of a model (`models/adapters.py`)
what it was before. Like `LowRank`, whose base it may be, it is a pytree: a scan over layers takes the codes and scales
of a layer, and FSDP gathers its codes.
"""

import abc
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8, UInt32

from lumina_jax.config.finetune import MATRIX
from lumina_jax.parallel.axes import LOGICAL

BLOCK, LEAST_BLOCK = 64, 16
"""Inputs that share a scale of nf4, and the fewest for which it is worth its memory."""
NORMAL_FLOAT = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The values of nf4: quantiles of the normal distribution, scaled to [-1, 1], of which one is 0."""


@dataclass(frozen=True)
class QuantisedWeight(abc.ABC):
    """A matrix in few bits, or one of each layer."""

    codes: Any
    scale: Any
    digest: Any
    """Of the matrix of each layer, see `digest`."""

    @classmethod
    def of(cls, weight: Float[Array, "*n i o"], first: Any = 0) -> "QuantisedWeight":
        """The weight that is nearest to this one.

        Args:
          first: the index of the first layer of `weight` among all layers.
        """
        codes, scale = cls._codes(weight.astype(jnp.float32))
        return cls(codes, scale, digest(weight, first))

    @classmethod
    def fits(cls, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a parameter of this name and shape is held so: the matrices of the layers are."""
        return name.startswith("blocks.") and name.endswith(MATRIX) and len(shape) == 3

    @classmethod
    @abc.abstractmethod
    def _codes(cls, weight: Float[Array, "*n i o"]) -> tuple[Array, Array]: ...

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def dequantised(self, dtype: Any) -> Float[Array, "*n i o"]:
        """An ordinary matrix."""

    def _product(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.dequantised(x.dtype)

    def _transposed_product(self, y: Float[Array, "*b o"]) -> Float[Array, "*b i"]:
        return y @ self.dequantised(y.dtype).T

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of the matrix that this stands for."""
        return jnp.dtype(jnp.float32)

    def __getitem__(self, everything: Any) -> "QuantisedWeight":
        """The weight itself: `variable[...]` reads a parameter of a module."""
        if everything is not Ellipsis:
            raise TypeError("a quantised weight has no parts; take those of its codes and scales")
        return self

    def astype(self, dtype: Any) -> "QuantisedWeight":
        """The weight itself: its products have the type of what it is multiplied with."""
        return self

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return _product(x, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Weight(QuantisedWeight):
    """Codes int8 [*n i o], and scales float32 [*n 1 o]."""

    @classmethod
    def _codes(cls, weight: Float[Array, "*n i o"]) -> tuple[Array, Array]:
        largest = jnp.max(jnp.abs(weight), axis=-2, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / 127
        return jnp.round(weight / scale).astype(jnp.int8), scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dequantised(self, dtype: Any) -> Float[Array, "*n i o"]:
        return (self.codes.astype(jnp.float32) * self.scale).astype(dtype)

    def _product(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = jnp.matmul(x, self.codes.astype(x.dtype), preferred_element_type=jnp.float32)
        return (y * self.scale[0]).astype(x.dtype)

    def _transposed_product(self, y: Float[Array, "*b o"]) -> Float[Array, "*b i"]:
        return (y * self.scale[0]).astype(y.dtype) @ self.codes.T.astype(y.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nf4Weight(QuantisedWeight):
    """Two codes in each uint8 [*n i/2 o], and scales bfloat16 [*n i/64 o].

    Of the inputs of a block the first half is in the low four bits, and the second half in the high ones.
    """

    @classmethod
    def fits(cls, name: str, shape: tuple[int, ...]) -> bool:
        return super().fits(name, shape) and math.gcd(shape[-2], BLOCK) >= LEAST_BLOCK

    @classmethod
    def _codes(cls, weight: Float[Array, "*n i o"]) -> tuple[Array, Array]:
        *stacked, inputs, outputs = weight.shape
        block = math.gcd(inputs, BLOCK)
        parts = weight.reshape(*stacked, inputs // block, block, outputs)
        largest = jnp.max(jnp.abs(parts), axis=-2, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1).astype(jnp.bfloat16)
        codes = nearest(parts / scale.astype(jnp.float32))
        low, high = jnp.split(codes, 2, axis=-2)
        return (low | high << 4).reshape(*stacked, inputs // 2, outputs), jnp.squeeze(scale, -2)

    @property
    def shape(self) -> tuple[int, ...]:
        *stacked, rows, outputs = self.codes.shape
        return (*stacked, 2 * rows, outputs)

    def dequantised(self, dtype: Any) -> Float[Array, "*n i o"]:
        *stacked, blocks, outputs = self.scale.shape
        codes = self.codes.reshape(*stacked, blocks, -1, outputs)
        values = normal_float(jnp.concatenate([codes & 15, codes >> 4], axis=-2))
        weight = values * self.scale[..., None, :].astype(jnp.float32)
        return weight.astype(dtype).reshape(self.shape)


FORMATS: dict[str, type[QuantisedWeight]] = {"int8": Int8Weight, "nf4": Nf4Weight}
"""The weights of each name of `finetune.base` and `sample.weights`."""


def is_quantised(node: Any) -> bool:
    return isinstance(node, QuantisedWeight)


def held(weight: Any, kind: Any) -> Any:
    """The weight in a type, or as one of the classes of `FORMATS`."""
    if is_quantised(weight):
        return weight
    return kind.of(weight) if kind in FORMATS.values() else weight.astype(kind)


def weight_shardings(sharding: Any, weight: Any) -> Any:
    """A sharding for each array of a weight: codes are divided as the matrix, and scales only as products are, so that
    every device that computes with an output has its scales.

    Args:
      sharding: of the matrix.
      weight: abstract or real.

    Raises:
      ValueError: the inputs that share a scale are on different devices.
    """
    if not is_quantised(weight):
        return sharding
    if not isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda _: sharding, weight)
    mesh = sharding.mesh
    spec = (*sharding.spec, *[None] * (weight.ndim - len(sharding.spec)))
    sizes = [math.prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ())) for axes in spec]
    codes = [axes if length % size == 0 else None for axes, length, size in zip(spec, weight.codes.shape, sizes)]
    divided = [axes if axes in LOGICAL["tensor"] else None for axes in spec]
    scale = [axes if length > 1 else None for axes, length in zip(divided, weight.scale.shape)]
    wrong = [size for axes, length, size in zip(scale, weight.scale.shape, sizes) if axes and length % size]
    if wrong or any(axes != kept for axes, kept in zip(divided, codes) if axes):
        raise ValueError(
            f"mesh.tensor={sizes[-2]} must divide a quantised matrix between blocks of inputs, of which one of shape "
            f"{weight.shape[1:]} has {weight.scale.shape[-2]}; choose int8, or a smaller mesh.tensor"
        )
    named = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    return type(weight)(named(*codes), named(*scale), named())


@jax.custom_vjp
def _product(x: Float[Array, "*b i"], weight: QuantisedWeight) -> Float[Array, "*b o"]:
    return weight._product(x)


_product.defvjp(
    lambda x, weight: (weight._product(x), weight),
    lambda weight, gradient: (weight._transposed_product(gradient), None),
)


def nearest(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The code of the nearest value of nf4."""
    values = np.asarray(NORMAL_FLOAT, np.float32)
    middles = (values[1:] + values[:-1]) / 2
    return functools.reduce(lambda code, middle: code + (x > middle), middles, jnp.zeros(x.shape, jnp.uint8))


def normal_float(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """The values of nf4, float32: on a CPU from a table, which TPUs read slowly, and elsewhere chosen bit by bit, which
    XLA for CPU does not fuse."""
    return jax.lax.platform_dependent(codes, cpu=_from_table, default=_chosen)


def _from_table(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    # Of scalars, which are part of a program; an array would be an input of it, which the backward pass keeps.
    return jnp.stack([jnp.float32(value) for value in NORMAL_FLOAT])[codes]


def _chosen(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    values: list[Any] = [jnp.float32(value) for value in NORMAL_FLOAT]
    for bit in range(4):
        is_set = (codes >> bit) & 1 != 0
        values = [jnp.where(is_set, odd, even) for even, odd in zip(values[::2], values[1::2])]
    return values[0]


def digest(weight: Float[Array, "..."], first: Any = 0) -> UInt32[Array, "*n 2"]:
    """Two sums over the values of each layer, rounded to bfloat16, and their indices; those of all layers add up to
    what a fingerprint has of a parameter.

    Args:
      first: the index of the first layer among all layers.
    """
    bits = jax.lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    index = functools.reduce(
        lambda index, axis: index * weight.shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, weight.shape, axis),
        range(weight.ndim),
        jnp.zeros(weight.shape, jnp.uint32),
    )
    index = index + jnp.uint32(first) * jnp.uint32(math.prod(weight.shape[1:]) % 2**32)
    hashed, axes = mixed(mixed(index) ^ bits), tuple(range(1 if weight.ndim > 2 else 0, weight.ndim))
    sums = [jnp.sum(hashed, axes, dtype=jnp.uint32), jnp.sum(mixed(hashed + 1), axes, dtype=jnp.uint32)]
    return jnp.stack(sums, axis=-1)


def mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3: a bijection in which each bit of the input changes half of those of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
