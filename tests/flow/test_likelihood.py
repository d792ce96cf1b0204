"""The likelihood against the density of a Gaussian, for which Hutchinson's estimate is exact."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths
from lumina_jax.flow.likelihood import log_likelihood, rademacher
from lumina_jax.flow.timesteps import sampling_grid


def log_density(x):
    return -0.5 * ((x - gaussian.MEAN) / gaussian.DEVIATION) ** 2 - np.log(gaussian.DEVIATION * np.sqrt(2 * np.pi))


@pytest.mark.parametrize(("solver", "steps", "allowed"), [("rk4", 20, 2e-3), ("dopri5", 1, 2e-3)])
def test_the_likelihood_of_gaussian_data_is_its_density(solver, steps, allowed):
    x = gaussian.MEAN + gaussian.DEVIATION * jax.random.normal(jax.random.key(0), (5, 3, 2))
    signs = rademacher(jax.random.key(1), x.shape)
    field, grid = gaussian.velocity(paths.path("linear")), sampling_grid(steps)[::-1]
    found = log_likelihood(field, x, signs, grid, solver=solver, rtol=1e-5)
    np.testing.assert_allclose(found.log_density, log_density(x).sum((1, 2)), rtol=allowed, atol=allowed)
    np.testing.assert_allclose(found.latent, (x - gaussian.MEAN) / gaussian.DEVIATION, atol=1e-3)


def test_masked_places_have_no_share_in_the_likelihood():
    path = paths.path("linear")
    x = gaussian.MEAN + gaussian.DEVIATION * jax.random.normal(jax.random.key(0), (4, 5))
    mask = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])

    def field(t, x, args):
        return mask * gaussian.velocity(path)(t, x, args)

    grid = sampling_grid(20)[::-1]
    found = log_likelihood(field, x, rademacher(jax.random.key(1), x.shape), grid, solver="rk4", mask=mask)
    np.testing.assert_allclose(found.log_density, log_density(x)[:, :3].sum(1), rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(found.latent[:, 3:], x[:, 3:])


def test_samples_that_interact_within_themselves_keep_an_unbiased_estimate():
    matrix = jax.random.normal(jax.random.key(2), (4, 4)) / 2

    def field(t, x, matrix):
        return x @ matrix

    grid, x = jnp.linspace(1.0, 0.0, 11), jnp.ones((2000, 4)) * 0.3
    found = log_likelihood(field, x, rademacher(jax.random.key(3), x.shape), grid, solver="rk4", args=matrix)
    z = np.asarray(found.latent[0])
    exact = -0.5 * (z @ z) - 2 * np.log(2 * np.pi) - np.trace(matrix)
    assert float(found.log_density.mean()) == pytest.approx(exact, abs=0.1)
    assert float(found.log_density.std()) > 0.1


def test_signs_are_minus_one_or_one():
    signs = rademacher(jax.random.key(0), (1000,))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
