"""The likelihood against the density of a Gaussian, for which Hutchinson's estimate is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths
from lumina_jax.flow.likelihood import log_likelihood, rademacher
from lumina_jax.flow.timesteps import sampling_grid
from tests.flow import gaussian


def log_density(x):
    return -0.5 * ((x - gaussian.MEAN) / gaussian.DEVIATION) ** 2 - np.log(gaussian.DEVIATION * np.sqrt(2 * np.pi))


def field(t, x, mask):
    return mask * gaussian.velocity(paths.path("linear"))(t, x, None)


@jax.jit
def likelihood(x, mask):
    signs = rademacher(jax.random.key(1), x.shape)
    return log_likelihood(field, x, signs, sampling_grid(20)[::-1], solver="rk4", args=mask, mask=mask)


def gaussian_data():
    return gaussian.MEAN + gaussian.DEVIATION * jax.random.normal(jax.random.key(0), (5, 3, 2))


def test_the_likelihood_of_gaussian_data_is_its_density():
    x = gaussian_data()
    found = likelihood(x, jnp.ones((3, 2)))
    np.testing.assert_allclose(found.log_density, log_density(x).sum((1, 2)), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.latent, (x - gaussian.MEAN) / gaussian.DEVIATION, atol=1e-3)


def test_masked_values_do_not_count_in_the_likelihood():
    x, mask = gaussian_data(), jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = likelihood(x, mask)
    np.testing.assert_allclose(found.log_density, (mask * log_density(x)).sum((1, 2)), rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(found.latent[:, 2], x[:, 2])


def test_samples_that_interact_within_themselves_keep_an_unbiased_estimate():
    matrix = jax.random.normal(jax.random.key(2), (4, 4)) / 2

    grid, x = jnp.linspace(1.0, 0.0, 11), jnp.ones((2000, 4)) * 0.3
    found = log_likelihood(
        lambda t, x, matrix: x @ matrix,
        x,
        rademacher(jax.random.key(3), x.shape),
        grid,
        solver="rk4",
        args=matrix,
    )
    z = np.asarray(found.latent[0])
    exact = -0.5 * (z @ z) - 2 * np.log(2 * np.pi) - np.trace(matrix)
    assert float(found.log_density.mean()) == pytest.approx(exact, abs=0.1)
    assert float(found.log_density.std()) > 0.1


def test_signs_are_minus_one_or_one():
    signs = rademacher(jax.random.key(0), (1000,))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
