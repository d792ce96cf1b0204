"""The layers of a network, one after another: one scan, so that compile time does not grow with depth.

In: a function of one layer, activations, and parameters with a leading dimension of layers. Out: the activations after
the last. What the backward pass recomputes is named by `model.remat`.

Where parameters are cut over devices (`parallel.gather.Weights`), each step of the scan gathers the weights of the next
layer while it computes with those of its own; backward likewise, and the gradient of a layer is scattered while that of
the layer below is computed. Gathered weights are never kept for the backward pass, whatever else is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.parallel.gather import Weights

Activations = Float[Array, "b l m"]
Layer = Callable[[Any, Any, Any, Any], Any]
"""(activations, parameters of one layer, what has a gradient in all layers, what has none) -> activations."""

KEPT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse"),
    "offload": jax.checkpoint_policies.nothing_saveable,
}
"""What each policy keeps of a layer besides its input; None: everything."""


def run_layers(
    layer: Layer,
    x: Activations,
    stack: Any,
    shared: Any,
    fixed: Any,
    *,
    remat: str,
    unroll: int,
    weights: Weights | None,
) -> Activations:
    """The activations after all layers.

    Args:
      layer: closes over no traced value.
      stack: parameters of all layers; with `weights`, this device's shares of them.
      shared, fixed: further arguments of every layer; gradients flow to `shared` alone.
      remat: "none", "full", "dots", "attention" or "offload", see `config.ModelConfig`.
      unroll: layers computed in one iteration of the scan; all of them: no scan. Alone on a device only.
      weights: how a layer is gathered; None: parameters are whole.
    """
    layer = recomputed(layer, remat)
    if weights is not None:
        return _gathered(layer, weights, remat == "offload", x, stack, shared, fixed)
    if unroll < _count(stack):

        def body(x: Activations, parameters: Any) -> tuple[Activations, None]:
            return layer(x, parameters, shared, fixed), None

        return jax.lax.scan(body, x, stack, unroll=unroll)[0]
    for parameters in unstack(stack):
        x = layer(x, parameters, shared, fixed)
    return x


def recomputed(layer: Layer, remat: str) -> Layer:
    """The layer, of which the backward pass keeps what the policy says."""
    policy = KEPT[remat]
    return layer if policy is None else jax.checkpoint(layer, policy=policy, prevent_cse=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(
    layer: Layer, weights: Weights, offload: bool, x: Activations, stack: Any, shared: Any, fixed: Any
) -> Activations:
    """`run_layers` over shares of parameters."""
    return _forward(layer, weights, x, stack, shared, fixed)[0]


def _forward(layer: Layer, weights: Weights, x: Activations, stack: Any, shared: Any, fixed: Any) -> tuple[Array, Any]:
    """The activations after the last layer, and its gathered weights."""

    def body(carry: tuple[Activations, Any], index: Int[Array, ""]) -> tuple[tuple[Activations, Any], None]:
        x, own = carry
        following = weights.gather(_at(stack, jnp.minimum(index + 1, _count(stack) - 1)))
        return (layer(x, own, shared, fixed), following), None

    carry, _ = jax.lax.scan(body, (x, weights.gather(_at(stack, 0))), jnp.arange(_count(stack)))
    return carry


def _forward_keeping(
    layer: Layer, weights: Weights, offload: bool, x: Activations, stack: Any, shared: Any, fixed: Any
) -> tuple[Activations, Any]:
    """The activations, and for the backward pass what `layer` keeps of each layer besides weights and arguments."""
    restores = []

    def body(carry: tuple[Activations, Any], index: Int[Array, ""]) -> tuple[tuple[Activations, Any], list[Array]]:
        x, own = carry
        following = weights.gather(_at(stack, jnp.minimum(index + 1, _count(stack) - 1)))
        out, pullback = jax.vjp(lambda x, own, shared: layer(x, own, shared, fixed), x, own, shared)
        kept, restore = _without(pullback, (own, shared, fixed))
        restores.append(restore)
        return (out, following), [jax.device_put(leaf, jax.memory.Space.Host) for leaf in kept] if offload else kept

    (x, last), kept = jax.lax.scan(body, (x, weights.gather(_at(stack, 0))), jnp.arange(_count(stack)))
    return x, (stack, shared, fixed, last, jax.tree_util.Partial(restores[-1], kept))


def _backward(layer: Layer, weights: Weights, offload: bool, residuals: Any, gradient: Activations) -> Any:
    stack, shared, fixed, last, pullback = residuals
    restore, (kept,) = pullback.func, pullback.args
    layers = _count(stack)

    def body(carry: tuple, inputs: tuple[Int[Array, ""], list[Array]]) -> tuple[tuple, None]:
        (gradient, of_shared, own, above, of_stack), (index, kept) = carry, inputs
        below = weights.gather(_at(stack, jnp.maximum(index - 1, 0)))
        # the first iteration has no layer above; what it writes is written over by the second
        of_stack = _put(of_stack, weights.scatter(above), jnp.minimum(index + 1, layers - 1))
        if offload:
            kept = [jax.device_put(leaf, jax.memory.Space.Device) for leaf in kept]
        gradient, of_own, more = restore(kept, (own, shared, fixed))(gradient)
        of_shared = jax.tree.map(lambda total, part: total + part.astype(total.dtype), of_shared, more)
        return (gradient, of_shared, below, of_own, of_stack), None

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shared)
    carry = (gradient, sums, last, zeros(last), zeros(stack))
    (gradient, of_shared, _, first, of_stack), _ = jax.lax.scan(body, carry, (jnp.arange(layers), kept), reverse=True)
    of_stack = _put(of_stack, weights.scatter(first), 0)
    of_shared = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), of_shared, shared)
    return gradient, of_stack, of_shared, None


_gathered.defvjp(_forward_keeping, _backward)


def _without(pullback: Any, arguments: Any) -> tuple[list[Array], Callable[[list[Array], Any], Any]]:
    """The arrays in a function of `jax.vjp` that are not among `arguments`, and how to put it together again."""
    leaves, structure = jax.tree.flatten(pullback)
    places = {id(argument): place for place, argument in enumerate(jax.tree.leaves(arguments))}
    sources = [places.get(id(leaf)) for leaf in leaves]

    def restore(kept: list[Array], arguments: Any) -> Any:
        again, rest = jax.tree.leaves(arguments), iter(kept)
        return jax.tree.unflatten(structure, [next(rest) if place is None else again[place] for place in sources])

    return [leaf for leaf, place in zip(leaves, sources) if place is None], restore


def _count(stack: Any) -> int:
    return jax.tree.leaves(stack)[0].shape[0]


def _at(stack: Any, index: Int[Array, ""] | int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack)


def _put(stack: Any, layer: Any, index: Int[Array, ""] | int) -> Any:
    return jax.tree.map(
        lambda leaf, value: jax.lax.dynamic_update_index_in_dim(leaf, value.astype(leaf.dtype), index, 0), stack, layer
    )


@jax.custom_vjp
def unstack(stacked: Any) -> list[Any]:
    """The layers of a tree that holds all of them along its first axes.

    Its gradient is one stack; that of plain indexing adds up as many stacks as there are layers.
    """
    return [jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked) for layer in range(_count(stacked))]


unstack.defvjp(
    lambda stacked: (unstack(stacked), None),
    lambda _, layers: (jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),),
)
