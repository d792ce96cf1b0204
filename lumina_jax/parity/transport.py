"""Comparison of the flow with the released transport code: paths, losses, training times, ODE, SDE and likelihood.

In: golden files of the classes "Flag-DiT-ImageNet/transport/path.py" and "transport Sampler.sample_ode". Out: a
`Comparison` for each case. Settings are read from the recorded call. Peculiarities of the released code are handled
here, so that the flow need not: num_steps counts times, not intervals; velocities on the linear and gvp paths have no
margin at the ends; adaptive solvers step beyond the end; trajectories of the SDE do not contain the first state.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumina_jax.flow import likelihood, ode, paths, sde
from lumina_jax.flow.losses import flow_loss
from lumina_jax.flow.solvers import Solver, solver_named
from lumina_jax.flow.timesteps import sampling_grid, times_from
from lumina_jax.parity.golden import Comparison, Golden, attempt, compare
from lumina_jax.tokens.grid import Kind

FORMULA = "tanh(x)*t+0.3*sin(3*t)-0.5*x*(1-t)"
EXACT, LOSSY, SOLVED, ADAPTIVE, LIKELIHOOD = 1e-5, 1e-3, 1e-4, 2e-3, 1e-3
LARGE_STATE, LARGE_TOLERANCE = 50.0, 5e-6
"""Noise and score predictions are divided by alpha, which is 0 at t = 0, so that states reach thousands and have the
rounding error of the largest. If a state exceeds LARGE_STATE, the tolerance is LARGE_TOLERANCE times the largest."""
FORMS: dict[str, str] = {
    "constant": "constant",
    "SBDM": "sbdm",
    "sigma": "sigma",
    "linear": "linear",
    "decreasing": "decreasing",
    "inccreasing-decreasing": "increasing-decreasing",
}


def accepts(golden: Golden) -> bool:
    """Whether `run` supports the file."""
    return golden.cls.startswith("Flag-DiT-ImageNet/transport/path.py") or "transport Sampler.sample_ode" in golden.cls


def run(golden: Golden) -> Iterator[Comparison]:
    """Compare every case of the file."""
    if not accepts(golden):
        raise ValueError(f"{golden.name} contains {golden.cls!r}, which is not a transport file; name another")
    if FORMULA not in str(golden.meta.get("model", "")).replace(" ", ""):
        raise ValueError(f"the analytic model of {golden.name} is {golden.meta.get('model')!r}, expected {FORMULA}")
    for case, call in golden.calls.items():
        yield attempt(case, lambda case=case, call=call: _runner(case)(golden, case, call.get("kwargs") or {}))  # type: ignore[misc]
    for key in golden.raw:
        if found := re.fullmatch(r"out/(mini_t_(\d+)_(\w+))", key):
            case, points, kind = found[1], int(found[2]), found[3]
            yield attempt(case, lambda case=case, points=points, kind=kind: _mini_grid(golden, case, points, kind))  # type: ignore[misc]


def _runner(case: str) -> Callable[[Golden, str, dict[str, Any]], Comparison]:
    """Return the function that compares a case, by the prefix of its name."""
    for prefix, runner in _RUNNERS.items():
        if case.startswith(prefix):
            return runner
    raise ValueError(f"{case=} must begin with one of {list(_RUNNERS)}; record it again")


def _path_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    given, expected = golden.inputs(case), golden.outputs(case)
    path = _path(kwargs)
    x0, x1, v = given["x0"], given["x1"], given["v"]
    t = np.asarray(paths.over(given["t"], x1))
    c = path.coefficients(t)
    point = paths.interpolate(path, x0, x1, t)
    x = expected["xt"]
    ours = {
        "alpha": c.alpha,
        "dalpha": c.d_alpha,
        "sigma": c.sigma,
        "dsigma": c.d_sigma,
        "ratio": c.d_alpha / c.alpha,
        "xt": point.x,
        "ut": point.velocity,
        "drift": -c.d_alpha / c.alpha * x,
        "drift_var": paths.score_weight(path, t),
        "score": paths.score_from_velocity(path, v, x, t),
        "noise": paths.noise_from_velocity(path, v, x, t),
        "vel": paths.velocity_from_score(path, v, x, t),
        **{f"diff_{name}": paths.diffusion(path, form, t, norm=0.7) for name, form in FORMS.items()},
    }
    # Near t = 1 the recorded numbers have the rounding error of 1 - t, and on vp that of 1 - alpha^2.
    lossy = {"score", "dsigma", "drift_var", "diff_SBDM"}
    lossy |= {"sigma", "noise", "xt", "ut", "diff_sigma"} if path.name == "vp" else set()
    lossy = lossy if float(t.max()) > 0.9 else set()
    pairs = ((name, ours[name], theirs, 1e-6, LOSSY if name in lossy else EXACT) for name, theirs in expected.items())
    return compare(case, pairs)


def _loss_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    """Compare the loss of arrays of the same size, each as a row of tokens with one value."""
    given = golden.inputs(case)
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    x0, x1, t = given["x0"], given["x1"], given["t"]
    x = paths.interpolate(path, x0, x1, t).x
    output, noise, data = (jnp.reshape(array, (len(x0), -1, 1)) for array in (_model(paths.over(t, x), x), x0, x1))
    ones = np.ones(output.shape[:2], np.int32)
    losses = flow_loss(
        output,
        noise,
        data,
        t[:, None],
        ones * int(Kind.PATCH),
        ones,
        path=path,
        prediction=prediction,
        weighting=kwargs.get("loss_weight") or "none",
    )
    expected = golden.outputs(case)["loss"]
    near_end = path.name == "vp" and float(t.max()) > 0.9
    return compare(case, [("loss", losses.per_sample[:, 0], expected, 1e-6, LOSSY if near_end else EXACT)])


def _list_loss_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    """Compare the loss of pictures [c h w] of any size, packed into one row with one token for each pixel."""
    given = golden.inputs(case)
    path, t = _path(kwargs), given["t"]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for segment, (x0, x1, time) in enumerate(zip(given["x0"], given["x1"], t), start=1):
        time = float(time)
        x = paths.interpolate(path, x0, x1, time).x
        for column, picture in zip(columns, (jnp.tanh(x) * time, x0, x1)):
            column.append(np.reshape(picture, (x0.shape[0], -1)).T)
        columns[3].append(np.full(columns[0][-1].shape[0], segment, np.int32))
    output, x0, x1, segment_ids = (np.concatenate(column)[None] for column in columns)
    kinds = np.full(segment_ids.shape, Kind.PATCH, np.int32)
    losses = flow_loss(jnp.asarray(output), x0, x1, t[None], kinds, segment_ids, path=path, prediction="velocity")
    return compare(case, [("loss", losses.per_sample[0], golden.outputs(case)["loss"], 1e-6, EXACT)])


def _times_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    distribution = kwargs.get("snr_type", case.removeprefix("snr_"))
    interval = tuple(kwargs.get("interval", (0.0, 1.0)))
    ours = times_from(golden.inputs(case)["u"], distribution=distribution, interval=interval)
    return compare(case, [("t", ours, golden.outputs(case)["t"], 1e-6, EXACT)])


def _ode_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    """Compare the last state of an ODE, and the recorded states of its trajectory."""
    adaptive = solver_named(kwargs["method"]).adaptive
    grid = _grid(kwargs)
    # The mini sampler uses torchdiffeq's defaults, 1e-7 and 1e-9, which float32 cannot resolve.
    settings = _field(kwargs) | _tolerances(kwargs, rtol=1e-6 if adaptive and case.startswith("mini") else 1e-3)
    states = _solved(golden.raw["in/x"], _padded(grid), method=kwargs["method"], **settings)[: len(grid)]
    indices = kwargs.get("idx") or [1, len(grid) // 2, len(grid) - 1]
    return _compare_states(golden, case, states, [indices], (SOLVED, ADAPTIVE) if adaptive else (EXACT,))


def _sde_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    last_step = str(kwargs.get("last_step")).lower()
    form = FORMS[kwargs.get("diffusion_form", "SBDM")]
    size = kwargs.get("last_step_size", 0.04)
    interval = paths.interval(
        path, prediction, sde=form, last_step_size=0.0 if last_step == "none" else size, margin=_margin(kwargs)
    )
    states = sde.integrate(
        _velocity(**_field(kwargs)),
        golden.raw["in/x"],
        sampling_grid(kwargs["num_steps"] - 1, interval=interval),
        path=path,
        solver="euler_maruyama" if kwargs["method"] == "Euler" else "sde_heun",
        form=form,
        norm=kwargs.get("diffusion_norm", 1.0),
        last_step=last_step,  # type: ignore[arg-type]
        last_step_size=size,
        noise=golden.raw["in/sde_noise"][: kwargs["num_steps"] - 1],
        save_at="grid",
    )
    # The indices of an SDE's trajectory are not recorded: they are the first, a middle and the last noisy state.
    last = kwargs["num_steps"] - 2
    indices = [[0, middle, last] for middle in (last // 2, (last + 1) // 2)]
    return _compare_states(golden, case, states, [kwargs["idx"]] if "idx" in kwargs else indices, (EXACT,))


def _likelihood_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    found = _measured(
        golden.raw["in/x"],
        golden.raw["in/lik_eps"],
        _padded(_grid(kwargs)[::-1]),
        method=kwargs["method"],
        **_field(kwargs),
        **_tolerances(kwargs),
    )
    ours = {"logp": found.log_density, "z": found.latent}
    expected = golden.outputs(case)
    return compare(case, ((name, ours[name], theirs, LIKELIHOOD, EXACT) for name, theirs in expected.items()))


def _mini_grid(golden: Golden, case: str, points: int, kind: str) -> Comparison:
    """Compare a recorded time grid, with the shift and strength of a case that has the same number of points.

    The kind is sd30 (the direction of the sampler), sd31 (t = 1 is noise) or strength.
    """
    calls = [call["kwargs"] for name, call in golden.calls.items() if name.startswith("mini_")]
    calls = [call for call in calls if call["num_steps"] == points and (kind != "strength" or "strength" in call)]
    if not calls or kind not in ("sd30", "sd31", "strength"):
        raise ValueError(f"no recorded mini_ call has the shift and strength of the grid {case}; record it again")
    grid = _grid(calls[0] if kind == "strength" else {**calls[0], "strength": 1.0})
    theirs = golden.raw[f"out/{case}"]
    return compare(case, [("t", 1 - grid if kind == "sd31" else grid, theirs, 1e-6, 0.0)])


def _compare_states(
    golden: Golden, case: str, states: Array, indices: list[list[int]], tolerances: tuple[float, ...]
) -> Comparison:
    """Compare the last state and the trajectory with the first tolerance and indices that pass, or else the last."""
    expected = golden.outputs(case)
    largest = max((float(np.abs(theirs).max()) for theirs in expected.values()), default=0.0)
    is_large = largest > LARGE_STATE
    for tolerance, chosen in itertools.product(tolerances, indices):
        ours = {"y": states[-1], "traj": states[np.asarray(chosen)]}
        atol, rtol = (LARGE_TOLERANCE * largest, 0.0) if is_large else (tolerance, EXACT)
        result = compare(case, [(name, ours[name], theirs, atol, rtol) for name, theirs in expected.items()])
        if result.passed:
            break
    note = f"tolerance: {LARGE_TOLERANCE:g} of the largest state, {largest:.3g}"
    return result._replace(note=f"{result.note} {note}".strip()) if is_large else result


def _solver(method: str) -> Solver:
    """Return a solver by name; adaptive ones step beyond the end and interpolate a quartic, as torchdiffeq does.

    The quartic matches the values and slopes at both ends of the step, and a middle point, y0 + middle . slopes.
    """
    solver = solver_named(method)
    if not solver.adaptive:
        return solver
    middles: dict[str, Any] = {"adaptive_heun": [0.5, 0.0], "fehlberg2": [0.0, 0.5, 0.0], "bosh3": [0.0, 0.5, 0.0, 0.0]}
    middle, chosen = middles.get(method), cast(Any, solver.method)
    if method == "dopri8":  # the middle of diffrax's interpolation
        middle = [0.5 * np.polyval(row, 0.5) for row in chosen.interpolation_cls.eval_coeffs]
    if middle is not None:
        quartic = type("Quartic", (diffrax.FourthOrderPolynomialInterpolation,), {"c_mid": np.asarray(middle)})
        chosen = type(f"Released{chosen.__name__}", (chosen,), {"interpolation_cls": quartic})
    return solver._replace(method=chosen, overshoots=True)


def _grid(kwargs: dict[str, Any]) -> Float[Array, " n"]:
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    return sampling_grid(
        kwargs["num_steps"] - 1,
        interval=paths.interval(path, prediction, margin=_margin(kwargs)),
        shift=kwargs.get("time_shifting_factor") or 1.0,
        strength=kwargs.get("strength") or 1.0,
    )


def _path(kwargs: dict[str, Any]) -> paths.Path:
    return paths.path(kwargs.get("path", "Linear").lower())


def _margin(kwargs: dict[str, Any]) -> float | None:
    """Return the released margin; for velocities on the linear and gvp paths it is always 0."""
    if _path(kwargs).name != "vp" and kwargs.get("prediction", "velocity") == "velocity":
        return 0.0
    return kwargs.get("sample_eps")


def _tolerances(kwargs: dict[str, Any], *, rtol: float = 1e-3) -> dict[str, Any]:
    """Return the tolerances of adaptive solvers, by default `rtol` and 1e-6."""
    return {"rtol": kwargs.get("rtol", rtol), "atol": kwargs.get("atol", 1e-6)}


def _field(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction and path that determine the velocity; a predicted velocity ignores the path."""
    prediction = kwargs.get("prediction", "velocity")
    return {"prediction": prediction, "name": "linear" if prediction == "velocity" else _path(kwargs).name}


