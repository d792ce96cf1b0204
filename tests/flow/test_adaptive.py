"""Adaptive solvers of a batch: each sample takes the steps that it would take alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.adaptive import SampleNorms
from lumina_jax.flow.likelihood import log_likelihood
from lumina_jax.flow.ode import integrate

GRID = jnp.array([0.0, 1.0])


def rotating(t, x, rate):
    """Samples of two values that turn, each at another rate, and shrink."""
    t = jnp.reshape(t, (-1, 1))
    turned = jnp.stack([-x[:, 1], x[:, 0]], axis=1)
    return rate[:, None] * turned * jnp.cos(3 * t) - 0.3 * x * t


@functools.partial(jax.jit, static_argnames=("solver", "each"))
def solved(x, rate, solver, each, backwards=False, rtol=1e-4):
    grid = jnp.where(backwards, GRID[::-1], GRID)
    return integrate(rotating, x, grid, solver=solver, rtol=rtol, args=rate, samples=SampleNorms() if each else None)


X, RATE = jnp.array([[1.0, 0.5], [-2.0, 0.1], [0.3, 0.4]]), jnp.array([0.5, 30.0, 4.0])


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "adaptive_heun"])
@pytest.mark.parametrize("backwards", [False, True])
def test_each_sample_of_a_batch_takes_the_steps_that_a_batch_of_one_takes(solver, backwards):
    together = solved(X, RATE, solver, each=True, backwards=backwards)
    for row in range(2):
        alone = [solved(X[row : row + 1], RATE[row : row + 1], solver, each=each, backwards=backwards)[0]
                 for each in (True, False)]  # fmt: skip
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)
        np.testing.assert_allclose(together[row], alone[1], rtol=1e-3, atol=1e-4)  # by diffrax, to the tolerance


def test_a_sample_is_the_same_bit_for_bit_whatever_its_neighbours_are():
    first = solved(X, RATE, "dopri5", each=True)
    other = solved(X.at[1].set(jnp.array([5.0, -3.0])), RATE.at[1].set(0.01), "dopri5", each=True)
    np.testing.assert_array_equal(first[jnp.array([0, 2])], other[jnp.array([0, 2])])
    shared = [solved(X, RATE.at[1].set(rate), "dopri5", each=False, rtol=1e-2)[2] for rate in (30.0, 0.01)]
    assert np.abs(shared[0] - shared[1]).max() > 1e-5  # with shared steps it would depend on them


def test_a_sample_that_is_not_finite_ends_at_once_and_leaves_the_others_alone():
    calls = []

    def counted(t, x, rate):
        jax.debug.callback(lambda: calls.append(1))
        return rotating(t, x, rate)

    run = jax.jit(
        lambda rate: integrate(counted, X, GRID, solver="dopri5", rtol=1e-3, args=rate, samples=SampleNorms())
    )
    found = run(RATE.at[1].set(jnp.nan))
    jax.effects_barrier()
    assert jnp.isnan(found[1]).all()
    assert len(calls) < 500
    np.testing.assert_array_equal(found[0], run(RATE)[0])


def test_a_sample_that_grows_without_bound_is_given_up():
    def growing(t, x, args):
        return jnp.where(x > 50, x**2, x)

    found = integrate(growing, jnp.array([[1.0], [60.0]]), GRID, solver="dopri5", samples=SampleNorms())
    np.testing.assert_allclose(found[0], np.e, rtol=1e-2)
    assert jnp.isnan(found[1]).all()


def test_the_density_of_a_sample_does_not_depend_on_its_neighbours():
    """The velocity is rate x, so its divergence is the rate for each value."""

    def velocity(t, x, rate):
        return rate[:, None] * x * (1 + 0 * jnp.reshape(t, (-1, 1)))

    found = [
        log_likelihood(
            velocity, X, jnp.ones_like(X), GRID[::-1], solver="dopri5", args=rates, samples=SampleNorms()
        ).log_density
        for rates in (jnp.array([0.5, 9.0, 1.0]), jnp.array([0.5, 0.1, 1.0]))
    ]
    assert found[0][0] == found[1][0]
    latent = np.asarray(X[0]) * np.exp(-0.5)
    expected = -0.5 * np.sum(latent**2 + np.log(2 * np.pi)) - 2 * 0.5
    assert float(found[0][0]) == pytest.approx(expected, rel=1e-3)


def test_times_that_samples_do_not_share_are_refused():
    with pytest.raises(ValueError, match="must stop at the end of the grid"):
        integrate(rotating, X, GRID, solver="dopri5", args=RATE, samples=SampleNorms(), save_at="grid")
