"""Attention whose QK-norm and rotary embedding are one kernel, against the same layer without it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.rotary import rotary_lanes, turned_heads
from lumina_jax.models import attention
from lumina_jax.models.attention import Attention, TokenContext, attend_with, lanes_for_kernel, normed_and_turned
from lumina_jax.models.layers import HeadsNorm
from lumina_jax.models.rope import RopeScaling, rotation
from lumina_jax.parallel.tensor import ALONE, Tensor

CONFIG = ModelConfig(
    layers=1, heads=2, kv_heads=1, width=256, text_width=8, own_text_query=True, attention="reference",
    compute_dtype="float32", qk_norm=True, block="next", rope_axes=2, final_shift=False,
)  # fmt: skip


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on any device."""
    monkeypatch.setattr(attention, "turned_heads", functools.partial(turned_heads, interpret=True))


def angles(length):
    positions = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, length, 2)))
    return rotation(positions, head_width=128, theta=100.0, scaling=RopeScaling())


def shuffled(module):
    """Every parameter drawn anew, so that none has the value of a formula."""
    graph, state = nnx.split(module)
    random = np.random.default_rng(1)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape) * 0.1, x.dtype), state))


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["normed", "not normed"])
def layer(request):
    return shuffled(Attention(nnx.Rngs(0), dataclasses.replace(CONFIG, qk_norm=request.param)))


def attended(layer, x, lanes):
    """Attention of two rows, one of them of two samples, to themselves and to text."""
    random = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    ids, text_ids = jnp.asarray([[1] * 7 + [2] * 5, [1] * 12]), jnp.asarray([[1, 1, 2], [1, 1, 1]])
    text = GatedText(draw(2, 3, 1, 128), draw(2, 3, 1, 128), draw(2), text_ids)
    return layer(x, TokenContext(ids, angles(12), None, lanes), text, attend_with(CONFIG))


X = np.random.default_rng(4).standard_normal((2, 12, 256), np.float32)


def test_attention_by_the_kernel_equals_attention_without_it(interpreted, layer):
    both = nnx.jit(lambda layer, x: (attended(layer, x, rotary_lanes(*angles(12))), attended(layer, x, None)))
    found, wanted = both(layer, X)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_gradients_through_the_kernel_equal_those_without_it(interpreted, layer):
    @nnx.jit
    def both(layer, x):
        gradients = nnx.grad(lambda *of: jnp.sum(jnp.sin(attended(*of))), argnums=(0, 1))
        return gradients(layer, x, rotary_lanes(*angles(12))), gradients(layer, x, None)

    found, wanted = both(layer, X)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(1 + np.abs(other).max()))


def test_devices_that_divide_the_heads_norm_over_all_of_them(interpreted):
    by, x = angles(5), jnp.asarray(np.random.default_rng(3).standard_normal((2, 5, 256)), jnp.float32)
    norm = shuffled(HeadsNorm(nnx.Rngs(0), 256, axis="heads"))

    def part(x, weight, bias):
        norm = HeadsNorm(nnx.Rngs(0), 128, axis="heads")
        norm.weight[...], norm.bias[...], norm.tensor = weight, bias, Tensor(("tensor",), 2)
        return normed_and_turned([(x, norm)], TokenContext(None, by, None, rotary_lanes(*by)), 128)[0]

    halves = [jnp.stack(jnp.split(value, 2, axis=-1)) for value in (x, norm.weight[...], norm.bias[...])]
    found = jax.jit(jax.vmap(part, axis_name="tensor"))(*halves)
    whole = jax.jit(lambda x: normed_and_turned([(x, norm)], TokenContext(None, by, None), 128)[0])(x)
    np.testing.assert_allclose(jnp.concatenate(list(found), axis=2), whole, atol=1e-5)


def test_the_kernel_is_chosen_where_attention_has_kernels(monkeypatch):
    by, config = angles(5), dataclasses.replace(CONFIG, attention="auto")
    assert lanes_for_kernel(config, ALONE, by) is None  # no TPU
    monkeypatch.setattr(attention, "refusal_here", lambda *, auto: None)
    lanes = lanes_for_kernel(config, ALONE, by)
    assert lanes is not None
    assert lanes.cos.shape == (2, 5, 128)
    assert lanes_for_kernel(CONFIG, ALONE, by) is None  # the definition was asked for
