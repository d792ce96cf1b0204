"""Ring attention whose blocks our TPU kernels compute, interpreted on CPU, against the definition over whole rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.kernels.ring import PLAIN, KeyBlock, ring_attention
from lumina_jax.kernels.ring_blocks import block_attention
from tests.kernels.flash_cases import arrays, by_definition, case, relative, with_gradients

PACKED = np.repeat([[1, 2, 0]], [200, 40, 144], axis=1)
"""Of three devices the first holds one sample, the second the rest of it, another and padding, the last nothing; of two
devices each holds no multiple of 128 tokens."""


def around(of, devices, q, k, v):
    def local(q, k, v, ids):
        attention = block_attention(q, k, "pallas", interpret=True)
        block = KeyBlock(k, v, ids)
        return ring_attention(q, block, ids, scale=of.scale, axes=("ring",), size=devices, attention=attention)

    parts = [jnp.stack(jnp.split(x, devices, axis=1)) for x in (q, k, v, jnp.asarray(of.segments))]
    return jnp.concatenate(list(jax.vmap(local, axis_name="ring")(*parts)), axis=1)


@pytest.mark.parametrize(("devices", "heads"), [(3, 2), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_a_ring_of_kernels_gives_the_attention_and_the_gradients_of_whole_packed_rows(devices, heads):
    of = case(PACKED, heads=heads, key_heads=2, scale=0.2)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = with_gradients(functools.partial(around, of, devices), gradient, *arrays(of))
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs, strict=True)]) < 1e-5
    assert not any(np.asarray(x)[of.segments == 0].any() for x in (out, *gradients))


def test_a_ring_takes_the_kernels_only_where_they_run_or_says_why_not():
    q, k, _ = arrays(case(PACKED))
    assert all(block_attention(q, k, other) is PLAIN for other in ("auto", "xla", "reference"))
    with pytest.raises(ValueError, match=r"cannot be used in a ring: .* is a TPU .*; ask for 'auto'"):
        block_attention(q, k, "pallas")
