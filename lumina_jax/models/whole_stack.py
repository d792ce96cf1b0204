"""The layers of a network on a device that has all their parameters.

In: a function of one layer, activations, and parameters with a leading dimension of layers. Out: the activations after
the last layer. `run_layers` in `stack.py` is what a network calls.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Int

from lumina_jax.kernels.stacked import StackedMatrix

Activations = Float[Array, "b l m"]
Index = Int[Array, ""] | int
"""Of a layer."""
Layer = Callable[[Any, Any, Any, Any], Any]
"""(activations, parameters of one layer, shared arguments, fixed arguments) -> activations; see `run_layers`."""


def scanned(layer: Layer, unroll: int, x: Activations, stack: Any, shared: Any, fixed: Any) -> Activations:
    """`run_layers` on a device that has all parameters."""
    if unroll < count(stack):

        def body(x: Activations, parameters: Any) -> tuple[Activations, None]:
            return layer(x, parameters, shared, fixed), None

        return jax.lax.scan(body, x, stack, unroll=unroll)[0]
    for parameters in unstack(stack):
        x = layer(x, parameters, shared, fixed)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_place(layer: Layer, unroll: int, x: Activations, stack: Any, shared: Any, fixed: Any) -> Activations:
    """`scanned`, whose kernels read matrices in the stack if nobody differentiates."""

    def body(x: Activations, index: Int[Array, ""]) -> tuple[Activations, None]:
        return layer(x, layer_of(stack, index), shared, fixed), None

    return jax.lax.scan(body, x, jnp.arange(count(stack)), unroll=unroll)[0]


def _forward(layer: Layer, unroll: int, x: Any, stack: Any, shared: Any, fixed: Any) -> tuple[Any, Any]:
    chosen, (x, stack, shared, fixed) = primals(x, stack, shared, fixed)

    def call(x: Activations, given: list[Array], shared: Any) -> Activations:
        return scanned(layer, unroll, x, chosen.put(stack, given), shared, fixed)

    out, pullback = jax.vjp(call, x, chosen.of(stack), shared)
    return out, (pullback, stack, chosen)


def _backward(layer: Layer, unroll: int, kept: Any, gradient: Activations) -> Any:
    pullback, stack, chosen = kept
    gradient = gradient.instantiate() if isinstance(gradient, SymbolicZero) else gradient
    of_x, of_stack, of_shared = pullback(gradient)
    return of_x, chosen.alone(stack, of_stack), of_shared, None


in_place.defvjp(_forward, _backward, symbolic_zeros=True)


def layer_of(stack: Any, index: Int[Array, ""]) -> Any:
    """One layer of a tree whose leaves have a leading dimension of layers: its matrices stay in the stack."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            value = leaf.get_value()
            if isinstance(value, jax.Array) and value.ndim == 3:
                return leaf.replace(StackedMatrix(value, index))
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), leaf)

    return jax.tree.map(one, stack, is_leaf=lambda node: isinstance(node, nnx.Variable))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Differentiated:
    """Which leaves of a tree of parameters are differentiated."""

    leaves: tuple[bool, ...]
    """One for each leaf, in the order of `jax.tree.leaves`."""

    def of(self, tree: Any) -> list[Array]:
        """The chosen leaves."""
        return [leaf for leaf, is_chosen in zip(jax.tree.leaves(tree), self.leaves, strict=True) if is_chosen]

    def put(self, tree: Any, chosen: list[Array]) -> Any:
        """The tree with other chosen leaves."""
        return self._filled(tree, chosen, jax.tree.leaves(tree))

    def alone(self, tree: Any, chosen: list[Array]) -> Any:
        """The tree with other chosen leaves, and None instead of all others."""
        return self._filled(tree, chosen, [None] * len(self.leaves))

    def _filled(self, tree: Any, chosen: list[Array], others: list[Any]) -> Any:
        rest = iter(chosen)
        leaves = [next(rest) if is_chosen else other for is_chosen, other in zip(self.leaves, others, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def primals(x: Any, stack: Any, shared: Any, fixed: Any) -> tuple[Differentiated, Any]:
    """Which parameters are differentiated, and the values of all arguments, which say so."""
    chosen = Differentiated(tuple(leaf.perturbed for leaf in jax.tree.leaves(stack, is_leaf=_is_primal)))
    return chosen, jax.tree.map(lambda leaf: leaf.value, (x, stack, shared, fixed), is_leaf=_is_primal)


def _is_primal(node: Any) -> bool:
    return isinstance(node, CustomVJPPrimal)


def count(stack: Any) -> int:
    """The number of layers."""
    return jax.tree.leaves(stack)[0].shape[0]


@jax.custom_vjp
def unstack(stacked: Any) -> list[Any]:
    """The layers of a tree that holds all of them along the first axes of its leaves.

    The gradient of this function is one stack; that of plain indexing is the sum of a whole stack for each layer.
    """
    return [jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked) for layer in range(count(stacked))]


unstack.defvjp(
    lambda stacked: (unstack(stacked), None),
    lambda _, layers: (jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),),
)
