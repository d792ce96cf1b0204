"""attend() against numpy, written out sample by sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend

B, L, T, H, K, D = 2, 9, 5, 4, 2, 8
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 9])
TEXT_SEGMENTS = np.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 0]])


def inputs(seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    text = GatedText(normal(B, T, K, D), normal(B, T, K, D), normal(H), TEXT_SEGMENTS)
    return normal(B, L, H, D), normal(B, L, K, D), normal(B, L, K, D), jax.tree.map(jnp.asarray, text)


def by_hand(q, k, v, query_segments, key_segments, scale):
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        seen = (key_segments[b] == query_segments[b, i]) & (query_segments[b, i] > 0)
        if seen.any():
            head = h // (H // K)
            weights = np.exp(scale * k[b, seen, head].astype(float) @ q[b, i, h])
            out[b, i, h] = weights @ v[b, seen, head] / weights.sum()
    return out


@pytest.mark.parametrize("implementation", ["reference", "xla", "auto"])
def test_attend_is_masked_softmax_plus_gated_text(implementation):
    q, k, v, text = inputs()
    call = functools.partial(attend, segment_ids=jnp.asarray(SEGMENTS), scale=0.4, implementation=implementation)
    ours = jax.jit(call)(q, k, v, text=text)
    from_text = by_hand(q, np.asarray(text.keys), np.asarray(text.values), SEGMENTS, TEXT_SEGMENTS, D**-0.5)
    gate = np.tanh(np.asarray(text.gate))[:, None]
    theirs = by_hand(q, k, v, SEGMENTS, SEGMENTS, 0.4) + gate * from_text
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_text_of_the_first_heads_is_text_with_closed_gates_for_the_others(implementation):
    q, k, v, text = inputs()
    first = text._replace(keys=text.keys[:, :, :1], values=text.values[:, :, :1], gate=text.gate[:2])
    closed = text._replace(gate=text.gate.at[2:].set(0))
    call = functools.partial(attend, segment_ids=jnp.asarray(SEGMENTS), scale=0.4, implementation=implementation)
    ours, theirs = jax.jit(call)(q, k, v, text=first), jax.jit(call)(q, k, v, text=closed)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    queries = first._replace(queries=jnp.asarray(q[:, :, :2])).for_heads(4)
    assert [x.shape[2] for x in (queries.keys, queries.values, queries.queries)] == [2, 2, 4]
    np.testing.assert_array_equal(queries.gate, closed.gate)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_padding_gets_zeros_and_no_gradient_is_nan(implementation):
    q, k, v, text = inputs()

    def total(q, k, v):
        out = attend(q, k, v, segment_ids=jnp.asarray(SEGMENTS), scale=1.0, text=text, implementation=implementation)
        return jnp.sum(out**2), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert not np.any(np.asarray(out)[SEGMENTS == 0])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(np.asarray(gradients[1])[SEGMENTS == 0])


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_huge_logits_stay_finite(implementation):
    q, k, v, _ = inputs()
    out = attend(
        *map(jnp.asarray, (q * 1e4, k, v)), segment_ids=jnp.ones((B, L), int), scale=1.0, implementation=implementation
    )
    assert np.isfinite(out).all()


def test_query_heads_that_key_heads_do_not_divide_are_refused():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match="3 query heads must be a multiple of 2"):
        attend(jnp.asarray(q[:, :, :3]), jnp.asarray(k), jnp.asarray(v), segment_ids=jnp.ones((B, L), int), scale=1.0)
