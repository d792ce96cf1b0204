"""The layers of a network, one after another: one scan, so that compile time does not grow with depth.

In: a function of one layer, activations, and parameters with a leading dimension of layers. Out: the activations after
the last layer. `model.remat` names what the backward pass recomputes.

Where parameters are divided over devices (`parallel.gather.Weights`), each step of the scan computes one layer while it
gathers the weights of the next. The backward pass does the same in reverse order, and scatters the gradient of a layer
while it computes the layer below. Gathered weights are never kept for the backward pass. Parameters by which nobody
differentiates, such as those of a frozen base, have no gradient and no scatter.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Int

from lumina_jax.kernels import cudnn
from lumina_jax.kernels.flash.call import refusal_here
from lumina_jax.models.whole_stack import Activations, Differentiated, Index, Layer, count, in_place, primals, scanned
from lumina_jax.parallel.gather import ShardedWeights

_ATTENTION = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse"),
    lambda primitive, *_, **__: primitive.name == cudnn.FORWARD,
)
_FEED_FORWARD = jax.checkpoint_policies.save_only_these_names("feed_forward")
_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(_DOTS, _ATTENTION),
    "feed_forward": jax.checkpoint_policies.save_from_both_policies(_FEED_FORWARD, _ATTENTION),
    "attention": _ATTENTION,
    "offload": jax.checkpoint_policies.nothing_saveable,
}
"""What each policy keeps for the backward pass besides the input of a layer; None: everything."""


def run_layers(
    layer: Layer,
    x: Activations,
    stack: Any,
    shared: Any,
    fixed: Any,
    *,
    remat: str,
    unroll: int,
    weights: ShardedWeights | None,
) -> Activations:
    """The activations after all layers.

    Args:
      layer: closes over no traced value.
      stack: parameters of all layers; with `weights`, this device's shares of them.
      shared, fixed: further arguments of every layer; only `shared` gets a gradient.
      remat: "none", "full", "dots", "feed_forward", "attention" or "offload", see `config.ModelConfig`.
      unroll: layers computed in one iteration of the scan; with all of them there is no scan, unless there are
        `weights`, for which 2 layers in an iteration save copies of what is gathered in advance.
      weights: how a layer is gathered; None: each device has all parameters.
    """
    layer = recomputed(layer, remat)
    if weights is not None:
        return _gathered(layer, weights, remat == "offload", unroll, x, stack, shared, fixed)
    if unroll < count(stack) and refusal_here(auto=True) is None:
        return in_place(layer, unroll, x, stack, shared, fixed)
    return scanned(layer, unroll, x, stack, shared, fixed)


def recomputed(layer: Layer, remat: str) -> Layer:
    """The layer, whose backward pass recomputes what the policy does not keep."""
    policy = REMAT_POLICIES[remat]
    return layer if policy is None else jax.checkpoint(layer, policy=policy, prevent_cse=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gathered(
    layer: Layer,
    weights: ShardedWeights,
    offload: bool,
    unroll: int,
    x: Activations,
    stack: Any,
    shared: Any,
    fixed: Any,
) -> Activations:
    """`run_layers` for parameters that are divided over devices."""
    return _forward(layer, weights, unroll, x, stack, shared, fixed)


def _forward(
    layer: Layer, weights: ShardedWeights, unroll: int, x: Activations, stack: Any, shared: Any, fixed: Any
) -> Activations:
    """The activations after the last layer."""

    def ahead(carry: tuple[Activations, Any], index: Index, _: None) -> tuple[tuple[Activations, Any], None]:
        x, layer_weights = carry
        x, following = _gathered_after(x, weights, stack, jnp.minimum(index + 1, count(stack) - 1))
        return (layer(x, layer_weights, shared, fixed), following), None

    if weights.are_whole:  # to take them ahead would only copy them
        return in_place(layer, unroll, x, stack, shared, fixed)
    start = x, weights.gather(_at(stack, 0))
    return _each_layer(ahead, start, count(stack), None, unroll=unroll)[0][0]


def _forward_of_primals(
    layer: Layer, weights: ShardedWeights, offload: bool, unroll: int, x: Any, stack: Any, shared: Any, fixed: Any
) -> tuple[Activations, Any]:
    """`_forward_keeping` for arguments that say whether they are differentiated."""
    chosen, arguments = primals(x, stack, shared, fixed)
    return _forward_keeping(layer, weights, offload, unroll, chosen, *arguments)


def _forward_keeping(
    layer: Layer,
    weights: ShardedWeights,
    offload: bool,
    unroll: int,
    chosen: Differentiated,
    x: Activations,
    stack: Any,
    shared: Any,
    fixed: Any,
) -> tuple[Activations, Any]:
    """The activations, and for each layer what its backward pass needs besides weights and arguments."""
    restores = []

    def body(carry: tuple[Activations, Any], index: Index, _: None) -> tuple[tuple[Activations, Any], list[Array]]:
        x, layer_weights = carry
        x, following = _gathered_after(x, weights, stack, jnp.minimum(index + 1, count(stack) - 1))

        def call(x: Activations, given: list[Array], shared: Any) -> Activations:
            return layer(x, chosen.put(layer_weights, given), shared, fixed)

        x = _by_rows(x)

        out, pullback = jax.vjp(call, x, chosen.of(layer_weights), shared)
        kept, restore = _without(pullback, (layer_weights, shared, fixed))
        restores.append(restore)
        return (out, following), [jax.device_put(leaf, jax.memory.Space.Host) for leaf in kept] if offload else kept

    start = x, weights.gather(_at(stack, 0))
    (x, last), kept = _each_layer(body, start, count(stack), None, unroll=unroll)
    return x, (stack, shared, fixed, last, chosen, jax.tree_util.Partial(restores[-1], kept))


def _backward(
    layer: Layer, weights: ShardedWeights, offload: bool, unroll: int, residuals: Any, gradient: Activations
) -> Any:
    stack, shared, fixed, last, chosen, pullback = residuals
    restore, (kept,) = pullback.func, pullback.args
    layers, scatter = count(stack), weights.only(chosen.leaves).scatter
    gradient = gradient.instantiate() if isinstance(gradient, SymbolicZero) else gradient

    def body(carry: tuple, index: Index, kept: list[Array]) -> tuple[tuple, None]:
        gradient, shared_gradient, layer_weights, above, stack_gradient = carry
        gradient, below = _gathered_after(gradient, weights, stack, jnp.maximum(index - 1, 0))
        # The first iteration has no layer above; the second overwrites what it writes.
        stack_gradient = _put(stack_gradient, scatter(above), jnp.minimum(index + 1, layers - 1))
        if offload:
            kept = [jax.device_put(leaf, jax.memory.Space.Device) for leaf in kept]
        gradient, layer_gradient, more = restore(kept, (layer_weights, shared, fixed))(gradient)
        shared_gradient = jax.tree.map(lambda total, part: total + part.astype(total.dtype), shared_gradient, more)
        return (gradient, shared_gradient, below, layer_gradient, stack_gradient), None

    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shared)
    carry = (gradient, sums, last, _unwritten(chosen.of(last)), _unwritten(chosen.of(stack)))
    carry, _ = _each_layer(body, carry, layers, kept, unroll=unroll, reverse=True)
    gradient, shared_gradient, _, first, stack_gradient = carry
    stack_gradient = _put(stack_gradient, scatter(first), 0)
    shared_gradient = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), shared_gradient, shared)
    return gradient, chosen.alone(stack, stack_gradient), shared_gradient, None


_gathered.defvjp(_forward_of_primals, _backward, symbolic_zeros=True)


def _without(pullback: Any, arguments: Any) -> tuple[list[Array], Callable[[list[Array], Any], Any]]:
    """The arrays in a function of `jax.vjp` that are not among `arguments`, and a function that restores it."""
    leaves, structure = jax.tree.flatten(pullback)
    indices = {id(argument): index for index, argument in enumerate(jax.tree.leaves(arguments))}
    sources = [indices.get(id(leaf)) for leaf in leaves]

    def restore(kept: list[Array], arguments: Any) -> Any:
        again, rest = jax.tree.leaves(arguments), iter(kept)
        return jax.tree.unflatten(structure, [next(rest) if index is None else again[index] for index in sources])

    return [leaf for leaf, index in zip(leaves, sources) if index is None], restore


def _by_rows(x: Activations) -> Activations:
    """The activations, values of a token side by side in memory.

    XLA may choose another order for the forward pass on TPUs, and then transposes what each layer keeps before it goes
    back through the layer.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _gathered_after(
    x: Activations, weights: ShardedWeights, stack: Any, index: Int[Array, ""]
) -> tuple[Activations, Any]:
    """x, and the weights of a layer, whose gathering does not begin before x is known.

    So the weights that x was computed with are not needed any more, and the buffers of an iteration's first weights can
    take the next iteration's, which would otherwise be copied there.
    """
    x, shares = jax.lax.optimization_barrier((x, _at(stack, index)))
    return x, weights.gather(shares)


