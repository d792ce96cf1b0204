"""The steps of DDPM against the published schedule, as plain numpy has it."""

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.flow import paths, schedule, timesteps

ALPHA_BAR = np.cumprod(1 - (0.0001 + np.arange(1000) * (0.02 - 0.0001) / 999))
STEPS = np.arange(1000)


def test_alpha_and_sigma_at_each_step_are_those_of_the_product_of_alphas():
    c = paths.path("ddpm").coefficients(schedule.time_of_step(STEPS))
    np.testing.assert_allclose(c.alpha, np.sqrt(ALPHA_BAR), rtol=1e-4)
    np.testing.assert_allclose(c.sigma, np.sqrt(1 - ALPHA_BAR), rtol=1e-3)


def test_every_step_has_a_time_and_the_network_is_told_the_step():
    times = schedule.time_of_step(STEPS)
    np.testing.assert_array_equal(schedule.step_at(times), STEPS)
    np.testing.assert_allclose(schedule.network_time(times), STEPS, atol=1e-3)
    np.testing.assert_allclose(times[jnp.array([0, 999])], [0.999, 0.0])
    np.testing.assert_allclose(schedule.discrete(times), times)


def test_uniform_times_become_uniform_steps():
    times = timesteps.training_times(jax.random.key(0), (200_000,), distribution="uniform")
    counts = np.bincount(schedule.step_at(times), minlength=1000)
    assert len(counts) == 1000
    assert abs(counts.mean() - 200) < 1e-9
    assert np.sum((counts - 200) ** 2 / 200) < 1000 + 4 * np.sqrt(2000)


def test_the_time_of_a_share_of_data_is_found_again():
    times = jnp.linspace(0, 1, 777)
    np.testing.assert_allclose(schedule.time_with_log_alpha_bar(schedule.log_alpha_bar(times)), times, atol=2e-5)
