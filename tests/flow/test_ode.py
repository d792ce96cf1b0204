"""Solvers: measured order, tolerance, exactness where it is exact, both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths
from lumina_jax.flow.adams import _bashforth, _moulton
from lumina_jax.flow.ode import integrate
from lumina_jax.flow.solvers import SOLVERS, solver_named
from lumina_jax.flow.timesteps import sampling_grid

LONGEST = 64


def drift(t, x, args):
    """Nonlinear, with the solution x = 1 / (1 + t^2) from x(0) = 1."""
    return -2 * t * x**2


def solution(t):
    return 1 / (1 + t**2)


@functools.partial(jax.jit, static_argnames=("solver", "rtol"))
def solve(x, grid, solver, rtol=1e-3):
    return integrate(drift, x, grid, solver=solver, rtol=rtol)


def even_grid(steps, start=0.0, end=2.0):
    """A grid of `steps` intervals whose end is repeated up to one length, so that a solver is compiled once."""
    return jnp.pad(jnp.linspace(start, end, steps + 1), (0, LONGEST - steps), mode="edge")


def error(solver, steps, start=0.0, end=2.0):
    found = solve(jnp.full((3,), solution(start)), even_grid(steps, start, end), solver)
    return float(jnp.max(jnp.abs(found - solution(end))))


@pytest.mark.parametrize(
    ("solver", "steps"), [("euler", 32), ("midpoint", 16), ("heun", 32), ("heun2", 32), ("heun3", 12), ("rk4", 10)]
)
def test_the_error_shrinks_by_the_declared_order(solver, steps):
    measured = np.log2(error(solver, steps) / error(solver, 2 * steps))
    assert measured == pytest.approx(solver_named(solver).order, abs=0.4)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_the_order_holds_from_data_to_noise(solver):
    steps = 10 if solver == "rk4" else 16
    measured = np.log2(error(solver, steps, 2.0, 0.0) / error(solver, 2 * steps, 2.0, 0.0))
    assert measured == pytest.approx(solver_named(solver).order, abs=0.6)


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


@pytest.mark.parametrize("solver", ["explicit_adams", "implicit_adams"])
def test_adams_solvers_beat_third_order(solver):
    assert error(solver, 16) / error(solver, 32) > 2**3


@pytest.mark.parametrize("solver", sorted(name for name, solver in SOLVERS.items() if solver.adaptive))
def test_adaptive_solvers_meet_their_tolerance(solver):
    ends = jnp.array([0.0, 2.0])
    for rtol in (1e-3, 1e-5):
        found = solve(jnp.ones(3), ends, solver, rtol)
        np.testing.assert_allclose(found, solution(2.0), rtol=5 * rtol)


def test_an_adaptive_solver_reports_the_solution_at_all_times_of_the_grid():
    grid = jnp.linspace(2.0, 0.0, 7)
    found = integrate(drift, jnp.full(2, solution(2.0)), grid, solver="dopri5", rtol=1e-5, save_at="grid")
    np.testing.assert_allclose(found[:, 1], solution(np.asarray(grid)), rtol=1e-4)


def test_an_overshooting_solver_gives_the_state_at_the_end_and_not_beyond():
    solver = solver_named("dopri5")._replace(overshoots=True)
    for start, end in ((0.0, 2.0), (2.0, 0.0)):
        found = integrate(drift, jnp.full(2, solution(start)), jnp.array([start, end]), solver=solver, rtol=1e-4)
        np.testing.assert_allclose(found, solution(end), rtol=2e-3)


def test_euler_is_exact_on_the_linear_path_with_the_velocity_of_a_pair():
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    velocity = paths.interpolate(paths.path("linear"), x0, x1, 0.5).velocity
    states = integrate(
        lambda t, x, v: v, x0, sampling_grid(7, shift=4.0), solver="euler", args=velocity, save_at="grid"
    )
    np.testing.assert_allclose(states[-1], x1, atol=2e-6)
    np.testing.assert_allclose(states[0], x0)
    assert states.shape == (8, 4, 8, 3)


@pytest.mark.parametrize(("solver", "steps", "allowed"), [("euler", 50, 0.05), ("midpoint", 50, 1e-3)])
def test_data_taken_to_noise_and_back_is_the_data(solver, steps, allowed):
    def field(t, x, args):
        return jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)

    data = jax.random.normal(jax.random.key(1), (3, 2, 4, 4))
    grid = sampling_grid(steps)
    noise = integrate(field, data, grid[::-1], solver=solver)
    assert float(jnp.max(jnp.abs(noise - data))) > 0.1
    np.testing.assert_allclose(integrate(field, noise, grid, solver=solver), data, atol=allowed)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
def test_the_vp_path_samples_with_its_default_interval(prediction):
    path = paths.path("vp")

    def field(t, x, args):
        output = jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)
        return paths.velocity_from(prediction, path, output, x, t)

    grid = sampling_grid(10, interval=paths.interval(path, prediction))
    assert jnp.isfinite(integrate(field, jnp.ones((2, 3)), grid, solver="euler")).all()


def test_the_state_may_be_a_tree():
    found = integrate(
        lambda t, state, args: {"x": -state["x"], "y": state["x"].sum()[None]},
        {"x": jnp.ones((2, 2)), "y": jnp.zeros(1)},
        jnp.array([0.0, 1.0]),
        solver="dopri5",
        rtol=1e-5,
    )
    np.testing.assert_allclose(found["x"], np.exp(-1), rtol=1e-4)
    np.testing.assert_allclose(found["y"], 4 * (1 - np.exp(-1)), rtol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "rk4", "implicit_adams", "dopri5"])
def test_sampling_has_no_callback_to_the_host(solver):
    program = jax.make_jaxpr(lambda x, grid: integrate(drift, x, grid, solver=solver))(jnp.ones(3), sampling_grid(6))
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
    found = integrate(lambda t, x, args: x / (t - t), jnp.ones(2), jnp.array([0.0, 1.0]), solver="dopri5")
    assert jnp.isnan(found).all()


def test_unknown_solvers_and_empty_grids_are_refused():
    with pytest.raises(ValueError, match="midpoint"):
        integrate(drift, jnp.ones(2), sampling_grid(3), solver="rk5")
    with pytest.raises(ValueError, match="no interval"):
        integrate(drift, jnp.ones(2), jnp.zeros(1), solver="euler")
