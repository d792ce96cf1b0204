"""Attention over rows whose tokens lie on several devices, simulated by mapped axes, against that over whole rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend
from lumina_jax.parallel.sequence import attend_across
from tests.kernels.flash_cases import with_gradients

SEGMENTS = np.array([[1] * 5 + [2] * 9 + [0] * 2, [1] * 16], np.int32)
TEXT_SEGMENTS = np.array([[1, 1, 2, 0], [1, 1, 1, 1]], np.int32)


def arrays(key_heads, own_query):
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    q, k, v = normal(2, 16, 8, 6), normal(2, 16, key_heads, 6), normal(2, 16, key_heads, 6)
    text = normal(2, 4, key_heads, 6), normal(2, 4, key_heads, 6), normal(8)
    return (q, k, v), (normal(2, 16, 8, 6) if own_query else None), text, normal(2, 16, 8, 6)


def whole(qkv, text_q, text):
    gated = GatedText(*text, jnp.asarray(TEXT_SEGMENTS), text_q)
    return attend(*qkv, segment_ids=jnp.asarray(SEGMENTS), scale=0.7, text=gated, implementation="reference")


def across(qkv, text_q, text, ring, heads):
    mesh = AbstractMesh((ring, heads), ("sequence_ring", "sequence_heads"), axis_types=(AxisType.Auto,) * 2)

    def back_end(*qkv, **rest):
        return attend(*qkv, implementation="reference", **rest)

    def local(qkv, text_q, segments):
        gated = GatedText(*text, jnp.asarray(TEXT_SEGMENTS), text_q)
        return attend_across(back_end, mesh)(*qkv, segment_ids=segments, scale=0.7, text=gated)

    def cut(x):
        return jnp.moveaxis(x.reshape(2, ring, heads, -1, *x.shape[2:]), 0, 2)

    mapped = jax.vmap(jax.vmap(local, axis_name="sequence_heads"), axis_name="sequence_ring")
    out = mapped(*jax.tree.map(cut, (qkv, text_q, jnp.asarray(SEGMENTS))))
    return jnp.moveaxis(out, 2, 0).reshape(2, 16, 8, 6)


@pytest.mark.parametrize(
    ("ring", "heads", "key_heads", "own_query"),
    [
        pytest.param(1, 4, 8, False, marks=pytest.mark.slow),
        (1, 4, 2, True),
        (4, 1, 2, True),
        pytest.param(2, 2, 8, False, marks=pytest.mark.slow),
        (2, 4, 2, True),
    ],
)
def test_attention_across_devices_is_that_of_whole_rows_with_text_and_gradients(ring, heads, key_heads, own_query):
    *given, weight = arrays(key_heads, own_query)
    expected, slopes = with_gradients(whole, weight, *given)
    found, slopes_across = with_gradients(lambda *given: across(*given, ring, heads), weight, *given)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    chex.assert_trees_all_close(slopes_across, slopes, atol=1e-5)


def test_without_devices_to_cross_the_back_end_is_left_as_it_is():
    mesh = AbstractMesh((1, 1), ("sequence_ring", "sequence_heads"), axis_types=(AxisType.Auto,) * 2)
    assert attend_across(attend, mesh) is attend
