"""Products of few rows with large matrices, of which each device has some columns: rows travel, and matrices stay.

In: this device's rows, and its columns of a matrix for each layer, inside `jax.shard_map`. Out: all values of its rows.
In the other direction, the gradients of this device's columns from the rows of all devices.

The vectors of adaLN depend on the condition of a sample, not on its tokens. In 5B a matrix of them is twice as large as
the output projection of attention, and the one sample of a device is less to send than the matrix.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from lumina_jax.parallel.mesh import AnyMesh, axes_of
from lumina_jax.parallel.tensor import Tensor


@dataclasses.dataclass(frozen=True)
class DividedColumns:
    """A matrix for each layer, whose columns the devices along `axes` divide."""

    axes: tuple[str, ...]
    """Mesh axes, slowest first."""
    sizes: tuple[int, ...]
    """The number of devices along each."""
    summed: tuple[str, ...]
    """The mesh axes whose devices have different rows or tokens, so that gradients are added up over them."""

    def product(
        self, x: Float[Array, "n i"], columns: Float[Array, "k i p"], bias: Float[Array, "k o"]
    ) -> Float[Array, "k n o"]:
        """x W + b for each layer, in the type of x.

        Args:
          x: rows of this device; each has as many.
          columns: those of this device, in any type.
          bias: all of it.
        """
        others = tuple(axis for axis in self.summed if axis not in self.axes)
        columns, bias = Tensor(others).share(columns), Tensor(self.summed).share(bias)
        count, layers = len(x), len(columns)
        for axis in reversed(self.axes):
            x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
        y = jnp.einsum("ni,kip->knp", x, columns.astype(x.dtype))
        y = y.reshape(layers, *self.sizes, count, -1)
        for dimension, axis in enumerate(self.axes, start=1):
            y = jax.lax.all_to_all(y, axis, split_axis=dimension, concat_axis=dimension)
        y = jnp.moveaxis(y, -2, 1).reshape(layers, count, -1)
        return y + bias[:, None].astype(y.dtype)


def divided_columns(sharding: Any, mesh: AnyMesh, *, late: tuple[str, ...]) -> DividedColumns | None:
    """How products with a stacked matrix are computed; None: devices do not divide its columns, or it has an adapter or
    few bits, so that it is treated like any other.

    Args:
      sharding: of the matrices of all layers [k i o], as `parallel.axes.shardings` returns them.
      late: mesh axes over which gradients are not added up here.
    """
    if not isinstance(sharding, NamedSharding):
        return None
    columns = (*sharding.spec, None, None, None)[2]
    axes = (columns,) if isinstance(columns, str) else tuple(columns or ())
    if not axes:
        return None
    summed = tuple(axis for axis in axes_of(mesh, "data", "fsdp", "sequence") if axis not in late)
    return DividedColumns(axes, tuple(mesh.shape[axis] for axis in axes), summed)
