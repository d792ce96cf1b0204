"""Solvers: measured order, tolerance, exactness where it is exact, both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths
from lumina_jax.flow.adams import _bashforth, _moulton
from lumina_jax.flow.ode import integrate
from lumina_jax.flow.solvers import solver_named
from lumina_jax.flow.timesteps import sampling_grid

LONGEST = 64
START = np.linspace(-0.9, 0.3, 8)


def steep(t, x, args):
    """Nonlinear in both t and x, with the solutions x = tan(sin 2t + c)."""
    return 2 * jnp.cos(2 * t) * (1 + x**2)


def smooth(t, x, scale):
    """With the solution x = 1 / (1 + t^2) from x(0) = 1, when the scale is 1."""
    return -2 * t * x**2 * scale


@functools.partial(jax.jit, static_argnames="solver")
def solve_steep(x, grid, solver):
    return integrate(steep, x, grid, solver=solver)


@functools.partial(jax.jit, static_argnames="solver")
def solve_smooth(x, grid, solver, rtol, scale=1.0):
    return integrate(smooth, x, grid, solver=solver, rtol=rtol, args=scale)


def error(solver, steps, start=0.0, end=1.0):
    """The error over a family of solutions, since at a single point errors may cancel. Repeating the end of the grid
    lets all numbers of steps share one program."""
    grid = jnp.pad(jnp.linspace(start, end, steps + 1), (0, LONGEST - steps), mode="edge")
    found = solve_steep(jnp.asarray(np.tan(np.sin(2 * start) + START), jnp.float32), grid, solver)
    return np.sqrt(np.mean((found - np.tan(np.sin(2 * end) + START)) ** 2))


@pytest.mark.parametrize(
    ("solver", "steps", "start", "end"),
    [
        ("euler", 32, 0.0, 1.0),
        ("midpoint", 16, 0.0, 1.0),
        ("midpoint", 32, 1.0, 0.0),
        ("heun", 32, 0.0, 1.0),
        ("heun3", 16, 0.0, 1.0),
        ("heun3", 24, 1.0, 0.0),
        ("rk4", 12, 1.0, 0.0),
    ],
)
def test_the_error_shrinks_by_the_declared_order_in_both_directions(solver, steps, start, end):
    measured = np.log2(error(solver, steps, start, end) / error(solver, 2 * steps, start, end))
    assert measured == pytest.approx(solver_named(solver).order, abs=0.2)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_data_taken_to_noise_and_back_is_the_data(solver):
    data = jnp.linspace(-0.3, 1.0, 8)
    there, back = jnp.linspace(1.0, 0.0, LONGEST + 1), jnp.linspace(0.0, 1.0, LONGEST + 1)
    noise = solve_steep(data, there, solver)
    assert float(jnp.min(jnp.abs(noise - data))) > 0.1
    np.testing.assert_allclose(solve_steep(noise, back, solver), data, atol=1e-3)


def test_adams_weights_are_the_textbook_ones():
    np.testing.assert_allclose(_bashforth()[3, :4], [23 / 12, -16 / 12, 5 / 12, 0], rtol=1e-6)
    np.testing.assert_allclose(_moulton()[3, :5], [9 / 24, 19 / 24, -5 / 24, 1 / 24, 0], rtol=1e-6)


@pytest.mark.parametrize("solver", ["explicit_adams", "implicit_adams"])
def test_adams_solvers_are_exact_for_slopes_that_are_quadratic_in_time(solver):
    found = integrate(
        lambda t, x, args: 3 * t**2 - 2 * t + 0 * x, jnp.ones(2), jnp.linspace(0, 2, 9), solver=solver, save_at="grid"
    )
    t = np.linspace(0, 2, 9)
    np.testing.assert_allclose(found[:, 0], 1 + t**3 - t**2, rtol=1e-5, atol=1e-5)


def test_the_corrected_adams_solver_beats_fourth_order():
    assert error("implicit_adams", 16) / error("implicit_adams", 32) > 2**4.5


@pytest.mark.parametrize("solver", ["bosh3", "dopri5", "tsit5", "dopri8"])
def test_adaptive_solvers_meet_their_tolerance(solver):
    for rtol in (1e-3, 1e-5):
        found = solve_smooth(jnp.ones(3), jnp.array([0.0, 2.0]), solver, rtol)
        np.testing.assert_allclose(found, 0.2, atol=4 * rtol)


def test_an_adaptive_solver_reports_the_solution_at_all_times_of_the_grid():
    grid = jnp.linspace(2.0, 0.0, 7)
    found = integrate(smooth, jnp.full(2, 0.2), grid, solver="dopri5", rtol=1e-5, args=1.0, save_at="grid")
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.asarray(grid) ** 2), rtol=1e-4)


def test_euler_is_exact_on_the_linear_path_with_the_velocity_of_a_pair():
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    velocity = paths.interpolate(paths.path("linear"), x0, x1, 0.5).velocity
    grid = sampling_grid(7, shift=4.0)
    states = integrate(lambda t, x, v: v, x0, grid, solver="euler", args=velocity, save_at="grid")
    np.testing.assert_allclose(states[-1], x1, atol=2e-6)
    np.testing.assert_allclose(states[0], x0)
    assert states.shape == (8, 4, 8, 3)


def test_the_vp_path_samples_with_its_default_interval():
    path = paths.path("vp")

    def field(t, x, args):
        output = jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)
        rows = [
            paths.velocity_from(prediction, path, output[row], x[row], t)
            for row, prediction in enumerate(("velocity", "score", "noise"))
        ]
        return jnp.stack(rows)

    for prediction in ("velocity", "score", "noise"):
        grid = sampling_grid(10, interval=paths.interval(path, prediction))
        assert float(grid[-1]) == pytest.approx(0.999)
    assert jnp.isfinite(integrate(field, jnp.ones((3, 4)), grid, solver="euler")).all()


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_sampling_has_no_callback_to_the_host(solver):
    program = jax.make_jaxpr(lambda x, grid: integrate(steep, x, grid, solver=solver))(jnp.ones(3), sampling_grid(6))
    assert "callback" not in str(program)


def test_new_weights_and_a_new_shift_do_not_compile_again():
    traces = []

    def field(t, x, weight):
        traces.append(t)
        return weight * x

    sampler = jax.jit(
        lambda x, weight, shift: integrate(field, x, sampling_grid(5, shift=shift), solver="midpoint", args=weight)
    )
    sampler(jnp.ones(3), 0.5, 1.0)
    count = len(traces)
    assert float(sampler(jnp.ones(3), -0.5, 4.0)[0]) == pytest.approx(np.exp(-0.5), rel=1e-2)
    assert len(traces) == count


def test_a_drift_that_is_not_finite_gives_nan_and_not_a_wrong_picture():
    assert jnp.isnan(solve_smooth(jnp.ones(3), jnp.array([0.0, 2.0]), "dopri5", 1e-3, jnp.nan)).all()


def test_unknown_solvers_and_empty_grids_are_refused():
    with pytest.raises(ValueError, match="midpoint"):
        integrate(steep, jnp.ones(2), sampling_grid(3), solver="rk5")
    with pytest.raises(ValueError, match="no interval"):
        integrate(steep, jnp.ones(2), jnp.zeros(1), solver="euler")
