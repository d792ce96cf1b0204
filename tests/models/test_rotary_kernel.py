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
    layers=1, heads=4, kv_heads=2, width=256, text_width=8, own_text_query=True, attention="reference",
    compute_dtype="float32", qk_norm=True, block="next", rope_axes=2, final_shift=False,
)  # fmt: skip


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on any device."""
    monkeypatch.setattr(attention, "turned_heads", functools.partial(turned_heads, interpret=True))


def angles(length):
    positions = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, length, 2)))
    return rotation(positions, head_width=64, theta=100.0, scaling=RopeScaling())


def shuffled(module):
    """Every parameter drawn anew, so that none has the value of a formula."""
    graph, state = nnx.split(module)
    random = np.random.default_rng(1)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape) * 0.1, x.dtype), state))


@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_by_the_kernel_equals_attention_without_it(interpreted, qk_norm):
    layer = shuffled(Attention(nnx.Rngs(0), dataclasses.replace(CONFIG, qk_norm=qk_norm)))
    random, by = np.random.default_rng(2), angles(12)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    ids, text_ids = jnp.asarray([[1] * 7 + [2] * 5, [1] * 12]), jnp.asarray([[1, 1, 2], [1, 1, 1]])
    x, text = draw(2, 12, 256), GatedText(draw(2, 3, 2, 64), draw(2, 3, 2, 64), draw(4), text_ids)

    def sizes(layer, x, lanes):
        out = layer(x, TokenContext(ids, by, None, lanes), text, attend_with(CONFIG))
        return jnp.sum(jnp.sin(out)), out

    gradients = nnx.jit(nnx.grad(sizes, argnums=(0, 1), has_aux=True))
    (found, out), (wanted, expected) = gradients(layer, x, rotary_lanes(*by)), gradients(layer, x, None)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(1 + np.abs(other).max()))


def test_devices_that_divide_the_heads_norm_over_all_of_them(interpreted):
    by, x = angles(5), jnp.asarray(np.random.default_rng(3).standard_normal((2, 5, 256)), jnp.float32)
    norm = shuffled(HeadsNorm(nnx.Rngs(0), 256, axis="heads"))
    whole = normed_and_turned([(x, norm)], TokenContext(jnp.ones((2, 5), int), by, None), 64)[0]

    def part(x, weight, bias):
        norm = HeadsNorm(nnx.Rngs(0), 128, axis="heads")
        norm.weight[...], norm.bias[...], norm.tensor = weight, bias, Tensor(("tensor",), 2)
        return normed_and_turned([(x, norm)], TokenContext(None, by, None, rotary_lanes(*by)), 64)[0]

    halves = [jnp.stack(jnp.split(value, 2, axis=-1)) for value in (x, norm.weight[...], norm.bias[...])]
    found = jnp.concatenate(list(jax.vmap(part, axis_name="tensor")(*halves)), axis=2)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_the_kernel_is_chosen_where_attention_has_kernels(monkeypatch):
    by, config = angles(5), dataclasses.replace(CONFIG, attention="auto")
    assert lanes_for_kernel(config, ALONE, by) is None  # no TPU
    monkeypatch.setattr(attention, "refusal_here", lambda *, auto: None)
    lanes = lanes_for_kernel(config, ALONE, by)
    assert lanes is not None
    assert lanes.cos.shape == (2, 5, 128)
    assert lanes_for_kernel(config, Tensor(("tensor",), 2), by) is None  # keys of one device fill half a register
    assert lanes_for_kernel(CONFIG, ALONE, by) is None  # the definition was asked for
