"""The matrices of a layer, left in the stack of all layers, which the kernels of products read.

A scan over layers cuts the parameters of each layer out of those of all. XLA's products read them where they lie, but a
kernel gets a copy. A `StackedMatrix` is a matrix together with the place of its layer: a kernel takes its blocks from
the stack, and any other product cuts it out. It is a leaf of the network's tree that can be multiplied as a matrix can,
like a `QuantisedWeight`, and nobody differentiates by it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

Place = Callable[..., tuple[Any, ...]]
"""The block of a matrix at a grid step."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StackedMatrix:
    """The matrix of the layer `index`."""

    stack: Float[Array, "n i o"]
    index: Int[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        return self.stack.dtype

    def cut_out(self) -> Float[Array, "i o"]:
        """An ordinary matrix."""
        return jax.lax.dynamic_index_in_dim(self.stack, self.index, keepdims=False)

    def astype(self, dtype: Any) -> "StackedMatrix | Float[Array, 'i o']":
        """The matrix itself if it has this type already, or else an ordinary one."""
        return self if dtype == self.dtype else self.cut_out().astype(dtype)

    def __getitem__(self, everything: Any) -> "StackedMatrix":
        """The matrix itself: `variable[...]` reads a parameter of a module."""
        if everything is not Ellipsis:
            raise TypeError("a stacked matrix has no parts; take those of cut_out()")
        return self

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.cut_out()


Matrix = StackedMatrix | Float[Array, "_ _"]


def block(weight: Matrix, shape: tuple[int, int], place: Place) -> pl.BlockSpec:
    """The blocks of a matrix. For one in a stack a grid step is followed by a reference to `layer_index`."""
    if not isinstance(weight, StackedMatrix):
        return pl.BlockSpec(shape, place)
    return pl.BlockSpec((None, *shape), lambda *step: (step[-1][0], *place(*step)))


def layer_index(weights: Sequence[Matrix]) -> list[Int[Array, "1"]]:
    """What a kernel is given before its inputs: the index of the layer, if the matrices lie in stacks."""
    first = weights[0]
    return [first.index.reshape(1)] if isinstance(first, StackedMatrix) else []


def array(weight: Matrix) -> Array:
    """The array that holds a matrix."""
    return weight.stack if isinstance(weight, StackedMatrix) else weight
