"""Parity of the flow with the released transport code: paths, losses, training times, ODE, SDE and likelihood.

In: golden files of the classes "Flag-DiT-ImageNet/transport/path.py" and "transport Sampler.sample_ode". Out: one
`Comparison` a case. Every setting is read from the recorded call; what the release does by default is filled in here, so
that the flow itself need not know it: num_steps counts times, not intervals; velocities on the linear and gvp
paths have no margins at their ends; only the SDE's trajectories are recorded without their first state.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumina_jax.flow import likelihood, ode, paths, sde
from lumina_jax.flow.losses import flow_loss
from lumina_jax.flow.solvers import Fehlberg2, Solver, solver_named
from lumina_jax.flow.timesteps import sampling_grid, times_from
from lumina_jax.parity.golden import Comparison, Golden, Pair, attempt, compare
from lumina_jax.tokens.grid import Kind

FORMULA = "tanh(x)*t+0.3*sin(3*t)-0.5*x*(1-t)"
EXACT, LOSSY, SOLVED, ADAPTIVE, LIKELIHOOD = 1e-5, 1e-3, 1e-4, 2e-3, 1e-3
FORMS: dict[str, paths.Diffusion] = {
    "constant": "constant",
    "SBDM": "sbdm",
    "sigma": "sigma",
    "linear": "linear",
    "decreasing": "decreasing",
    "inccreasing-decreasing": "increasing-decreasing",
}


def accepts(golden: Golden) -> bool:
    """Whether the file is one of those that `run` knows."""
    return golden.cls.startswith("Flag-DiT-ImageNet/transport/path.py") or "transport Sampler.sample_ode" in golden.cls


def run(golden: Golden) -> Iterator[Comparison]:
    """Run every case of the file, and compare."""
    if not accepts(golden):
        raise ValueError(f"{golden.name} holds {golden.cls!r}, which is no transport file")
    if FORMULA not in str(golden.meta.get("model", "")).replace(" ", ""):
        raise ValueError(f"the analytic model of {golden.name} is {golden.meta.get('model')!r}, expected {FORMULA}")
    for case, call in golden.calls.items():
        yield attempt(case, lambda case=case, call=call: _runner(case)(golden, case, call.get("kwargs") or {}))  # type: ignore[misc]
    for key in golden.raw:
        if found := re.fullmatch(r"out/(mini_t_(\d+)_(\w+))", key):
            case, points, kind = found[1], int(found[2]), found[3]
            yield attempt(case, lambda case=case, points=points, kind=kind: _mini_grid(golden, case, points, kind))  # type: ignore[misc]


def _runner(case: str) -> Callable[[Golden, str, dict[str, Any]], Comparison]:
    """What the name of a case says it records."""
    for prefix, runner in _RUNNERS.items():
        if case.startswith(prefix):
            return runner
    raise ValueError(f"{case=} is of no known kind; known prefixes: {list(_RUNNERS)}")


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
    # 1 - t and its like carry the rounding of t alone, which near t = 1 is a large part of them.
    return compare(case, (_path_pair(name, ours[name], theirs, t) for name, theirs in expected.items()))


def _path_pair(name: str, ours: Any, theirs: Any, t: Float[np.ndarray, "..."]) -> Pair:
    lossy = name in ("score", "dsigma", "drift_var", "diff_SBDM") and float(t.max()) > 0.9
    return name, ours, theirs, 1e-6, LOSSY if lossy else EXACT


def _loss_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    """Arrays of one size: each is a row of tokens of one value."""
    given = golden.inputs(case)
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    x0, x1, t = given["x0"], given["x1"], given["t"]
    x = paths.interpolate(path, x0, x1, t).x
    rows = [np.reshape(array, (x0.shape[0], -1, 1)) for array in (_model(paths.over(t, x), x), x0, x1)]
    ones = np.ones(rows[0].shape[:2], np.int32)
    losses = flow_loss(
        *map(jnp.asarray, rows),
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
    """Pictures of any sizes [c h w], packed into one row, with one token for each place."""
    given = golden.inputs(case)
    path, t = _path(kwargs), given["t"]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for segment, (x0, x1, time) in enumerate(zip(given["x0"], given["x1"], t), start=1):
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
    """An ODE, by its last state and by the recorded places of its trajectory."""
    mini = case.startswith("mini")
    solver, velocity = _solver(kwargs["method"]), _velocity(kwargs)
    states = jax.jit(
        lambda x, grid: ode.integrate(
            velocity,
            x,
            grid,
            solver=solver,
            # The mini sampler leaves torchdiffeq's defaults, 1e-7 and 1e-9, which float32 cannot resolve.
            rtol=kwargs.get("rtol", 1e-6 if mini else 1e-3),
            atol=kwargs.get("atol", 1e-6),
            save_at="grid",
        )
    )(golden.raw["in/x"], _grid(kwargs))
    count = states.shape[0]
    places = kwargs.get("idx") or [1, count // 2, count - 1]
    return _compare_states(golden, case, states, [places], (SOLVED, ADAPTIVE) if solver.adaptive else (EXACT,))


def _sde_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    last_step = str(kwargs.get("last_step")).lower()
    form = FORMS[kwargs.get("diffusion_form", "SBDM")]
    size = kwargs.get("last_step_size", 0.04)
    interval = paths.interval(
        path, prediction, sde=form, last_step_size=0.0 if last_step == "none" else size, margin=_margin(kwargs)
    )
    states = sde.integrate(
        _velocity(kwargs),
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
    # The places of an SDE's trajectory aren't recorded: the first, a middle one and the last of those that take noise.
    last = kwargs["num_steps"] - 2
    places = [[0, middle, last] for middle in (last // 2, (last + 1) // 2)]
    return _compare_states(golden, case, states, [kwargs["idx"]] if "idx" in kwargs else places, (EXACT,))


def _likelihood_case(golden: Golden, case: str, kwargs: dict[str, Any]) -> Comparison:
    found = likelihood.log_likelihood(
        _velocity(kwargs),
        golden.raw["in/x"],
        golden.raw["in/lik_eps"],
        _grid(kwargs)[::-1],
        solver=_solver(kwargs["method"]),
        rtol=kwargs.get("rtol", 1e-3),
        atol=kwargs.get("atol", 1e-6),
    )
    ours = {"logp": found.log_density, "z": found.latent}
    expected = golden.outputs(case)
    return compare(case, ((name, ours[name], theirs, LIKELIHOOD, EXACT) for name, theirs in expected.items()))


def _mini_grid(golden: Golden, case: str, points: int, kind: str) -> Comparison:
    """A recorded time grid; its shift and strength are those of the cases of as many points.

    The kind is sd30 (the sampler's own direction), sd31 (t = 1 is noise) or strength.
    """
    calls = [call["kwargs"] for name, call in golden.calls.items() if name.startswith("mini_")]
    calls = [call for call in calls if call["num_steps"] == points and (kind != "strength" or "strength" in call)]
    if not calls or kind not in ("sd30", "sd31", "strength"):
        raise ValueError(f"no recorded mini_ call tells the shift and strength of the grid {case}")
    grid = _grid(calls[0] if kind == "strength" else {**calls[0], "strength": 1.0})
    theirs = golden.raw[f"out/{case}"]
    return compare(case, [("t", 1 - grid if kind == "sd31" else grid, theirs, 1e-6, 0.0)])


def _compare_states(
    golden: Golden, case: str, states: Array, places: list[list[int]], tolerances: tuple[float, ...]
) -> Comparison:
    """Compare the last state and the trajectory at the first tolerance and places that fit, else at the last."""
    expected = golden.outputs(case)
    for tolerance, chosen in itertools.product(tolerances, places):
        ours = {"y": states[-1], "traj": states[np.asarray(chosen)]}
        result = compare(case, [(name, ours[name], theirs, tolerance, EXACT) for name, theirs in expected.items()])
        if result.passed:
            break
    return result


def _solver(method: str) -> Solver:
    """The solver of this name; adaptive ones end as torchdiffeq's do, beyond the end and by its quartic."""
    solver = solver_named(method)
    if method in _QUARTICS:
        solver = solver._replace(method=_QUARTICS[method])
    return solver._replace(overshoots=solver.adaptive)


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
    """The released margin: none for velocities on the linear and gvp paths, whatever was asked for."""
    if _path(kwargs).name != "vp" and kwargs.get("prediction", "velocity") == "velocity":
        return 0.0
    return kwargs.get("sample_eps")


def _velocity(kwargs: dict[str, Any]) -> Callable[[Array, Array, Any], Array]:
    path, prediction = _path(kwargs), kwargs.get("prediction", "velocity")
    return lambda t, x, _: paths.velocity_from(prediction, path, _model(t, x), x, t)


def _model(t: Float[Array, "..."], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The analytic network of the recordings."""
    return jnp.tanh(x) * t + 0.3 * jnp.sin(3 * t) - 0.5 * x * (1 - t)


def _quartic(solver: type[diffrax.AbstractERK], middle: Any) -> type[diffrax.AbstractERK]:
    """The solver with an interpolation through both ends, their slopes and a middle point, y0 + middle . slopes."""
    interpolation = type("Quartic", (diffrax.FourthOrderPolynomialInterpolation,), {"c_mid": np.asarray(middle)})
    return type(f"Released{solver.__name__}", (solver,), {"interpolation_cls": interpolation})


_QUARTICS = {
    "adaptive_heun": _quartic(diffrax.Heun, [0.5, 0.0]),
    "fehlberg2": _quartic(Fehlberg2, [0.0, 0.5, 0.0]),
    "bosh3": _quartic(diffrax.Bosh3, [0.0, 0.5, 0.0, 0.0]),
    "dopri8": _quartic(
        diffrax.Dopri8, [0.5 * np.polyval(row, 0.5) for row in diffrax.Dopri8.interpolation_cls.eval_coeffs]
    ),
}

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
