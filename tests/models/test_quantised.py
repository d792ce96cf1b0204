"""Matrices in 8 or 4 bits: the errors of rounding, products, gradients, and what a program keeps of them."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.models import quantised
from lumina_jax.models.adapters import LowRank, fingerprint, identity
from lumina_jax.models.quantised import (
    FORMATS,
    NORMAL_FLOAT,
    Int8Weight,
    Nf4Weight,
    nearest,
)

NORMAL = np.random.default_rng(0).standard_normal((3, 96, 8)).astype(np.float32)


def test_the_values_of_nf4_are_quantiles_of_the_normal_distribution():
    # Appendix E of the paper: 8 positive and 7 negative values, evenly spaced in probability, and 0.
    quantile = statistics.NormalDist().inv_cdf
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    positive = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    values = np.sort([*positive, 0.0, *negative])
    np.testing.assert_allclose(NORMAL_FLOAT, values / values.max(), atol=2e-7)


def test_codes_of_nf4_are_those_of_the_nearest_values():
    codes = jnp.arange(16, dtype=jnp.uint8)
    for values in (quantised.normal_float(codes), quantised._chosen(codes)):
        np.testing.assert_array_equal(values, np.float32(NORMAL_FLOAT))
    x = np.linspace(-1.05, 1.05, 1001, dtype=np.float32)
    expected = np.abs(x[:, None] - np.float32(NORMAL_FLOAT)).argmin(axis=1)
    np.testing.assert_array_equal(nearest(jnp.asarray(x)), expected)


def test_int8_is_off_by_at_most_half_a_step_of_each_output():
    weight = NORMAL * np.float32(10.0) ** np.arange(-4, 4)
    weight[1, :, 2] = 0
    held = Int8Weight.of(jnp.asarray(weight))
    assert held.codes.dtype == jnp.int8
    assert np.abs(held.codes).max(axis=1).min() == 0
    error, step = np.abs(held.dequantised(jnp.float32) - weight), np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (error <= 0.5001 * step).all()
    assert 0.2 * step.max() < error.max()


def test_nf4_is_off_by_at_most_half_a_gap_of_each_block_in_half_a_byte():
    inputs, block = 96, 32  # the largest power of 2 up to 64 that divides the inputs
    weight = NORMAL.copy()
    weight[:, 40, :] *= 50  # the blocks around it have scales of their own
    held = Nf4Weight.of(jnp.asarray(weight))
    assert (held.codes.dtype, held.codes.shape, held.scale.shape) == (jnp.uint8, (3, inputs // 2, 8), (3, 3, 8))
    assert held.shape == weight.shape
    parts = weight.reshape(3, -1, block, 8)
    error = np.abs(held.dequantised(jnp.float32).reshape(parts.shape) - parts)
    gap = np.diff(NORMAL_FLOAT).max() / 2 + 2**-8  # and the rounding of the scale
    assert (error <= gap * np.abs(parts).max(axis=2, keepdims=True)).all()
    assert 0.05 < np.sqrt((error[:, 0] ** 2).mean() / (parts[:, 0] ** 2).mean()) < 0.12


@pytest.mark.parametrize("kind", FORMATS)
def test_products_and_gradients_are_those_of_the_dequantised_matrix_alone_and_under_an_adapter(kind):
    random = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    stack, (a, b), x = FORMATS[kind].of(jnp.asarray(NORMAL)), (draw(96, 2), draw(2, 8)), draw(5, 96)
    held = jax.tree.map(lambda leaf: leaf[2], stack)
    whole = held.dequantised(jnp.float32)
    np.testing.assert_array_equal(whole, stack.dequantised(jnp.float32)[2])
    np.testing.assert_allclose(x @ held.astype(jnp.bfloat16)[...], x @ whole, rtol=1e-5, atol=1e-4)

    def loss(x, a, b, weight):
        return jnp.sum(jnp.sin(x @ LowRank(weight, a, b).astype(jnp.float32)))

    ours, theirs = (jax.grad(loss, (0, 1, 2))(x, a, b, weight) for weight in (held, whole))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
    half = (x.astype(jnp.bfloat16) @ LowRank(held, a, b).astype(jnp.bfloat16)).astype(jnp.float32)
    assert np.abs(half - x @ (whole + a @ b)).max() < 0.02 * np.abs(half).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_neither_the_backward_pass_nor_the_scan_keeps_matrices_of_all_layers(kind):
    layers, width = 16, 256
    stack = jax.eval_shape(FORMATS[kind].of, jax.ShapeDtypeStruct((layers, width, width), jnp.float32))

    def loss(x, stack):
        return jnp.sum(jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, stack)[0])

    x = jax.ShapeDtypeStruct((1, width), jnp.bfloat16)
    used = jax.jit(jax.grad(loss)).lower(x, stack).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * 4 * width**2  # some matrices in float32, to which XLA on CPU converts, but not 16


@pytest.mark.parametrize("kind", FORMATS)
def test_the_fingerprint_is_that_of_the_weights_before_they_were_quantised(kind):
    def model(weight):
        return {"blocks": {"up": {"kernel": weight, "bias": jnp.ones((3, 8))}}, "out": {"kernel": jnp.eye(4)}}

    weight, held = jnp.asarray(NORMAL), FORMATS[kind].of(jnp.asarray(NORMAL))
    expected = identity(fingerprint(model(weight)))
    assert identity(fingerprint(model(held))) == expected
    layers = [FORMATS[kind].of(weight[layer][None], layer) for layer in range(3)]
    one_by_one = jax.tree.map(lambda *parts: jnp.concatenate(parts), *layers)
    jax.tree.map(np.testing.assert_array_equal, one_by_one, held)
    assert identity(fingerprint(model(FORMATS[kind].of(weight.at[1, 2, 3].add(0.1))))) != expected
    assert identity(fingerprint(model(FORMATS[kind].of(weight[::-1])))) != expected
