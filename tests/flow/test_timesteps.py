"""Distributions of training times, and sampling grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.timesteps import sampling_grid, shifted, times_from, training_times


def test_lognorm_times_are_the_sigmoid_of_a_standard_normal():
    times = training_times(jax.random.key(0), (20000,), distribution="lognorm")
    logits = np.log(times / (1 - times))
    assert np.mean(logits) == pytest.approx(0, abs=0.03)
    assert np.std(logits) == pytest.approx(1, abs=0.03)


def test_uniform_times_fill_their_interval():
    times = training_times(jax.random.key(1), (100, 200), distribution="uniform", interval=(0.2, 0.6))
    assert times.shape == (100, 200)
    assert 0.2 <= times.min() < 0.201
    assert 0.599 < times.max() <= 0.6
    assert np.mean(times) == pytest.approx(0.4, abs=0.005)


def test_the_shift_moves_times_towards_noise_and_keeps_the_ends():
    assert float(shifted(jnp.array(0.5), 4.0)) == pytest.approx(0.2)
    np.testing.assert_allclose(shifted(jnp.array([0.0, 1.0]), 6.0), [0, 1])
    times = times_from(jnp.array([0.0, 0.5, 1.0]), distribution="uniform", interval=(0.1, 0.9), shift=4.0)
    np.testing.assert_allclose(times, [0.1, 0.1 + 0.2 * 0.8, 0.9], rtol=1e-6)


def test_a_grid_of_n_steps_has_n_even_intervals():
    np.testing.assert_allclose(sampling_grid(4), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(sampling_grid(2, interval=(0.1, 0.9)), [0.1, 0.5, 0.9], rtol=1e-6)


def test_strength_drops_the_first_times_of_the_grid():
    whole = sampling_grid(9, shift=4.0)
    np.testing.assert_array_equal(sampling_grid(9, shift=4.0, strength=0.6), whole[4:])


def test_the_shift_may_be_traced():
    grid = jax.jit(lambda shift: sampling_grid(5, shift=shift))
    np.testing.assert_allclose(grid(3.0), sampling_grid(5, shift=3.0), rtol=1e-6)


@pytest.mark.parametrize(("steps", "strength"), [(0, 1.0), (4, 0.0), (4, 0.1), (4, 1.5)])
def test_a_grid_without_an_interval_is_refused(steps, strength):
    with pytest.raises(ValueError, match="has no interval"):
        sampling_grid(steps, strength=strength)


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="lognorm"):
        times_from(jnp.zeros(3), distribution="cosine")
