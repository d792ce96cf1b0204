"""Classifier-free guidance, of all channels and of the first ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.guidance import guide, guide_doubled

CONDITIONAL, UNCONDITIONAL = np.random.default_rng(0).standard_normal((2, 3, 5, 16)).astype(np.float32)


def test_guidance_extrapolates_from_the_unconditional_output():
    found = guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), 4.0, patch_size=2)
    np.testing.assert_allclose(found, UNCONDITIONAL + 4 * (CONDITIONAL - UNCONDITIONAL), rtol=1e-5, atol=1e-5)


def test_scale_one_is_the_conditional_output():
    found = guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), 1.0, patch_size=2)
    np.testing.assert_allclose(found, CONDITIONAL, rtol=1e-5, atol=1e-6)


def test_only_the_first_channels_are_guided_when_asked():
    # Values are ordered (channel, row, column): with patches of 2 x 2, three channels are the first 12 values.
    found = guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), 4.0, patch_size=2, guided_channels=3)
    every = guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), 4.0, patch_size=2)
    np.testing.assert_array_equal(found[..., :12], every[..., :12])
    np.testing.assert_array_equal(found[..., 12:], CONDITIONAL[..., 12:])


def test_a_negative_has_a_scale_of_its_own_beside_guidance():
    negative = np.random.default_rng(1).standard_normal(CONDITIONAL.shape).astype(np.float32)
    arrays = map(jnp.array, (CONDITIONAL, UNCONDITIONAL))
    found = guide(*arrays, 4.0, patch_size=2, guided_channels=3, negative=jnp.array(negative), negative_scale=1.5)
    expected = UNCONDITIONAL + 4 * (CONDITIONAL - UNCONDITIONAL) - 1.5 * (negative - UNCONDITIONAL)
    np.testing.assert_allclose(found[..., :12], expected[..., :12], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[..., 12:], CONDITIONAL[..., 12:])


def test_each_row_may_have_its_own_traced_scale():
    scales = jnp.array([1.0, 2.5, 7.0])
    found = jax.jit(lambda s: guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), s, patch_size=2))(scales)
    for row, scale in enumerate(scales):
        expected = UNCONDITIONAL[row] + scale * (CONDITIONAL[row] - UNCONDITIONAL[row])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)


def test_a_doubled_batch_is_guided_alike_in_both_halves_and_keeps_the_other_channels():
    doubled = np.concatenate([CONDITIONAL, UNCONDITIONAL])
    found = guide_doubled(jnp.array(doubled), 4.0, patch_size=2, guided_channels=3)
    np.testing.assert_array_equal(found[:3, ..., :12], found[3:, ..., :12])
    np.testing.assert_array_equal(found[..., 12:], doubled[..., 12:])
    every = guide_doubled(jnp.array(doubled), 4.0, patch_size=2)
    np.testing.assert_array_equal(every[:3], every[3:])


def test_impossible_channels_and_odd_batches_are_refused():
    with pytest.raises(ValueError, match="between 1 and the 4 channels"):
        guide(jnp.array(CONDITIONAL), jnp.array(UNCONDITIONAL), 4.0, patch_size=2, guided_channels=5)
    with pytest.raises(ValueError, match="even number of rows"):
        guide_doubled(jnp.array(CONDITIONAL), 4.0, patch_size=2)
