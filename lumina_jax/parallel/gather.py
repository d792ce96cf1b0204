"""Parameters cut over devices: whole weights where they are used, shares of gradients where those are made.

In: this device's shares of parameters, float32, inside `jax.shard_map`. Out: the weights, in the type that products
are computed in; and back, from the gradients that this device's rows and tokens give, the shares of their sum.

A share is cast first and gathered then, so the network carries half the bytes. Gathers and scatters go along one mesh
axis after another, because that is what compiles to real all-gathers and reduce-scatters on a torus (see
`parallel/mesh.py`).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array

from lumina_jax.parallel.axes import LOGICAL
from lumina_jax.parallel.mesh import AnyMesh, axes_of

Tree = TypeVar("Tree")


class Cut(NamedTuple):
    """Along which dimension a parameter is cut, and over which mesh axes, the slowest first; over none: it is whole."""

    dimension: int
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Weights:
    """How one tree of parameters, such as a layer, is gathered, and its gradient scattered.

    `gather` alone is not differentiable as meant here; use `whole` where autodiff passes.
    """

    cuts: tuple[Cut, ...]
    """Of each leaf, in the order of `jax.tree.leaves`."""
    summed: tuple[str, ...]
    """The mesh axes whose devices have different rows or tokens, so that their gradients add up."""
    dtype: jnp.dtype
    """Of gathered weights. What is not cut keeps its own type."""
    sum_dtype: jnp.dtype | None
    """In which gradients of cut weights are added up; None: that of the gradients."""
    own: int = 0
    """Leaves that follow those of parameters, which each device has for its own rows: they and their gradients stay as
    they are."""

    def beside(self, arrays: Any) -> "Weights":
        """The same for a tree of parameters that is followed by arrays of this device's own."""
        return dataclasses.replace(self, own=len(jax.tree.leaves(arrays)))

    def gather(self, shares: Tree) -> Tree:
        """Every weight whole."""
        return self._each(self._gather_one, shares)

    def scatter(self, gradients: Tree) -> Tree:
        """This device's shares of the sum of all devices' gradients, float32."""
        scattered = self._each(self._scatter_one, gradients)
        leaves, structure = jax.tree.flatten(scattered)
        groups = defaultdict(list)
        for index, cut in enumerate(self.cuts):
            groups[tuple(axis for axis in self.summed if axis not in cut.axes)].append(index)
        for axes, members in groups.items():
            if axes:
                for index, total in zip(members, jax.lax.psum([leaves[index] for index in members], axes)):
                    leaves[index] = total
        return jax.tree.unflatten(structure, [leaf.astype(jnp.float32) for leaf in leaves])

    def whole(self, shares: Tree) -> Tree:
        """`gather`, whose gradient is `scatter`."""

        @jax.custom_vjp
        def gathered(shares: Tree) -> Tree:
            return self.gather(shares)

        gathered.defvjp(lambda shares: (self.gather(shares), None), lambda _, gradients: (self.scatter(gradients),))
        return gathered(shares)

    def _each(self, change: Any, tree: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(tree)
        count = len(self.cuts)
        assert len(leaves) == count + self.own, (len(leaves), count, self.own)
        changed = [change(leaf, cut) for leaf, cut in zip(leaves, self.cuts)]
        return jax.tree.unflatten(structure, [*changed, *leaves[count:]])

    def _gather_one(self, share: Array, cut: Cut) -> Array:
        if not cut.axes:
            return share
        weight = share.astype(self.dtype)
        for axis in reversed(cut.axes):
            weight = jax.lax.all_gather(weight, axis, axis=cut.dimension, tiled=True)
        return weight

    def _scatter_one(self, gradient: Array, cut: Cut) -> Array:
        if not cut.axes:
            return gradient
        share = gradient if self.sum_dtype is None else gradient.astype(self.sum_dtype)
        for axis in cut.axes:
            share = jax.lax.psum_scatter(share, axis, scatter_dimension=cut.dimension, tiled=True)
        return share


def weights(
    places: Any,
    mesh: AnyMesh,
    *,
    late: tuple[str, ...],
    stacked: bool,
    dtype: jnp.dtype,
    sum_dtype: jnp.dtype | None,
) -> Weights:
    """How the parameters that lie at `places` are gathered.

    Args:
      places: a tree of `NamedSharding`s, as `parallel.axes.shardings` makes them.
      late: mesh axes over which gradients are not added up here.
      stacked: the parameters have a leading dimension of layers, and one layer at a time is gathered.
      dtype, sum_dtype: see `Weights`.
    """
    over = axes_of(mesh, *LOGICAL["fsdp"])
    cuts = [_cut(place, over, stacked) for place in jax.tree.leaves(places)]
    summed = tuple(axis for axis in axes_of(mesh, "data", "fsdp", "sequence") if axis not in late)
    return Weights(tuple(cuts), summed, dtype, sum_dtype)


def _cut(place: NamedSharding, over: Sequence[str], stacked: bool) -> Cut:
    for dimension, axes in enumerate(place.spec[1:] if stacked else place.spec):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        if names and set(names) <= set(over):
            return Cut(dimension, names)
    return Cut(0, ())
