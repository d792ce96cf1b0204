"""Stochastic samplers: the law of the samples, and what the released ones could not do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths, sde
from lumina_jax.flow.timesteps import sampling_grid
from tests.flow import gaussian

FORMS = ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]


def samples(name, solver, form, last_step="mean", steps=200, count=8000, size=0.01):
    path = paths.path(name)
    interval = paths.interval(path, "velocity", sde=form, last_step_size=size, steps=steps)
    noise_key, key = jax.random.split(jax.random.key(3))
    return sde.integrate(
        gaussian.velocity(path),
        jax.random.normal(noise_key, (count,)),
        sampling_grid(steps, interval=interval),
        path=path,
        solver=solver,
        form=form,
        last_step=last_step,
        last_step_size=size,
        key=key,
    )


@pytest.mark.parametrize(
    ("name", "solver", "form"),
    [*(("linear", "euler_maruyama", form) for form in FORMS), ("vp", "sde_heun", "sbdm"), ("gvp", "sde_heun", "sigma")],
)
def test_samples_of_a_gaussian_have_its_mean_and_deviation(name, solver, form):
    found = samples(name, solver, form, last_step="euler")
    assert float(found.mean()) == pytest.approx(gaussian.MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(gaussian.DEVIATION, rel=0.04)


@pytest.mark.parametrize("last_step", ["none", "mean", "tweedie", "euler"])
def test_every_last_step_ends_near_the_data(last_step):
    found = samples("gvp", "euler_maruyama", "sigma", last_step=last_step)
    assert float(found.mean()) == pytest.approx(gaussian.MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(gaussian.DEVIATION, rel=0.04)


def test_without_diffusion_the_sampler_is_euler_along_the_velocity():
    path, x = paths.path("linear"), jax.random.normal(jax.random.key(0), (5,))
    field, grid = gaussian.velocity(path), sampling_grid(6, interval=(0.0, 0.9))
    options = {"path": path, "form": "sigma", "norm": 0.0, "last_step": "none", "key": jax.random.key(1)}
    found = sde.integrate(field, x, grid, solver="euler_maruyama", **options)
    for start, end in itertools.pairwise(grid):
        x = x + (end - start) * field(start, x, None)
    np.testing.assert_allclose(found, x, rtol=1e-5)


def test_given_noise_replaces_the_key_and_is_scaled_by_the_diffusion():
    path, grid = paths.path("linear"), jnp.array([0.5, 0.75])
    noise = jnp.array([[2.0]])
    options = {"path": path, "solver": "euler_maruyama", "form": "constant", "norm": 0.3, "last_step": "none"}
    still, moved = (
        sde.integrate(gaussian.velocity(path), jnp.ones(1), grid, noise=draw, **options) for draw in (0 * noise, noise)
    )
    np.testing.assert_allclose(moved - still, 2 * np.sqrt(2 * 0.3 * 0.25), rtol=1e-5)


def test_the_trajectory_holds_every_step_and_the_last_step():
    path, grid = paths.path("linear"), sampling_grid(4, interval=(0.0, 0.9))
    options = {"path": path, "solver": "sde_heun", "form": "sigma", "key": jax.random.key(2)}
    states = sde.integrate(gaussian.velocity(path), jnp.ones(3), grid, save_at="grid", **options)
    assert states.shape == (5, 3)
    np.testing.assert_array_equal(states[-1], sde.integrate(gaussian.velocity(path), jnp.ones(3), grid, **options))


@pytest.mark.parametrize(
    ("solver", "form", "last_step"),
    [
        *(("euler_maruyama", "sbdm", last) for last in ("none", "mean", "tweedie", "euler")),
        ("euler_maruyama", "constant", "mean"),
        ("sde_heun", "sbdm", "none"),
        ("sde_heun", "sbdm", "mean"),
        ("sde_heun", "constant", "mean"),
        ("sde_heun", "sigma", "none"),
    ],
)
def test_what_the_released_samplers_fail_at_is_finite_and_tame(solver, form, last_step):
    path, steps = paths.path("linear"), 11

    def field(t, x, args):
        return jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)

    size = 0.0 if last_step == "none" else 0.04
    interval = paths.interval(path, "velocity", sde=form, last_step_size=size, steps=steps)
    noise = jax.random.normal(jax.random.key(0), (steps, 3, 8))
    found = sde.integrate(
        field,
        jax.random.normal(jax.random.key(1), (3, 8)),
        sampling_grid(steps, interval=interval),
        path=path,
        solver=solver,
        form=form,
        norm=0.8,
        last_step=last_step,
        last_step_size=size,
        noise=noise,
    )
    assert jnp.isfinite(found).all()
    # Heun's second slope reaches the last time, where the score of an arbitrary field is large if no last step is kept.
    assert form == "constant" or float(jnp.max(jnp.abs(found))) < 10 or (solver, last_step) == ("sde_heun", "none")


def test_wrong_arguments_are_refused():
    path, grid = paths.path("linear"), sampling_grid(4, interval=(0.0, 0.9))
    options = {"path": path, "form": "sigma"}
    field, x, key = gaussian.velocity(path), jnp.ones(3), jax.random.key(0)
    with pytest.raises(ValueError, match="either key"):
        sde.integrate(field, x, grid, solver="euler_maruyama", **options)
    with pytest.raises(ValueError, match="give one array for each step"):
        sde.integrate(field, x, grid, solver="euler_maruyama", noise=jnp.ones((3, 3)), **options)
    with pytest.raises(ValueError, match="sde_heun"):
        sde.integrate(field, x, grid, solver="heun", key=key, **options)
    with pytest.raises(ValueError, match="tweedie"):
        sde.integrate(field, x, grid, solver="euler_maruyama", last_step="Mean", key=key, **options)
