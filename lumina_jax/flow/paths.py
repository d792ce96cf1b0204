"""Probability paths between noise and data, and the quantities that a network may predict on them.

In: noise x0, data x1 and times t. Out: points x_t and velocities; conversions between velocity, score, noise and data.

Convention of the whole package: t = 0 is noise, t = 1 is data, x_t = alpha(t) x1 + sigma(t) x0, and the velocity is
dx_t/dt = alpha'(t) x1 + sigma'(t) x0 (Lumina-T2X, arXiv 2405.05945, eq. 1-3; SiT, arXiv 2401.08740, section 2;
diffusers counts t the other way). The noise prediction is E[x0 | x_t], the score is -E[x0 | x_t] / sigma, and the data
prediction is E[x1 | x_t].

With the Wronskian W = alpha' sigma - alpha sigma', which vanishes nowhere, each conversion is a quotient:

    noise = (alpha' x - alpha v) / W     score = (alpha v - alpha' x) / (sigma W)
    v = (alpha' x - W noise) / alpha     v = (alpha' x + sigma W score) / alpha
    data = (sigma v - sigma' x) / W      v = (sigma' x + W data) / sigma

so that from a velocity the noise is finite everywhere and the score is finite at t = 0. What is infinite by nature
stays infinite: the score and a velocity from data at t = 1, where the density of x_t has no width, and a velocity from
a score or from noise at t = 0 where alpha = 0. `interval` gives the times to stop at.

A time has the leading axes of the array it belongs to ([b] for one sample a row, [b l] for tokens) or none at all.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumina_jax.flow import schedule

Times = Float[jax.Array | np.ndarray | float, "*times"]
Values = Float[jax.Array | np.ndarray, "*values"]

VP_BETA_MIN, VP_BETA_MAX = 0.1, 20.0
TRAINING_MARGIN_VP = 1e-5
TIME_MARGIN = 1e-3


class Coefficients(NamedTuple):
    """alpha and sigma of x_t = alpha x1 + sigma x0, and their derivatives by t; all of t's shape."""

    alpha: Float[Array, "*times"]
    sigma: Float[Array, "*times"]
    d_alpha: Float[Array, "*times"]
    d_sigma: Float[Array, "*times"]


class Interpolant(NamedTuple):
    """A point of the path and the velocity there, which is the target of training."""

    x: Float[Array, "*values"]
    velocity: Float[Array, "*values"]


@dataclasses.dataclass(frozen=True)
class Path:
    """One way from noise to data.

    `coefficients(t)` are alpha, sigma and their derivatives. `sigma_wronskian(t)` is
    sigma (alpha' sigma - alpha sigma') in a form that stays finite where sigma' does not. `time_of_share(r)` is the
    time at which alpha / (alpha + sigma) = r, where the ratio of data to noise is that of the linear path at time r.
    """

    name: str
    coefficients: Callable[[Times], Coefficients]
    sigma_wronskian: Callable[[Times], Float[Array, "*times"]]
    time_of_share: Callable[[Times], Float[Array, "*times"]]
    discrete: Callable[[Times], Float[Array, "*times"]] | None = None
    """The nearest of the times at which a network is trained; None: there are no others."""
    network_time: Callable[[Times], Float[Array, "*times"]] = jnp.asarray
    """What the network is told of t."""


def path(name: str) -> Path:
    """The path of this name: 'linear' (alpha = t), 'gvp' (sine and cosine), 'vp' (beta from 0.1 to 20) or 'ddpm' (the
    1000 steps of `schedule.py`).

    Raises:
      ValueError: there is no such path.
    """
    if name not in PATHS:
        raise ValueError(f"path {name=} is unknown; choose one of {sorted(PATHS)}")
    return PATHS[name]


def interpolate(path: Path, x0: Values, x1: Values, t: Times) -> Interpolant:
    """x_t between noise `x0` and data `x1`, and its velocity; both in float32."""
    c = path.coefficients(over(t, x1))
    return Interpolant(c.alpha * x1 + c.sigma * x0, c.d_alpha * x1 + c.d_sigma * x0)


def over(t: Times, x: Values) -> Float[Array, "..."]:
    """The time as a float32 array that broadcasts against `x`: its axes are the leading ones of `x`."""
    t = jnp.asarray(t, jnp.float32)
    if t.ndim > x.ndim:
        raise ValueError(f"t of {t.shape=} has more axes than x of {x.shape=}; give one time for each sample or token")
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def score_weight(path: Path, t: Times) -> Float[Array, "*times"]:
    """The factor w of v = (alpha'/alpha) x + w score: sigma W / alpha, infinite where alpha = 0."""
    return path.sigma_wronskian(t) / path.coefficients(t).alpha


