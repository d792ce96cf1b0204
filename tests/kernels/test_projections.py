"""Products of the same tokens with several matrices by kernels, against their definition, gradients included; and where
kernels serve."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.chips import CHIPS
from lumina_jax.kernels import projections, token_blocks
from lumina_jax.kernels.stacked import StackedMatrix
from lumina_jax.models.adapters import LowRank
from lumina_jax.models.layers import Linear, ParameterKeys, products


def case(tokens, width, widths, dtype=jnp.float32):
    """Two rows of tokens, the matrices, and the gradients of the products."""
    random = np.random.default_rng(tokens)

    def normal(deviation, *shape):
        return jnp.asarray(random.normal(0, deviation, shape), dtype)

    matrices = [normal(width**-0.5, width, each) for each in widths]
    return normal(1, 2, tokens, width), matrices, tuple(normal(1, 2, tokens, each) for each in widths)


def defined(x, matrices):
    return tuple(x @ matrix for matrix in matrices)


def check(tokens, width, widths, interpret):
    """Compare the kernels and their gradients with the definition."""
    x, matrices, gradients = case(tokens, width, widths)

    @jax.jit
    def results(x, matrices):
        found = []
        for function in (lambda x, matrices: projections.projections(x, matrices, interpret), defined):
            out, pullback = jax.vjp(function, x, matrices)
            found.append((out, pullback(gradients)))
        return found

    ours, wanted = map(jax.tree.leaves, results(x, matrices))
    assert len(ours) == 2 * len(widths) + 1
    for found, value in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5 * float(jnp.abs(value).max()))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(token_blocks, "MOST_ROWS", 64)
    monkeypatch.setattr(token_blocks, "CHUNKS", (16, 32))
    monkeypatch.setattr(projections, "COLUMNS", (256, 128))


@pytest.mark.parametrize(
    ("tokens", "width", "widths"),
    [
        (150, 40, (256, 768, 72)),
        (16, 128, (256, 128)),
        pytest.param(33, 72, (128, 256, 384, 40), marks=pytest.mark.slow),
    ],
)
def test_the_kernels_and_their_gradients_are_those_of_the_products(small_blocks, tokens, width, widths):
    """Several blocks of tokens, the last of which ends beyond the row, and of columns; narrow matrices are whole."""
    check(tokens, width, widths, interpret=True)


def test_the_kernels_write_each_block_once_and_read_nothing_beyond_theirs(small_blocks):
    """Memory is as on a TPU: a block that no step has written, or that is left too early, holds NaN."""
    check(128, 24, (256, 72), interpret=pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise"))


@pytest.mark.parametrize("layer", [0, 2])
def test_matrices_are_read_in_the_stack_of_all_layers(small_blocks, layer):
    x, matrices, _ = case(150, 40, (256, 72))
    index = jnp.asarray(layer)
    stacked = [StackedMatrix(jnp.full((3, *one.shape), jnp.nan).at[layer].set(one), index) for one in matrices]
    found = jax.jit(lambda x, matrices: projections.projections(x, matrices, True))(x, stacked)
    chex.assert_trees_all_close(found, defined(x, matrices), rtol=2e-5, atol=2e-5)


def test_without_a_gradient_no_kernel_reads_other_matrices():
    x, matrices, _ = case(20, 128, (256, 128))
    program = str(jax.make_jaxpr(projections.projections)(x, matrices))
    assert "pallas_call" not in program
    for found, value in zip(projections.projections(x, matrices), defined(x, matrices), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def test_the_estimate_of_a_kernel_counts_the_columns_that_a_matrix_unit_leaves_empty(monkeypatch):
    x, matrices, gradients = case(512, 256, (512, 72))
    answer_for(monkeypatch, CHIPS["v6e"])
    _, pullback = jax.vjp(lambda x: projections.projections(x, matrices, True), x)
    program = str(jax.make_jaxpr(pullback)(gradients))
    assert f"flops={2 * 1024 * 256 * (512 + 256)}" in program


def answer_for(monkeypatch, chip):
    for module in (projections, token_blocks):
        monkeypatch.setattr(module, "known_chip", lambda: chip)


def test_kernels_serve_plain_weights_and_many_tokens_on_the_chips_where_they_are_faster(monkeypatch):
    x, weights, _ = case(512, 128, (256, 72), jnp.bfloat16)
    assert "v6e" in projections.refusal(x, weights)
    answer_for(monkeypatch, CHIPS["v5p"])
    assert "v6e" in projections.refusal(x, weights)
    answer_for(monkeypatch, CHIPS["v6e"])
    assert projections.refusal(x, weights) is None
    adapted = LowRank(weights[0], weights[0][:, :2], weights[0][:2])
    assert "adapter" in projections.refusal(x, [adapted, weights[1]])
    assert "float32" in projections.refusal(x.astype(jnp.float32), weights)
    assert "tokens" in projections.refusal(x[:, :150], weights)
    assert "1400 wide" in projections.refusal(x, [jnp.zeros((128, 1400), jnp.bfloat16)])
    small = dataclasses.replace(CHIPS["v6e"], vmem=2**20)
    answer_for(monkeypatch, small)
    assert "too wide" in projections.refusal(x, weights)


@pytest.mark.parametrize(("kernels", "bias"), [(True, False), (False, False), (True, True)])
def test_linears_call_the_kernels_where_they_serve_and_are_wanted(monkeypatch, kernels, bias):
    keys = ParameterKeys(0)
    linears = [Linear(keys, 128, width, axes=("embed", "heads"), bias=bias) for width in (256, 72)]
    monkeypatch.setattr("lumina_jax.models.layers.refusal_here", lambda auto: None)
    monkeypatch.setattr(projections, "refusal", lambda x, weights: None)
    called = []

    def instead(x, weights):
        called.append(x.shape)
        return defined(x, weights)

    monkeypatch.setattr(projections, "projections", instead)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 128)), jnp.float32)
    for found, linear in zip(products(x, linears, kernels=kernels), linears, strict=True):
        np.testing.assert_allclose(found, linear(x), rtol=1e-4, atol=1e-5)
    assert called == ([x.shape] if kernels and not bias else [])
