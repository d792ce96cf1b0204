"""Layers of a device that has all parameters: their matrices stay in the stack unless somebody differentiates."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.kernels import feed_forward, projections
from lumina_jax.kernels.stacked import StackedMatrix
from lumina_jax.models.adapters import LowRank
from lumina_jax.models.whole_stack import in_place, layer_of, scanned
from lumina_jax.tokens import pack_text, tokens_of
from tests.models.random_models import random_model

LAYERS, WIDTH = 3, 5
LAYOUT = {"patch_size": 2, "nextline": True, "nextframe": False}
CONFIG = ModelConfig(
    layers=2, heads=2, width=128, channels=3, text_width=12, mlp_multiple_of=128, compute_dtype="float32", block="next",
    rope_axes=2, final_shift=False,
)  # fmt: skip


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


@pytest.mark.parametrize("differentiated", [False, True])
def test_a_network_reads_the_stack_by_kernels_unless_it_is_differentiated(monkeypatch, differentiated):
    """Of its input, as the density of a sample needs it."""
    random = np.random.default_rng(1)
    tokens, _ = tokens_of(jnp.asarray(random.standard_normal((2, 1, 8, 6, 3)), jnp.float32), **LAYOUT)
    captions = [[random.standard_normal((3, 12)).astype(np.float32)] for _ in range(2)]
    text, t = jax.tree.map(jnp.asarray, pack_text(captions, 4)), jnp.full((2, 1), 0.3)
    model, read = random_model(CONFIG), []

    def result():
        def run(patches):
            return model(tokens._replace(patches=patches), t, text)

        function = jax.grad(lambda patches: jnp.sum(run(patches) ** 2)) if differentiated else run
        return jax.jit(function)(tokens.patches)

    def noted(function):
        def called(x, *weights, **settings):
            read.extend(type(weight) is StackedMatrix for weight in jax.tree.leaves(weights, is_leaf=is_matrix))
            return function(x, *weights, **settings)

        return called

    def is_matrix(node):
        return isinstance(node, StackedMatrix)

    plain = result()
    for module in ("layers", "stack"):
        monkeypatch.setattr(f"lumina_jax.models.{module}.refusal_here", lambda auto: None)
    for module, name in ((feed_forward, "gated_feed_forward"), (projections, "projections")):
        monkeypatch.setattr(module, "refusal", lambda x, weights: None)
        monkeypatch.setattr(module, name, noted(functools.partial(getattr(module, name), interpret=True)))
    np.testing.assert_allclose(result(), plain, rtol=1e-4, atol=1e-5 * float(jnp.abs(plain).max()))
    assert len(read) >= 6
    assert set(read) == {not differentiated}
