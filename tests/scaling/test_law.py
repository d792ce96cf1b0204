"""The least squares fit of the law, against planted laws and a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from lumina_jax.scaling.law import LossLaw, fit_law
from tests.scaling.planted import CHINCHILLA, full_grid, isoflop_grid, planted_cells, random_law

NAMES = "EAaBb"


def values(law):
    return np.array([getattr(law, name) for name in NAMES])


@pytest.mark.parametrize("floor", [0.0, 30.0])
@pytest.mark.parametrize("grid", [full_grid, isoflop_grid])
def test_a_law_without_noise_is_recovered(grid, floor):
    random = np.random.default_rng(0)
    law = random_law(random, grid(), floor=floor)
    found = fit_law(planted_cells(law, grid(), random, 0.0)).law
    np.testing.assert_allclose(values(found), values(law), rtol=2e-3, atol=2e-4)


def test_the_fit_has_the_least_sum_of_squares_of_a_general_optimiser():
    random = np.random.default_rng(0)
    cells = planted_cells(CHINCHILLA, isoflop_grid(), random, 0.01)
    fit = fit_law(cells, "absolute")

    def residuals(x):
        law = LossLaw(np.exp(x[0]), np.exp(x[1]), x[2], np.exp(x[3]), x[4])
        return (law.loss(cells.parameters, cells.samples) - cells.values) * fit.root

    start = np.array([np.log(1.5), np.log(500), 0.3, np.log(500), 0.3])
    other = least_squares(residuals, start, x_scale=np.abs(start), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=5000)
    own = np.sum((fit.target - fit.fitted * fit.root) ** 2)
    assert own <= 2 * other.cost * (1 + 1e-6)
    assert fit.scale == pytest.approx(np.sqrt(own / 15))


def test_relative_noise_does_not_bias_the_law():
    """Weights of observed losses would: losses that are low by chance would weigh more."""
    random = np.random.default_rng(0)
    grid = full_grid(20, 20)
    cells = planted_cells(CHINCHILLA, grid, random, 0.03, seeds=1)
    fit = fit_law(cells, "relative")
    assert abs(np.mean(cells.values / fit.fitted) - 1) < 0.2 * 0.03**2


@pytest.mark.parametrize("noise", ["relative", "absolute"])
def test_the_likelier_noise_is_found(noise):
    random = np.random.default_rng(5)
    law = LossLaw(0.01, 300.0, 0.5, 3000.0, 0.5)  # losses differ by a factor of 5
    fits = [fit_law(planted_cells(law, full_grid(8, 8), random, 0.02, noise_model=noise)) for _ in range(2)]
    assert [fit.noise for fit in fits] == [noise] * 2
    assert np.mean([fit.scale for fit in fits]) == pytest.approx(0.02, rel=0.25)


def test_seeds_of_a_cell_weigh_as_so_many_runs():
    random = np.random.default_rng(2)
    grid = full_grid()
    one = planted_cells(CHINCHILLA, grid, random, 0.01)
    other = planted_cells(CHINCHILLA, grid, random, 0.01)
    both = fit_law(type(one)(*(np.concatenate(pair) for pair in zip(vars(one).values(), vars(other).values()))))
    mean = type(one)(*grid, one.flops, (one.values + other.values) / 2, one.counts + other.counts, one.budgets)
    np.testing.assert_allclose(values(fit_law(mean, both.noise).law), values(both.law), rtol=1e-4)


def test_hubers_loss_ignores_a_run_that_diverged():
    random = np.random.default_rng(3)
    cells = planted_cells(CHINCHILLA, full_grid(), random, 0.002)
    clean = fit_law(cells, "relative")
    cells.values[7] *= 1.8
    plain, robust = fit_law(cells, "relative"), fit_law(cells, "relative", huber=0.002)
    distance = [np.max(np.abs(fit.fitted / clean.fitted - 1)) for fit in (plain, robust)]
    assert distance[1] < 0.003 < 0.05 < distance[0]
    assert robust.scale == pytest.approx(0.002, rel=0.6)


def test_a_large_huber_constant_is_least_squares():
    cells = planted_cells(CHINCHILLA, full_grid(), np.random.default_rng(4), 0.01)
    plain, other = fit_law(cells, "relative"), fit_law(cells, "relative", huber=10.0)
    np.testing.assert_allclose(values(other.law), values(plain.law), rtol=1e-5)
    assert other.scale == pytest.approx(plain.scale, rel=1e-6)
