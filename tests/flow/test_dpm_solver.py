"""DPM-Solver++(2M) agrees with diffusers, has its order on every path, and ends at predicted data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import dpm_solver, paths
from tests.flow import gaussian

START = np.linspace(-1.5, 2, 8, dtype=np.float32)


def wavy(t, x, args):
    """The velocity on the linear path of a network that predicts sin(3 x) + t."""
    return (jnp.sin(3 * x) + t - x) / (1 - t)


@pytest.mark.torch
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_its_steps_are_those_of_diffusers(steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    grid = 1 - scheduler.sigmas.numpy()
    x = torch.from_numpy(START)
    for index, step in enumerate(scheduler.timesteps):
        velocity = wavy(float(grid[index]), jnp.asarray(x.numpy()), None)
        x = scheduler.step(torch.from_numpy(-np.asarray(velocity)), step, x).prev_sample
    found = dpm_solver.integrate(wavy, START, grid, path=paths.path("linear"))
    np.testing.assert_allclose(found, x.numpy(), atol=2e-5)


@functools.partial(jax.jit, static_argnames="name")
def drawn(name, grid):
    path = paths.path(name)
    return dpm_solver.integrate(gaussian.velocity(path), START, grid, path=path)


@pytest.mark.parametrize("name", ["linear", "gvp", "vp"])
def test_its_order_is_at_least_2_on_every_path_and_a_repeated_end_changes_nothing(name):
    """From noise of the first time to t = 0.9; the flow of a Gaussian keeps how many deviations a point is off."""

    def marginal(t):
        c = paths.path(name).coefficients(t)
        return c.alpha * gaussian.MEAN, jnp.sqrt((c.alpha * gaussian.DEVIATION) ** 2 + c.sigma**2)

    (before, wide), (after, narrow) = marginal(0.0), marginal(0.9)
    exact = after + (START - before) / wide * narrow
    errors = []
    for steps in (48, 96):
        grid = jnp.pad(jnp.linspace(0, 0.9, steps + 1), (0, 96 - steps), mode="edge")
        errors.append(np.abs(drawn(name, grid) - exact).max())
    assert np.log2(errors[0] / errors[1]) > 1.9, errors


@pytest.mark.parametrize("end", [1.0, 0.999])
def test_the_last_step_ends_at_what_the_network_predicts_before_it_though_the_end_is_repeated(end):
    seen = []

    def velocity(t, x, args):
        jax.debug.callback(lambda t, x: seen.append((float(t), np.array(x))), t, x, ordered=True)
        return wavy(jnp.minimum(t, 0.9995), x, args)

    grid = jnp.pad(jnp.linspace(0, end, 8), (0, 2), mode="edge")
    found = dpm_solver.integrate(velocity, START, grid, path=paths.path("linear"))
    jax.effects_barrier()
    t, x = seen[6]
    data = np.sin(3 * x) + t
    left = (1 - end) / (1 - t)
    assert (len(seen), round(t, 3)) == (9, round(6 * end / 7, 3))
    np.testing.assert_allclose(found, left * x + (1 - left) * data, atol=1e-5)
