"""The feed-forward by kernels, against its formula, gradients included; and where kernels serve."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.chips import CHIPS
from lumina_jax.kernels import feed_forward, token_blocks
from lumina_jax.kernels.feed_forward import gated_feed_forward
from lumina_jax.kernels.stacked import StackedMatrix
from lumina_jax.models.adapters import LowRank
from lumina_jax.models.layers import ParameterKeys, SwiGLU


def case(tokens, width, hidden, dtype=jnp.float32):
    """Two rows of tokens, gate, up, down, and the gradient of the output."""
    random = np.random.default_rng(tokens)
    shapes = (2, tokens, width), (width, hidden), (width, hidden), (hidden, width), (2, tokens, width)
    deviations = 1.0, width**-0.5, width**-0.5, hidden**-0.5, 1.0
    return [jnp.asarray(random.normal(0, d, shape), dtype) for shape, d in zip(shapes, deviations)]


def defined(x, gate, up, down):
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def both(tokens, width, hidden, interpret):
    """Outputs and gradients of the kernels and of the formula."""
    *arguments, gradient = case(tokens, width, hidden)

    @jax.jit
    def results(*arguments):
        found = []
        for function in (lambda *given: gated_feed_forward(*given, interpret=interpret), defined):
            out, pullback = jax.vjp(function, *arguments)
            found.append((out, *pullback(gradient)))
        return found

    return results(*arguments)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(token_blocks, "MOST_ROWS", 64)
    monkeypatch.setattr(token_blocks, "CHUNKS", (16, 32))
    monkeypatch.setattr(feed_forward, "COLUMNS", (256, 128))


@pytest.mark.parametrize(
    ("tokens", "width", "hidden"),
    [(150, 40, 768), (16, 128, 256), pytest.param(33, 72, 128, marks=pytest.mark.slow)],
)
def test_the_kernels_and_their_gradients_are_those_of_the_formula(small_blocks, tokens, width, hidden):
    """Several blocks of tokens and of hidden values, the last of which ends beyond the row; short rows are one."""
    ours, wanted = both(tokens, width, hidden, interpret=True)
    for found, value in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5 * float(jnp.abs(value).max()))


@pytest.mark.parametrize("layer", [0, 2])
def test_matrices_are_read_in_the_stack_of_all_layers(small_blocks, layer):
    x, *weights, _ = case(150, 40, 768)
    index = jnp.asarray(layer)
    stacked = [StackedMatrix(jnp.full((3, *one.shape), jnp.nan).at[layer].set(one), index) for one in weights]
    found = jax.jit(lambda x, *weights: gated_feed_forward(x, *weights, interpret=True))(x, *stacked)
    np.testing.assert_allclose(found, defined(x, *weights), rtol=2e-5, atol=2e-5)


def test_without_a_gradient_no_kernel_reads_other_matrices():
    *arguments, _ = case(20, 128, 256)
    program = str(jax.make_jaxpr(gated_feed_forward)(*arguments))
    assert "pallas_call" not in program
    np.testing.assert_allclose(gated_feed_forward(*arguments), defined(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_kernels_have_no_races_and_read_nothing_beyond_their_blocks(small_blocks):
    checked = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise")
    ours, wanted = both(128, 128, 256, interpret=checked)
    for found, value in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5 * float(jnp.abs(value).max()))


@pytest.mark.parametrize("tokens", [400, 1088, 4096, 4224, 8448, 32768])
@pytest.mark.parametrize("width", [1152, 3072, 4096])
def test_blocks_cover_the_tokens_with_few_beyond_them_and_leave_half_of_the_vector_memory(tokens, width):
    chip = CHIPS["v6e"]
    for arrays in (feed_forward._FORWARD, feed_forward._BACKWARD):
        blocks = feed_forward._cut(tokens, width, 43 * 256, chip, arrays)
        covered = -(-tokens // blocks.rows) * blocks.rows
        assert tokens <= covered < 1.05 * tokens
        assert blocks.rows <= token_blocks.MOST_ROWS
        assert blocks.chunk % 16 == 0
        assert arrays.step_bytes(blocks.rows, 256, width) <= chip.vmem / 2


def answer_for(monkeypatch, chip):
    for module in (feed_forward, token_blocks):
        monkeypatch.setattr(module, "known_chip", lambda: chip)


def test_kernels_serve_plain_weights_and_many_tokens_on_the_chips_where_they_are_faster(monkeypatch):
    x, *weights, _ = case(512, 128, 256, jnp.bfloat16)
    assert "v6e" in feed_forward.refusal(x, weights)
    answer_for(monkeypatch, CHIPS["v5p"])
    assert "v6e" in feed_forward.refusal(x, weights)
    answer_for(monkeypatch, CHIPS["v6e"])
    assert feed_forward.refusal(x, weights) is None
    adapted = LowRank(weights[0], weights[0][:, :2], weights[0][:2])
    assert "adapter" in feed_forward.refusal(x, [adapted, *weights[1:]])
    assert "float32" in feed_forward.refusal(x.astype(jnp.float32), weights)
    assert "tokens" in feed_forward.refusal(x[:, :150], weights)
    assert "multiple of 128" in feed_forward.refusal(x, [weights[0][:, :200], weights[1][:, :200], weights[2][:200]])
    small = dataclasses.replace(CHIPS["v6e"], vmem=2**20)
    answer_for(monkeypatch, small)
    assert "too wide" in feed_forward.refusal(x, weights)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_feed_forward_calls_the_kernels_where_they_serve_and_are_wanted(monkeypatch, kernels):
    layer = SwiGLU(ParameterKeys(0), 128, 256, kernels=kernels)
    monkeypatch.setattr("lumina_jax.models.layers.refusal_here", lambda auto: None)
    monkeypatch.setattr(feed_forward, "refusal", lambda x, weights: None)
    called = []

    def instead(x, *weights):
        called.append(x.shape)
        return defined(x, *weights)

    monkeypatch.setattr(feed_forward, "gated_feed_forward", instead)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 128)), jnp.float32)
    found = layer(x)
    weights = (layer.gate.kernel[...], layer.up.kernel[...], layer.down.kernel[...])
    np.testing.assert_allclose(found, defined(x, *weights), rtol=1e-4, atol=1e-5)
    assert called == ([x.shape] if kernels else [])
