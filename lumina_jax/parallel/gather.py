"""Parameters that are divided over devices: weights are gathered where they are used, gradients are scattered.

In: this device's shares of parameters, float32, inside `jax.shard_map`. Out: whole weights, in the type of the matrix
products. In the other direction, the gradients from this device's rows and tokens become shares of the sum over
devices.

A share is cast before it is gathered, which halves the traffic. Gathers and scatters go along one mesh axis after
another, because on a torus only those compile to real all-gathers and reduce-scatters (see `parallel/mesh.py`).
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
    """The dimension along which a parameter is divided, and the mesh axes, slowest first; without axes it is whole."""

    dimension: int
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardedWeights:
    """How a tree of parameters, such as a layer, is gathered, and its gradient scattered.

    `gather` is not meant to be differentiated; under autodiff use `whole`, whose gradient is `scatter`.
    """

    cuts: tuple[Cut, ...]
    """One for each leaf, in the order of `jax.tree.leaves`."""
    summed: tuple[str, ...]
    """The mesh axes whose devices have different rows or tokens, so that their gradients are added up."""
    dtype: jnp.dtype
    """The type of gathered weights. Parameters that are not divided keep their type, and so do codes of weights."""
    sum_dtype: jnp.dtype | None
    """The type in which gradients of divided weights are added up; None: that of the gradients."""
    local_leaves: int = 0
    """The number of leaves after those of the parameters that belong to this device's rows alone: they and their
    gradients are left as they are."""

    def beside(self, arrays: Any) -> "ShardedWeights":
        """The same for a tree of parameters followed by arrays that belong to this device's rows alone."""
        return dataclasses.replace(self, local_leaves=len(jax.tree.leaves(arrays)))

    def only(self, chosen: Sequence[bool]) -> "ShardedWeights":
        """The same for the chosen leaves alone, in a list.

        Args:
          chosen: for each leaf, those of this device's rows included.
        """
        count = len(self.cuts)
        cuts = tuple(cut for cut, is_chosen in zip(self.cuts, chosen) if is_chosen)
        return dataclasses.replace(self, cuts=cuts, local_leaves=sum(chosen[count:]))

    @property
    def are_whole(self) -> bool:
        """Whether each device has all weights."""
        return not any(cut.axes for cut in self.cuts)

    def gather(self, shares: Tree) -> Tree:
        """The whole weights."""
        return self._each(self._gather_one, shares)

    def scatter(self, gradients: Tree) -> Tree:
        """This device's shares of the sum of the gradients of all devices, float32."""
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
        assert len(leaves) == count + self.local_leaves, (len(leaves), count, self.local_leaves)
        changed = [change(leaf, cut) for leaf, cut in zip(leaves, self.cuts)]
        return jax.tree.unflatten(structure, [*changed, *leaves[count:]])

    def _gather_one(self, share: Array, cut: Cut) -> Array:
        if not cut.axes:
            return share
        weight = share.astype(self.dtype) if jnp.issubdtype(share.dtype, jnp.floating) else share
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
    shardings: Any,
    mesh: AnyMesh,
    *,
    late: tuple[str, ...],
    stacked: bool,
    dtype: jnp.dtype,
    sum_dtype: jnp.dtype | None,
) -> ShardedWeights:
    """How parameters are gathered.

    Args:
      shardings: a `NamedSharding` for each parameter, as `parallel.axes.shardings` returns them.
      late: mesh axes over which gradients are not added up here.
      stacked: the parameters have a leading dimension of layers, and are gathered one layer at a time.
      dtype, sum_dtype: see `Weights`.
    """
    over = axes_of(mesh, *LOGICAL["fsdp"])
    cuts = [_cut(sharding, over, stacked) for sharding in jax.tree.leaves(shardings)]
    summed = tuple(axis for axis in axes_of(mesh, "data", "fsdp", "sequence") if axis not in late)
    return ShardedWeights(tuple(cuts), summed, dtype, sum_dtype)


def _cut(sharding: NamedSharding, over: Sequence[str], stacked: bool) -> Cut:
    for dimension, axes in enumerate(sharding.spec[1:] if stacked else sharding.spec):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        if names and set(names) <= set(over):
            return Cut(dimension, names)
    return Cut(0, ())