def _velocity(prediction: Any, name: Any) -> Callable[[Array, Array, Any], Array]:
    return lambda t, x, _: paths.velocity_from(prediction, paths.path(name), _model(t, x), x, t)


def _padded(grid: Float[Array, " n"]) -> Float[Array, " m"]:
    """Repeat the last time of a grid, so that grids of different lengths share one compiled loop."""
    return jnp.pad(grid, (0, max(64, 2 ** math.ceil(math.log2(len(grid)))) - len(grid)), mode="edge")


@functools.partial(jax.jit, static_argnames=("prediction", "name", "method", "rtol", "atol"))
def _solved(x: Array, grid: Array, *, prediction: str, name: str, method: str, rtol: float, atol: float) -> Array:
    field = _velocity(prediction, name)
    return ode.integrate(field, x, grid, solver=_solver(method), rtol=rtol, atol=atol, save_at="grid")


@functools.partial(jax.jit, static_argnames=("prediction", "name", "method", "rtol", "atol"))
def _measured(
    x: Array, signs: Array, grid: Array, *, prediction: str, name: str, method: str, rtol: float, atol: float
) -> likelihood.Likelihood:
    field = _velocity(prediction, name)
    return likelihood.log_likelihood(field, x, signs, grid, solver=_solver(method), rtol=rtol, atol=atol)


def _model(t: Float[Array, "..."], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The analytic network that was recorded."""
    return jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)


_RUNNERS: dict[str, Callable[[Golden, str, dict[str, Any]], Comparison]] = {
    "loss_": _loss_case,
    "listloss_": _list_loss_case,
    "snr_": _times_case,
    "fd_": _ode_case,
    "t2i_": _ode_case,
    "mini_": _ode_case,
    "sde_": _sde_case,
    "lik_": _likelihood_case,
    "Linear": _path_case,
    "GVP": _path_case,
    "VP": _path_case,
}
