"""Ring attention against attention over all keys at once; devices of the ring are simulated by a mapped axis."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.kernels import ring
from lumina_jax.kernels.attention import attend
from lumina_jax.kernels.ring import KeyBlock, ring_attention
from tests.kernels.flash_cases import with_gradients

SEGMENTS = np.array([[1] * 5 + [2] * 9 + [0] * 2, [1] * 16], np.int32)
"""Two rows of 16 tokens: two samples and padding, which cut the blocks of 4 anywhere; and one sample."""


def inputs(heads=4, key_heads=2):
    random = np.random.default_rng(0)
    shapes = ((2, 16, heads, 6), (2, 16, key_heads, 6), (2, 16, key_heads, 6), (2, 16, heads, 6))
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def whole(q, k, v):
    return attend(q, k, v, segment_ids=jnp.asarray(SEGMENTS), scale=0.7, implementation="reference")


def around(q, k, v, devices=4):
    def local(q, k, v, segments):
        return ring_attention(q, KeyBlock(k, v, segments), segments, scale=0.7, axes=("ring",), size=devices)

    parts = [jnp.stack(jnp.split(x, devices, axis=1)) for x in (q, k, v, jnp.asarray(SEGMENTS))]
    return jnp.concatenate(list(jax.vmap(local, axis_name="ring")(*parts)), axis=1)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_ring_gives_the_attention_and_the_gradients_of_all_keys(devices):
    q, k, v, weight = inputs()
    expected, gradients = with_gradients(whole, weight, q, k, v)
    found, of_ring = with_gradients(lambda *qkv: around(*qkv, devices), weight, q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    chex.assert_trees_all_close(of_ring, gradients, atol=5e-6, rtol=0)
    assert not np.asarray(found)[0, 14:].any()


def test_queries_in_parts_change_nothing(monkeypatch):
    q, k, v, weight = inputs()
    expected, gradients = with_gradients(lambda *qkv: around(*qkv, 1), weight, q, k, v)
    monkeypatch.setattr(ring, "QUERIES_AT_ONCE", 4)
    found, in_parts = with_gradients(lambda *qkv: around(*qkv, 1), weight, q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    chex.assert_trees_all_close(in_parts, gradients, atol=2e-6, rtol=0)


def test_large_logits_neither_overflow_nor_vanish():
    q, k, v, _ = inputs()
    # float32 rounds logits of several hundred by 3e-5, and the weights by as much
    np.testing.assert_allclose(jax.jit(around)(100 * q, k, v), jax.jit(whole)(100 * q, k, v), atol=3e-4)


def test_a_ring_never_gathers_the_keys():
    q, k, v, weight = inputs()
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda q: jnp.sum(around(q, k, v) * weight)))(q))
    assert "f32[4,2,2,2,4,4]" in jaxpr  # logits of one block: devices, rows, key heads, group, 4 queries, 4 keys
    assert "4,16]" not in jaxpr
