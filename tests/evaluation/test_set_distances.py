"""Distances of sets of features: closed forms, and implementations by scipy and scikit-learn on the same features."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from lumina_jax.evaluation import frechet, kernel_distance, neighbours
from lumina_jax.evaluation.frechet import covariance_factor, frechet_distance
from lumina_jax.evaluation.kernel_distance import kernel_distance_of_subsets
from lumina_jax.evaluation.neighbours import cover
from lumina_jax.evaluation.set_comparison import compare_sets


def two_sets(n, m, width, *, seed=0, shift=0.3):
    """Correlated features of two overlapping distributions, none of them normal."""
    draws = np.random.default_rng(seed)
    mixing = draws.normal(size=(width, width))
    x = np.abs(draws.normal(size=(n, width))) @ mixing
    y = np.abs(draws.normal(size=(m, width)) * 1.2 + shift) @ mixing
    return x.astype(np.float32), y.astype(np.float32)


def with_moments(n, mean, covariance, seed):
    """Samples whose mean and covariance are exactly these."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(axis=0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def covariance(width, seed):
    a = np.random.default_rng(seed).normal(size=(width, width))
    return a @ a.T + 0.1 * np.eye(width)


def frechet_by_sqrtm(x, y):
    a, b = np.cov(x.astype(np.float64).T), np.cov(y.astype(np.float64).T)
    difference = x.astype(np.float64).mean(0) - y.astype(np.float64).mean(0)
    return difference @ difference + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))