def _each_layer(
    body: Callable[[Any, Index, Any], tuple[Any, Any]],
    carry: Any,
    layers: int,
    kept: Any,
    *,
    unroll: int,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over all layers, with `unroll` of them in an iteration.

    What is kept has a stack for each layer of an iteration. `jax.lax.scan` with an `unroll` has one for all of them,
    takes a block of layers from it and then a layer from the block, and so copies everything twice.

    Args:
      body: (carry, index of the layer, what is kept for it) -> (carry, what it keeps).
      kept: by an earlier call; None: nothing.
    """
    loops = layers // unroll if unroll < layers else 0
    rest = range(loops * unroll, layers)
    of_loop, of_rest = (None, [None] * len(rest)) if kept is None else kept

    def several(carry: Any, indices: Sequence[Index], kept: Sequence[Any]) -> tuple[Any, list[Any]]:
        found = [None] * len(indices)
        for k in reversed(range(len(indices))) if reverse else range(len(indices)):
            carry, found[k] = body(carry, indices[k], kept[k])
        return carry, found

    def iteration(carry: Any, inputs: tuple[Int[Array, ""], Any]) -> tuple[Any, list[Any]]:
        first, kept = inputs
        return several(carry, [first + k for k in range(unroll)], [None] * unroll if kept is None else kept)

    if reverse:
        carry, of_rest = several(carry, rest, of_rest)
    if loops:
        carry, of_loop = jax.lax.scan(iteration, carry, (jnp.arange(0, rest.start, unroll), of_loop), reverse=reverse)
    if not reverse:
        carry, of_rest = several(carry, rest, of_rest)
    return carry, (of_loop, of_rest)


def _unwritten(tree: Any) -> Any:
    """Arrays like these, of any values."""
    return jax.tree.map(lambda leaf: jax.lax.empty(leaf.shape, leaf.dtype), tree)


def _at(stack: Any, index: Index) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack)


def _put(stack: Any, layer: Any, index: Index) -> Any:
    return jax.tree.map(
        lambda leaf, value: jax.lax.dynamic_update_index_in_dim(leaf, value.astype(leaf.dtype), index, 0), stack, layer
    )
