"""Layers one after another: gathered ahead or not, kept or computed again, they give the same gradients."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import lumina_jax.models.stack
from lumina_jax.models.stack import REMAT_POLICIES, _forward_keeping, recomputed, run_layers
from lumina_jax.models.whole_stack import Differentiated
from lumina_jax.parallel.gather import Cut, ShardedWeights

ALONE = ShardedWeights((Cut(0, ()),) * 2, (), jnp.dtype("float32"), None)
"""Two parameters a layer, none of which is cut."""
EVERY = Differentiated((True, True))


def layer(x, parameters, shared, fixed):
    turned = checkpoint_name(jnp.sin(x * fixed), "attention_out")
    output = checkpoint_name(jnp.tanh(turned @ parameters["kernel"] + parameters["bias"]), "feed_forward")
    return x + output * shared


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 5, 5), "bias": (3, 5)}
    stack = {name: jnp.asarray(random.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    x, shared, fixed = (jnp.asarray(random.standard_normal((2, 4, 5)), jnp.float32) for _ in range(3))
    return x, stack, shared, fixed


def gradients(inputs, remat, weights, unroll=1):
    def loss(x, stack, shared, fixed):
        return jnp.sum(run_layers(layer, x, stack, shared, fixed, remat=remat, unroll=unroll, weights=weights) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)


@pytest.fixture(scope="module")
def plain_gradients(inputs):
    return gradients(inputs, "none", None)


@pytest.mark.parametrize(("remat", "unroll"), [*((name, 1) for name in REMAT_POLICIES), ("dots", 2), ("full", 3)])
def test_layers_gathered_ahead_give_the_gradients_of_a_plain_scan(inputs, plain_gradients, remat, unroll):
    chex.assert_trees_all_close(gradients(inputs, remat, ALONE, unroll), plain_gradients, rtol=1e-5, atol=1e-5)


def test_arrays_that_are_not_written_before_the_first_layer_leave_no_trace(inputs, plain_gradients, monkeypatch):
    nan = functools.partial(jax.tree.map, lambda leaf: jnp.full_like(leaf, jnp.nan))
    monkeypatch.setattr(lumina_jax.models.stack, "_unwritten", nan)
    chex.assert_trees_all_close(gradients(inputs, "full", ALONE), plain_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("dots", 1), ("attention", 2), ("none", 3)])
def test_recomputed_and_unrolled_layers_give_the_gradients_of_a_plain_scan(inputs, plain_gradients, remat, unroll):
    chex.assert_trees_all_close(gradients(inputs, remat, None, unroll), plain_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("remat", "extra"), [("full", 0), ("offload", 0), ("dots", 2), ("feed_forward", 2), ("attention", 1)]
)
def test_a_policy_keeps_of_each_layer_its_input_and_what_it_names_and_never_weights(inputs, remat, extra):
    keeping = functools.partial(_forward_keeping, recomputed(layer, remat), ALONE, False, 1, EVERY)
    assert [leaf.shape for leaf in what_is_kept(keeping, inputs)] == [(3, 2, 4, 5)] * (1 + extra)


def what_is_kept(keeping, inputs):
    """For the backward pass, for each layer."""
    _, residuals = jax.eval_shape(keeping, *inputs)
    return jax.tree.leaves(residuals[-1].args)


def test_each_layer_of_an_iteration_has_a_stack_of_its_own(inputs):
    keeping = functools.partial(_forward_keeping, recomputed(layer, "full"), ALONE, False, 2, EVERY)
    five = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:2]]), inputs[1])
    found = what_is_kept(keeping, (inputs[0], five, *inputs[2:]))
    assert [leaf.shape for leaf in found] == [(2, 2, 4, 5), (2, 2, 4, 5), (2, 4, 5)]


def test_without_a_policy_everything_is_kept_but_weights(inputs):
    keeping = functools.partial(_forward_keeping, recomputed(layer, "none"), ALONE, False, 1, EVERY)
    kept = what_is_kept(keeping, inputs)
    assert (3, 5, 5) not in {leaf.shape for leaf in kept}
    assert len(kept) > 2


def test_the_input_that_a_layer_keeps_lies_by_rows_in_memory(inputs):
    """On TPUs XLA would choose another order for the forward pass, and transpose each of them for the backward pass."""
    keeping = functools.partial(_forward_keeping, recomputed(layer, "full"), ALONE, False, 1, EVERY)
    constraints = re.findall(r"custom_call @LayoutConstraint\(.*", jax.jit(keeping).lower(*inputs).as_text())
    assert len(constraints) == 1
    assert "dense<[2, 1, 0]>" in constraints[0]