def wronskian(path: Path, t: Times) -> Float[Array, "*times"]:
    """alpha' sigma - alpha sigma'."""
    c = path.coefficients(t)
    return c.d_alpha * c.sigma - c.alpha * c.d_sigma


def score_from_velocity(path: Path, velocity: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """grad log p_t(x); infinite at t = 1."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.alpha * velocity - c.d_alpha * x) / path.sigma_wronskian(t)


def noise_from_velocity(path: Path, velocity: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """E[x0 | x_t = x]."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.d_alpha * x - c.alpha * velocity) / wronskian(path, t)


def velocity_from_score(path: Path, score: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """The velocity of the probability flow; infinite at t = 0 where alpha = 0."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.d_alpha * x + path.sigma_wronskian(t) * score) / c.alpha


def velocity_from_noise(path: Path, noise: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """The velocity of the probability flow; infinite at t = 0 where alpha = 0."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.d_alpha * x - wronskian(path, t) * noise) / c.alpha


def data_from_velocity(path: Path, velocity: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """E[x1 | x_t = x]."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.sigma * velocity - c.d_sigma * x) / wronskian(path, t)


def velocity_from_data(path: Path, data: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """The velocity of the probability flow; infinite at t = 1."""
    t = over(t, x)
    c = path.coefficients(t)
    return (c.d_sigma * x + wronskian(path, t) * data) / c.sigma


def straight_velocity(path: Path, velocity: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """E[x1 - x0 | x_t = x]: the velocity on the linear path, from that on any path.

    The expectation depends on x only through x / sigma and alpha / sigma, so predictions of models of different paths
    can be compared at one ratio alpha / sigma (`time_of_share`), for the same data and noise.
    """
    t = over(t, x)
    c = path.coefficients(t)
    return ((c.alpha + c.sigma) * velocity - (c.d_alpha + c.d_sigma) * x) / wronskian(path, t)


def velocity_from(prediction: str, path: Path, output: Values, x: Values, t: Times) -> Float[Array, "*values"]:
    """The drift of the sampling ODE, from the output of a network that was trained to predict `prediction`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"{prediction=} is unknown; choose one of {sorted(PREDICTIONS)}")
    return PREDICTIONS[prediction](path, output, x, t)


def diffusion(path: Path, form: str, t: Times, *, norm: float = 1.0) -> Float[Array, "*times"]:
    """The diffusion coefficient w(t) >= 0 of dx = (v + w score) dt + sqrt(2 w) dW, which keeps every p_t for any w.

    Forms of SiT, section 3 and table 6; 'sbdm' is `score_weight`, infinite at t = 0 where alpha = 0.

    Raises:
      ValueError: there is no such form.
    """
    if form not in DIFFUSIONS:
        raise ValueError(f"diffusion {form=} is unknown; choose one of {sorted(DIFFUSIONS)}")
    return DIFFUSIONS[form](path, jnp.asarray(t, jnp.float32), norm)


def interval(
    path: Path,
    prediction: str,
    *,
    training: bool = False,
    sde: str | None = None,
    last_step_size: float = 0.0,
    steps: int | None = None,
    margin: float | None = None,
) -> tuple[float, float]:
    """The first and last time at which the network may be called: formulas can be infinite at t = 0 and t = 1.

    A velocity on the linear and gvp paths needs no margin in training and in the ODE. Otherwise the ends where a
    formula is infinite are left out by `margin`, by default the released one: 1e-5 for training on vp, else 1e-3.
    DDPM ends with its first step, at 1 - 1e-3; in training all times become discrete.

    Args:
      sde: form of the diffusion, when the times are those of the SDE sampler. 'sbdm' starts late, as it is infinite at
        t = 0, and by default not earlier than one step of `steps`, before which explicit steps are unstable.
      last_step_size: the size of the last step of the SDE, with which the interval ends before t = 1.
    """
    if path.discrete is not None and training:
        return 0.0, 1.0
    chosen = margin
    if margin is None:
        margin = TRAINING_MARGIN_VP if training and path.name == "vp" else TIME_MARGIN
    end = 1 - (last_step_size if sde and last_step_size else margin)
    if path.name in ("vp", "ddpm"):
        return 0.0, end
    if prediction == "velocity" and sde is None:
        return 0.0, 1.0
    if prediction in ("velocity", "data") and sde != "sbdm":
        return 0.0, end
    if chosen is None and sde == "sbdm" and steps:
        margin = max(margin, 1 / (steps + 1))
    return margin, end


def _linear(t: Times) -> Coefficients:
    t = jnp.asarray(t, jnp.float32)
    return Coefficients(t, 1 - t, jnp.ones_like(t), -jnp.ones_like(t))


def _gvp(t: Times) -> Coefficients:
    angle = jnp.asarray(t, jnp.float32) * (math.pi / 2)
    sine, cosine = jnp.sin(angle), jnp.sin(math.pi / 2 - angle)
    return Coefficients(sine, cosine, (math.pi / 2) * cosine, (-math.pi / 2) * sine)


def _vp(t: Times) -> Coefficients:
    left = 1 - jnp.asarray(t, jnp.float32)
    log_alpha = -0.25 * left**2 * (VP_BETA_MAX - VP_BETA_MIN) - 0.5 * left * VP_BETA_MIN
    half_beta = 0.5 * (VP_BETA_MIN + left * (VP_BETA_MAX - VP_BETA_MIN))
    alpha = jnp.exp(log_alpha)
    sigma = jnp.sqrt(-jnp.expm1(2 * log_alpha))
    return Coefficients(alpha, sigma, alpha * half_beta, -(alpha**2) * half_beta / sigma)


def _log_alpha_bar_of_share(share: Times) -> Float[Array, "*times"]:
    """log alpha^2 where alpha^2 + sigma^2 = 1 and alpha / (alpha + sigma) is `share`."""
    share = jnp.asarray(share, jnp.float32)
    return -jnp.log1p(((1 - share) / share) ** 2)


def _vp_time_of_share(share: Times) -> Float[Array, "*times"]:
    """The root in [0, 1] of -log alpha = (beta_max - beta_min) l^2 / 4 + beta_min l / 2 with l = 1 - t."""
    target = -0.5 * _log_alpha_bar_of_share(share)
    a, b = (VP_BETA_MAX - VP_BETA_MIN) / 4, VP_BETA_MIN / 2
    return jnp.clip(1 - 2 * target / (b + jnp.sqrt(b**2 + 4 * a * target)), 0, 1)


def _ddpm(t: Times) -> Coefficients:
    logarithm, slope = schedule.log_alpha_bar(t), schedule.log_alpha_bar_slope(t)
    alpha, sigma = jnp.exp(0.5 * logarithm), jnp.sqrt(-jnp.expm1(logarithm))
    return Coefficients(alpha, sigma, 0.5 * alpha * slope, -0.5 * alpha**2 * slope / sigma)


def _ddpm_time_of_share(share: Times) -> Float[Array, "*times"]:
    return schedule.time_with_log_alpha_bar(_log_alpha_bar_of_share(share))


def _gvp_time_of_share(share: Times) -> Float[Array, "*times"]:
    share = jnp.asarray(share, jnp.float32)
    return jnp.arctan2(share, 1 - share) * (2 / math.pi)


PATHS = {
    "linear": Path("linear", _linear, lambda t: _linear(t).sigma, jnp.asarray),
    # Where alpha^2 + sigma^2 = 1, sigma sigma' = -alpha alpha', and so sigma W = alpha'.
    "gvp": Path("gvp", _gvp, lambda t: _gvp(t).d_alpha, _gvp_time_of_share),
    "vp": Path("vp", _vp, lambda t: _vp(t).d_alpha, _vp_time_of_share),
    "ddpm": Path(
        "ddpm",
        _ddpm,
        lambda t: _ddpm(t).d_alpha,
        _ddpm_time_of_share,
        discrete=schedule.discrete,
        network_time=schedule.network_time,
    ),
}
"""By the names that a configuration gives them, as in the tables below."""

PREDICTIONS: dict[str, Callable[[Path, Values, Values, Times], Array]] = {
    "velocity": lambda path, output, x, t: jnp.asarray(output),
    "score": velocity_from_score,
    "noise": velocity_from_noise,
    "data": velocity_from_data,
}
"""The velocity of (path, output, x, t), by what the network predicts."""

DIFFUSIONS: dict[str, Callable[[Path, Array, float], Array]] = {
    "constant": lambda path, t, norm: jnp.full_like(t, norm),
    "sbdm": lambda path, t, norm: norm * score_weight(path, t),
    "sigma": lambda path, t, norm: norm * path.coefficients(t).sigma,
    "linear": lambda path, t, norm: norm * (1 - t),
    "decreasing": lambda path, t, norm: 0.25 * (norm * jnp.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * jnp.sin(math.pi * t) ** 2,
}
"""The diffusion coefficient of (path, t, norm), by its form."""