def kid_by_sklearn(x, y):
    """The estimate of torch-fidelity, from the kernels of scikit-learn."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    settings = {"degree": 3, "gamma": None, "coef0": 1}
    xx, yy, xy = (polynomial_kernel(a, b, **settings) for a, b in ((x, x), (y, y), (x, y)))
    off = [1 - np.eye(len(x)), 1 - np.eye(len(y))]
    return (xx * off[0]).sum() / off[0].sum() + (yy * off[1]).sum() / off[1].sum() - 2 * xy.mean()


def cover_by_sklearn(real, drawn, k, density_k):
    def radii(x, k):
        return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, -1]

    def inside(centers, radius, points):
        """[points centers]"""
        distances, index = NearestNeighbors(n_neighbors=len(centers)).fit(centers).kneighbors(points)
        return distances <= radius[index]

    real, drawn = real.astype(np.float64), drawn.astype(np.float64)
    wide = radii(real, density_k)
    nearest_drawn = NearestNeighbors(n_neighbors=1).fit(drawn).kneighbors(real)[0][:, 0]
    return (
        inside(real, radii(real, k), drawn).any(1).mean(),
        inside(drawn, radii(drawn, k), real).any(1).mean(),
        inside(real, wide, drawn).sum(1).mean() / density_k,
        (nearest_drawn < wide).mean(),
    )


@pytest.mark.parametrize(("n", "m", "width"), [(300, 200, 12), (90, 400, 40)])
def test_the_frechet_distance_equals_that_by_the_square_root_of_scipy(monkeypatch, n, m, width):
    monkeypatch.setattr(frechet, "BLOCK", 64)
    x, y = two_sets(n, m, width)
    np.testing.assert_allclose(frechet_distance(x, y), frechet_by_sqrtm(x, y), rtol=1e-6)


def test_the_frechet_distance_of_normal_distributions_has_its_closed_form():
    width = 6
    shift, diagonal, wide = np.arange(width) / 3, np.diag(np.linspace(0.5, 2, width)), np.diag(np.linspace(3, 1, width))
    x, y = with_moments(50, np.zeros(width), diagonal, 0), with_moments(31, shift, wide, 1)
    expected = shift @ shift + ((np.sqrt(np.diag(diagonal)) - np.sqrt(np.diag(wide))) ** 2).sum()
    np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-9)
    general = covariance(width, 3)
    scaled = with_moments(40, shift, 4 * general, 4)  # the root of S (4 S) is 2 S
    expected = shift @ shift + np.trace(general)
    np.testing.assert_allclose(frechet_distance(with_moments(40, 0 * shift, general, 2), scaled), expected, rtol=1e-9)


def test_fewer_samples_than_dimensions_give_the_distance_of_their_singular_covariances():
    """In three dimensions of many, the distance is that of the three alone."""
    x, y = two_sets(9, 7, 3)
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0][:3]
    np.testing.assert_allclose(frechet_distance(x @ turned, y @ turned), frechet_by_sqrtm(x, y), rtol=1e-4)
    factor = covariance_factor(x @ turned)
    np.testing.assert_allclose(factor.T @ factor, np.cov((x @ turned).T), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 8), (12, 50)])
def test_identical_sets_have_distances_of_zero_and_cover_each_other(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 5 + 3
    found = compare_sets(x, np.random.default_rng(1).permutation(x))
    assert found.frechet == pytest.approx(0, abs=1e-9)
    assert (found.kernel, found.kernel_standard_error) == (0, 0)
    assert found.cover == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize(("n", "m"), [(60, 60), (50, 83)])
def test_the_kernel_distance_equals_that_by_the_kernels_of_scikit_learn(monkeypatch, n, m):
    monkeypatch.setattr(kernel_distance, "BLOCK_NUMBERS", 500)
    x, y = two_sets(n, m, 10)
    np.testing.assert_allclose(kernel_distance.kernel_distance(x, y).value, kid_by_sklearn(x, y), rtol=1e-9)


def test_subsets_of_the_whole_sets_have_their_kernel_distance():
    x, y = two_sets(40, 40, 6)
    found = kernel_distance_of_subsets(x, y, subsets=3, size=40)
    np.testing.assert_allclose(found.mean, kid_by_sklearn(x, y), rtol=1e-9)
    assert found.deviation == pytest.approx(0, abs=1e-9 * found.mean)
    part = kernel_distance_of_subsets(x, y, subsets=200, size=20)
    assert abs(part.mean - found.mean) < 4 * part.deviation / np.sqrt(200)
    with pytest.raises(ValueError, match="size=41 must be at least 2 and at most the 40 samples"):
        kernel_distance_of_subsets(x, y, size=41)


def test_the_standard_error_of_the_kernel_distance_is_the_spread_over_independent_sets():
    estimates = [kernel_distance.kernel_distance(*two_sets(60, 90, 4, seed=0, shift=0.5))]
    draws = np.random.default_rng(7)
    for _ in range(200):
        x, y = draws.normal(size=(60, 4)), draws.normal(size=(90, 4)) * 1.3 + 0.5
        estimates.append(kernel_distance.kernel_distance(x, y))
    spread = np.std([estimate.value for estimate in estimates[1:]])
    assert np.mean([estimate.standard_error for estimate in estimates[1:]]) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(("n", "m", "k", "density_k"), [(120, 80, 3, 5), (50, 90, 1, 2)])
def test_precision_recall_density_and_coverage_equal_those_by_scikit_learn(monkeypatch, n, m, k, density_k):
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", 700)
    real, drawn = two_sets(n, m, 3, shift=0.8)
    found = cover(real, drawn, k=k, density_k=density_k)
    np.testing.assert_allclose(found, cover_by_sklearn(real, drawn, k, density_k), atol=1e-9)
    assert len({round(value, 6) for value in found}) == 4  # none is trivial
    assert all(0 < value < 1 for value in found[:2])


def test_repeated_samples_are_within_balls_without_a_radius():
    x = np.repeat(np.random.default_rng(0).normal(size=(3, 20)) + 100, 8, axis=0)
    assert cover(x, x[::2]) == (1, 1, pytest.approx(8 / 5), 1)
    assert cover(x, x + 1e-3) == (0, 0, 0, 0)


def test_precision_falls_with_bad_samples_and_recall_with_missing_ones():
    draws = np.random.default_rng(0)
    real = np.concatenate([draws.normal(size=(50, 2)), draws.normal(size=(50, 2)) + 50])
    one_mode = draws.normal(size=(60, 2))
    assert cover(real, one_mode).recall <= 0.5 <= 0.9 < cover(real, one_mode).precision
    assert cover(one_mode, real).precision <= 0.5 <= 0.9 < cover(one_mode, real).recall


def test_sets_too_small_for_neighbours_have_the_other_distances():
    x, y = two_sets(5, 8, 3)
    found = compare_sets(x, y)
    assert found.cover is None
    assert found.as_json()["precision"] is None
    assert found.as_json()["kernel_subsets"] is None
    assert found.frechet == pytest.approx(frechet_by_sqrtm(x, y), rel=1e-6)
    assert any("need more than 5 samples" in line for line in found.lines())
    assert compare_sets(x[:2], y).as_json()["kernel_standard_error"] is None


def test_features_that_cannot_be_compared_are_refused():
    x, y = two_sets(8, 8, 3)
    with pytest.raises(ValueError, match=r"those of the real set are \[1, 3\]"):
        compare_sets(x[:1], y)
    with pytest.raises(ValueError, match=r"the same width, but have 3 \(real\) and 2 \(drawn\)"):
        compare_sets(x, y[:, :2])
    y[3, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite, but those of the drawn set"):
        compare_sets(x, y)
    with pytest.raises(ValueError, match="fewer than the 4 real and 8 drawn"):
        cover(x[:4], x)
