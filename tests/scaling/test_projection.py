"""Non-negative least squares on grids, against scipy."""

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from lumina_jax.scaling.projection import Cone


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    columns = random.normal(size=(40, 9, 3))
    columns[:, :, 1] += columns[:, :, 0]
    return columns, random.normal(size=(9, 5)) + columns[0] @ np.array([[0.5], [1.0], [0.2]])


def test_residuals_and_coefficients_are_those_of_scipy(problem):
    columns, y = problem
    cone = Cone.of(columns)
    expected = np.array([[nnls(design, one)[1] ** 2 for one in y.T] for design in columns])
    np.testing.assert_allclose(cone.residuals(y), expected, rtol=1e-10, atol=1e-12)
    expected = np.array([nnls(design, y[:, 0])[0] for design in columns])
    assert np.any(expected == 0)
    assert np.any(np.all(expected > 0, 1))
    np.testing.assert_allclose(cone.coefficients(y[:, 0]), expected, atol=1e-10)


def test_a_fixed_coefficient_leaves_the_others_free(problem):
    columns, y = problem
    found = Cone.of(columns).residuals(y - 0.7 * columns[3, :, :1], fixed=0)[3]
    expected = [nnls(columns[3, :, 1:], one)[1] ** 2 for one in (y - 0.7 * columns[3, :, :1]).T]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("function", [[1.0, 0.0, 0.0], [0.3, 1.0, -0.5]])
def test_extremes_are_those_of_a_general_optimiser(problem, function):
    columns, y = problem
    function, y = np.array(function), y[:, 1]
    threshold = 1.1 * np.median(Cone.of(columns).residuals(y[:, None]))
    points, values = Cone.of(columns).extremes(y, threshold, np.tile(function, (len(columns), 1)))
    seen = 0
    for index, design in enumerate(columns):
        start, norm = nnls(design, y)
        if norm**2 > threshold:
            assert np.all(np.isnan(values[:, index]))
            continue
        seen += 1
        rule = {"type": "ineq", "fun": lambda v, design=design: threshold - np.sum((y - design @ v) ** 2)}
        for end, sign in enumerate((1, -1)):
            best = minimize(
                lambda v, sign=sign: sign * v @ function, start, bounds=[(0, None)] * 3, constraints=rule,
                options={"ftol": 1e-12, "maxiter": 500},
            )  # fmt: skip
            assert values[end, index] == pytest.approx(best.x @ function, abs=1e-5)
            assert points[end, index] @ function == pytest.approx(values[end, index], abs=1e-12)
    assert 5 < seen < len(columns)  # where the threshold is reached


def test_dependent_columns_are_not_free_together():
    columns = np.ones((1, 4, 2))
    np.testing.assert_allclose(Cone.of(columns).residuals(np.full((4, 1), 2.0)), 0, atol=1e-12)
    np.testing.assert_allclose(Cone.of(columns).coefficients(np.full(4, 2.0)).sum(), 2)
