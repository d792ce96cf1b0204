"""The intervals of a fit hold the planted law as often as they say."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import f as fisher
from scipy.stats import t as student

from lumina_jax.scaling.confidence import calibrated, confidence
from lumina_jax.scaling.law import fit_law
from tests.scaling.planted import CHINCHILLA, full_grid, isoflop_grid, planted_cells, random_law

NAMES = "EAaBb"


def hits(law, cells, draws=100, noise="auto"):
    """Which parameters of a planted law are inside their intervals, and whether a prediction is."""
    regions = confidence(fit_law(cells, noise), draws, seed=0)
    intervals = regions.joint.intervals()
    inside = [intervals[name][0] <= getattr(law, name) <= intervals[name][1] for name in NAMES]
    far = 10 * cells.parameters.max(), 10 * cells.samples.max()
    low, high = regions.single.loss(*far)
    return [*inside, low <= law.loss(*far) <= high]


def test_all_parameters_are_inside_together_in_18_of_20_draws():
    random, grid, found = np.random.default_rng(0), isoflop_grid(), []
    for _ in range(20):
        law = random_law(random, grid)
        found.append(hits(law, planted_cells(law, grid, random, 0.01), noise="relative"))
    found = np.array(found)
    assert np.all(found[:, :5], axis=1).sum() >= 18
    assert found[:, 5].sum() >= 17


def test_an_interval_is_the_range_of_laws_that_fit_as_well():
    """The profile likelihood of a general optimiser crosses the threshold at the ends."""
    cells = planted_cells(CHINCHILLA, isoflop_grid(), np.random.default_rng(1), 0.005)
    fit = fit_law(cells, "relative")
    region = confidence(fit, 100, seed=0).joint
    centre = np.log(cells.parameters).mean(), np.log(cells.samples).mean()

    def rest(x):
        E, alpha, a, beta, b = x
        fitted = E + alpha * np.exp(-a * (np.log(cells.parameters) - centre[0]))
        fitted = fitted + beta * np.exp(-b * (np.log(cells.samples) - centre[1]))
        return np.sum((fit.target - fitted * fit.root) ** 2)

    law = fit.law
    start = np.array([law.E, law.A * np.exp(-law.a * centre[0]), law.a, law.B * np.exp(-law.b * centre[1]), law.b])
    for index, name in ((0, "E"), (2, "a"), (4, "b")):
        for value in region.intervals()[name]:
            fixed = {"type": "eq", "fun": lambda x, index=index, value=value: 100 * (x[index] - value)}
            begin = start.copy()
            begin[index] = value
            best = minimize(
                lambda x: rest(np.minimum(x, 1e3)) / region.threshold,
                begin,
                constraints=fixed,
                bounds=[(0, None)] * 5,
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 2000},
            )
            assert best.fun == pytest.approx(1, abs=0.06), name


def test_intervals_shrink_with_noise_and_with_runs():
    def width(noise, sizes):
        cells = planted_cells(CHINCHILLA, isoflop_grid(sizes), np.random.default_rng(2), noise)
        low, high = confidence(fit_law(cells), 100, 0).joint.intervals()["a"]
        return np.log(high / low)

    few = width(0.01, 5)
    assert width(0.001, 5) < few / 5
    assert width(0.01, 40) < few / 1.8


def test_a_floor_of_zero_is_inside_its_interval():
    random = np.random.default_rng(3)
    law = random_law(random, full_grid(), floor=0.0)
    cells = planted_cells(law, full_grid(), random, 0.01)
    assert confidence(fit_law(cells), 100, 0).joint.intervals()["E"][0] == 0


def test_draws_of_normal_noise_give_the_thresholds_of_normal_theory():
    """F of 5 and 59 degrees of freedom for all parameters, and more than Student's t for the worst of three."""
    cells = planted_cells(CHINCHILLA, full_grid(8, 8), np.random.default_rng(4), 0.01)
    fit = fit_law(cells, "relative")
    first, again, other = (calibrated(confidence(fit, 100, 0).joint.surface, 500, seed, 0.9) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert first[1] == pytest.approx(5 * fisher.ppf(0.9, 5, 59), rel=0.15)
    assert student.ppf(0.975, 59) ** 2 < first[0] < 0.8 * first[1]


SHAPES = {
    "5 sizes x 4 budgets x 2 seeds": (lambda: isoflop_grid(), 2),
    "5 sizes x 4 samples x 2 seeds": (lambda: full_grid(), 2),
    "4 sizes x 3 samples": (lambda: full_grid(4, 3), 1),
    "7 sizes x 6 budgets": (lambda: isoflop_grid(7, 6), 1),
    "30 thousand to 3 million parameters": (lambda: isoflop_grid(5, 4, 3e4, 3e6), 2),
    "10 thousand to 10 billion parameters": (lambda: full_grid(8, 8, 1e4, 1e10), 1),
    "15 sizes x 10 budgets, 10 thousand to 10 billion": (lambda: isoflop_grid(15, 10, 1e4, 1e10), 1),
    "20 sizes x 20 samples": (lambda: full_grid(20, 20), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("noise_model", ["relative", "absolute"])
@pytest.mark.parametrize("noise", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_stated_confidence_is_reached_on_grids_of_all_shapes(shape, noise, noise_model):
    grid, seeds = SHAPES[shape][0](), SHAPES[shape][1]
    random = np.random.default_rng([len(shape), int(noise * 1e4), len(noise_model)])
    laws = [random_law(random, grid) for _ in range(40)]
    found = [hits(law, planted_cells(law, grid, random, noise, seeds, noise_model)) for law in laws]
    print(shape, noise, noise_model, np.mean(found, axis=0).round(3), np.all(np.array(found)[:, :5], axis=1).mean())
    assert np.all(np.mean(found, axis=0)[:5] >= 0.9)
    assert np.mean(found, axis=0)[5] >= 0.85
