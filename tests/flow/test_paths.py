"""Paths and conversions against automatic differentiation and against pairs whose noise and data are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths

NAMES = ["linear", "gvp", "vp", "ddpm"]
TIMES = jnp.array([0.003, 0.1, 0.25, 0.5, 0.77, 0.93])
BETWEEN = TIMES + 0.0004
"""Not those of steps of DDPM, where the slope changes."""


def pair(seed=0, rows=6):
    x0, x1 = jax.random.normal(jax.random.key(seed), (2, rows, 5, 3))
    return x0, x1


@pytest.mark.parametrize("name", NAMES)
def test_the_derivatives_of_the_coefficients_are_those_of_automatic_differentiation(name):
    path = paths.path(name)
    times = BETWEEN if name == "ddpm" else TIMES
    tangent = jnp.ones_like(TIMES)
    (alpha, sigma), (d_alpha, d_sigma) = jax.jvp(lambda t: path.coefficients(t)[:2], (times,), (tangent,))
    found = path.coefficients(times)
    # Automatic differentiation takes differences of the rounded table of DDPM.
    np.testing.assert_allclose(found.d_alpha, d_alpha, rtol=2e-4 if name == "ddpm" else 2e-5)
    np.testing.assert_allclose(found.d_sigma, d_sigma, rtol=5e-4)
    np.testing.assert_allclose([found.alpha, found.sigma], [alpha, sigma])


@pytest.mark.parametrize("name", NAMES)
def test_a_path_starts_at_noise_and_ends_at_data(name):
    start, end = (paths.path(name).coefficients(t) for t in (0.0, 1.0))
    assert float(start.alpha) == pytest.approx(0, abs=7e-3)
    assert float(start.sigma) == pytest.approx(1, abs=1e-4)
    assert float(end.alpha) == pytest.approx(1)
    assert float(end.sigma) == pytest.approx(0, abs=1e-6)


def test_the_vp_path_has_the_published_noise_schedule():
    # beta runs from 20 at noise to 0.1 at data; -2 log alpha is its integral from t to 1.
    t = np.linspace(0, 1, 2001)
    beta = 0.1 + (1 - t) * 19.9
    integral = np.trapezoid(beta[1000:], t[1000:])
    found = paths.path("vp").coefficients(0.5)
    assert float(found.alpha) == pytest.approx(np.exp(-integral / 2), rel=1e-5)
    assert float(found.alpha**2 + found.sigma**2) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_is_the_derivative_of_the_interpolation(name):
    path, (x0, x1) = paths.path(name), pair()
    times = BETWEEN if name == "ddpm" else TIMES
    _, derivative = jax.jvp(lambda t: paths.interpolate(path, x0, x1, t).x, (times,), (jnp.ones_like(TIMES),))
    np.testing.assert_allclose(paths.interpolate(path, x0, x1, times).velocity, derivative, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_of_a_pair_gives_back_its_noise_and_its_score(name):
    path, (x0, x1) = paths.path(name), pair(1)
    x, velocity = paths.interpolate(path, x0, x1, TIMES)
    sigma = paths.over(path.coefficients(TIMES).sigma, x)
    np.testing.assert_allclose(paths.noise_from_velocity(path, velocity, x, TIMES), x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(paths.score_from_velocity(path, velocity, x, TIMES), -x0 / sigma, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_of_a_pair_gives_back_its_data_and_the_way_between(name):
    path, (x0, x1) = paths.path(name), pair(1)
    x, velocity = paths.interpolate(path, x0, x1, TIMES)
    np.testing.assert_allclose(paths.data_from_velocity(path, velocity, x, TIMES), x1, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(paths.straight_velocity(path, velocity, x, TIMES), x1 - x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_time_of_a_ratio_of_data_to_noise_is_found_again(name):
    path = paths.path(name)
    c = path.coefficients(TIMES)
    np.testing.assert_allclose(path.time_of_share(c.alpha / (c.alpha + c.sigma)), TIMES, atol=2e-5)


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
@pytest.mark.parametrize("name", NAMES)
def test_conversions_to_velocity_undo_those_from_velocity(name, prediction):
    path, (velocity, x) = paths.path(name), pair(2)
    there = getattr(paths, f"{prediction}_from_velocity")
    back = paths.velocity_from(prediction, path, there(path, velocity, x, TIMES), x, TIMES)
    np.testing.assert_allclose(back, velocity, rtol=1e-3, atol=1e-3)


def test_a_velocity_model_needs_no_conversion():
    velocity, x = pair()
    assert paths.velocity_from("velocity", paths.path("vp"), velocity, x, TIMES) is velocity


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_finite_in_mathematics_is_finite_at_the_ends(name):
    path, (velocity, x) = paths.path(name), pair()
    assert jnp.isfinite(paths.score_from_velocity(path, velocity, x, 0.0)).all()
    assert jnp.isfinite(jnp.stack(path.coefficients(0.0))).all()
    assert jnp.isfinite(jnp.stack(path.coefficients(1.0)[:3])).all()
    if name not in ("vp", "ddpm"):
        assert jnp.isfinite(paths.noise_from_velocity(path, velocity, x, jnp.array(1.0))).all()
        assert jnp.isfinite(paths.noise_from_velocity(path, velocity, x, jnp.array(0.0))).all()
    for form in ("constant", "sigma", "linear", "decreasing", "increasing-decreasing"):
        assert jnp.isfinite(paths.diffusion(path, form, jnp.array([0.0, 1.0]))).all()
    assert jnp.isfinite(paths.diffusion(path, "sbdm", jnp.array([1e-5, 1.0]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_sbdm_diffusion_is_the_weight_of_the_score_in_the_velocity(name):
    path, (score, x) = paths.path(name), pair()
    c = path.coefficients(TIMES)
    weight = paths.diffusion(path, "sbdm", TIMES, norm=2.0) / 2
    np.testing.assert_allclose(weight, c.d_alpha / c.alpha * c.sigma**2 - c.sigma * c.d_sigma, rtol=1e-3)
    drift = paths.over(c.d_alpha / c.alpha, x) * x + paths.over(weight, x) * score
    np.testing.assert_allclose(paths.velocity_from_score(path, score, x, TIMES), drift, rtol=1e-4, atol=1e-3)


def test_times_of_tokens_and_of_samples_broadcast_from_the_left():
    x = jnp.ones((2, 4, 3))
    assert paths.over(jnp.ones(2), x).shape == (2, 1, 1)
    assert paths.over(jnp.ones((2, 4)), x).shape == (2, 4, 1)
    assert paths.over(0.5, x).shape == ()
    with pytest.raises(ValueError, match="more axes"):
        paths.over(jnp.ones((2, 4, 3, 1)), x)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("linear", "velocity", {"training": True}), (0.0, 1.0)),
        (("gvp", "velocity", {}), (0.0, 1.0)),
        (("ddpm", "noise", {"training": True}), (0.0, 1.0)),
        (("ddpm", "noise", {}), (0.0, 1 - 1e-3)),
        (("linear", "data", {"training": True}), (0.0, 1 - 1e-3)),
        (("linear", "data", {"sde": "sigma", "last_step_size": 0.04}), (0.0, 0.96)),
        (("linear", "noise", {"training": True}), (1e-3, 1 - 1e-3)),
        (("gvp", "score", {}), (1e-3, 1 - 1e-3)),
        (("vp", "velocity", {"training": True}), (0.0, 1 - 1e-5)),
        (("vp", "velocity", {}), (0.0, 1 - 1e-3)),
        (("vp", "noise", {"margin": 0.1}), (0.0, 0.9)),
        (("linear", "velocity", {"sde": "sigma", "last_step_size": 0.04}), (0.0, 0.96)),
        (("linear", "velocity", {"sde": "sbdm", "last_step_size": 0.04, "steps": 24}), (0.04, 0.96)),
        (("linear", "noise", {"sde": "sbdm", "margin": 1e-3, "steps": 24}), (1e-3, 1 - 1e-3)),
        (("vp", "score", {"sde": "sigma", "last_step_size": 0.04}), (0.0, 0.96)),
    ],
)
def test_intervals_leave_out_the_ends_that_are_infinite(arguments, expected):
    name, prediction, options = arguments
    assert paths.interval(paths.path(name), prediction, **options) == pytest.approx(expected)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="linear"):
        paths.path("cubic")
    with pytest.raises(ValueError, match="sbdm"):
        paths.diffusion(paths.path("linear"), "SBDM", jnp.array(0.5))
