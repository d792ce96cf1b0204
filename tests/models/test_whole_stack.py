"""Layers of a device that has all parameters: their matrices stay in the stack unless somebody differentiates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.kernels.stacked import StackedMatrix
from lumina_jax.models.adapters import LowRank
from lumina_jax.models.whole_stack import in_place, layer_of, scanned

LAYERS, WIDTH = 3, 5


@pytest.fixture(scope="module")
def inputs():
    """Activations, parameters of all layers, and what the layers share."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    stack = {"kernel": nnx.Param(normal(LAYERS, WIDTH, WIDTH)), "bias": nnx.Param(normal(LAYERS, WIDTH))}
    return normal(2, 4, WIDTH), stack, normal(2, 4, WIDTH), jnp.arange(LAYERS)


def layer_seeing(seen):
    """A layer that notes what kind of matrix it is given."""

    def layer(x, parameters, shared, fixed):
        kernel = parameters["kernel"][...]
        seen.append(type(kernel))
        return x + jnp.tanh(x @ kernel.astype(x.dtype) + parameters["bias"][...]) * shared + fixed.sum()

    return layer


@pytest.mark.parametrize("unroll", [1, 2])
def test_without_a_gradient_matrices_stay_in_the_stack(inputs, unroll):
    seen = []
    layer = layer_seeing(seen)
    found = jax.jit(lambda *given: in_place(layer, unroll, *given))(*inputs)
    assert set(seen) == {StackedMatrix}
    np.testing.assert_allclose(found, scanned(layer, unroll, *inputs), rtol=1e-6)


@pytest.mark.parametrize("of", [(0,), (0, 1, 2), (1,), (2,)])
def test_gradients_are_those_of_a_plain_scan(inputs, of):
    seen = []
    layer = layer_seeing(seen)

    def gradients(run):
        return jax.jit(jax.grad(lambda *given: jnp.sum(run(layer, 1, *given) ** 2), argnums=of))(*inputs)

    found = gradients(in_place)
    chex.assert_trees_all_close(found, gradients(scanned), rtol=1e-5, atol=1e-6)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 0


def test_only_plain_matrices_of_parameters_stay_in_the_stack(inputs):
    _, stack, *_ = inputs
    kernel = stack["kernel"][...]
    adapted = nnx.Param(LowRank(kernel, kernel[:, :, :2], kernel[:, :2]))
    layer = layer_of(({**stack, "adapted": adapted}, kernel), jnp.asarray(1))
    parameters, beside = layer
    assert isinstance(parameters["kernel"][...], StackedMatrix)
    for found, wanted in (
        (parameters["bias"][...], stack["bias"][...][1]),
        (parameters["adapted"][...].base, kernel[1]),
        (parameters["adapted"][...].b, kernel[1, :2]),
        (beside, kernel[1]),
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_matrix_in_a_stack_can_be_used_like_any_other():
    stack = jnp.arange(24.0).reshape(2, 3, 4)
    matrix, x = StackedMatrix(stack, jnp.asarray(1)), jnp.ones((5, 3))
    assert (matrix.shape, matrix.ndim, matrix.dtype) == ((3, 4), 2, jnp.float32)
    np.testing.assert_array_equal(x @ matrix, x @ stack[1])
    assert matrix[...] is matrix.astype(jnp.float32)
    np.testing.assert_array_equal(matrix.astype(jnp.bfloat16), stack[1].astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="cut_out"):
        matrix[0]
