"""From a guided network to the way of its samples: the probability flow, the SDE, or the steps of DDPM.

In: the output of the network as a function of time and patches, and the settings. Out: a velocity with its times, or
the patches at the end of the way.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, SampleConfig
from lumina_jax.flow import ancestral, ode, paths, sde, timesteps
from lumina_jax.flow.schedule import time_of_step
from lumina_jax.generation.editing import KnownPath, Output, Velocity


def solver_settings(settings: SampleConfig) -> dict[str, Any]:
    return {"solver": settings.solver, "rtol": settings.rtol, "atol": settings.atol}


def flow(
    output: Output,
    config: Config,
    settings: SampleConfig,
    time_shift: Float[Array, ""],
    known: KnownPath | None = None,
) -> tuple[Velocity, Float[Array, " n"]]:
    """The velocity of the probability flow, and its times from noise to data."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    times = _times(paths.interval(path, prediction), settings, time_shift, known)
    return _velocity(output, config) if known is None else known.led(_velocity(known.shown(output), config)), times


def _times(
    interval: tuple[float, float], settings: SampleConfig, time_shift: Float[Array, ""], known: KnownPath | None
) -> Float[Array, " n"]:
    """The grid of a path, which starts later where a source is edited."""
    start, end = interval
    first = 0.0 if known is None else known.first(interval, time_shift)
    return start + (end - start) * timesteps.sampling_grid(settings.steps, interval=(first, 1.0), shift=time_shift)


def _velocity(output: Output, config: Config) -> Velocity:
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    return lambda t, x, _: paths.velocity_from(prediction, path, output(t, x), x, t)


def resampled(
    velocity: Velocity,
    x: Float[Array, "b l p"],
    times: Float[Array, " n"],
    noise: Float[Array, "steps r b l p"],
    path: paths.Path,
    settings: SampleConfig,
) -> Float[Array, "b l p"]:
    """The probability flow, each step of which is taken r + 1 times, and led back with noise in between (RePaint, arXiv
    2201.09865, algorithm 1)."""

    def step(x: Float[Array, "b l p"], inputs: tuple[Array, Array, Array]) -> tuple[Float[Array, "b l p"], None]:
        start, end, draws = inputs

        def there(x: Float[Array, "b l p"]) -> Float[Array, "b l p"]:
            found: Float[Array, "b l p"] = ode.integrate(
                velocity, x, jnp.stack([start, end]), **solver_settings(settings)
            )
            return found

        def again(x: Float[Array, "b l p"], draw: Float[Array, "b l p"]) -> tuple[Float[Array, "b l p"], None]:
            return noised_back(path, there(x), draw, end, start), None

        return there(jax.lax.scan(again, x, draws)[0]), None

    return jax.lax.scan(step, x, (times[:-1], times[1:], noise))[0]


def noised_back(
    path: paths.Path,
    x: Float[Array, "b l p"],
    noise: Float[Array, "b l p"],
    t: Float[Array, ""],
    earlier: Float[Array, ""],
) -> Float[Array, "b l p"]:
    """A point of the path at the time t with noise added until it is one of the time `earlier`.

    From alpha(t) x1 + sigma(t) x0 it is alpha(s) x1 + sigma(s) x0', with x0' of variance 1.
    """
    now, before = path.coefficients(t), path.coefficients(earlier)
    ratio = before.alpha / now.alpha
    variance = before.sigma**2 - (ratio * now.sigma) ** 2
    return ratio * x + jnp.sqrt(jnp.maximum(variance, 0)) * noise


def denoised(
    output: Output,
    x: Float[Array, "b l p"],
    noise: Float[Array, "n b l p"],
    settings: SampleConfig,
    time_shift: Float[Array, ""],
    learns_variance: bool,
    known: KnownPath | None = None,
) -> Float[Array, "b l p"]:
    """From noise to data along steps of DDPM."""
    first: timesteps.ScalarTime = 0.0
    if known is not None:
        output = known.shown(output)
        first = known.first(paths.interval(known.path, "noise"), time_shift)
    steps = ancestral.spaced_steps(settings.steps, time_shift, first)

    def predict(step: Int[Array, ""], x: Float[Array, "b l p"]) -> ancestral.NoisePrediction:
        said = output(time_of_step(step), x)
        return (
            ancestral.NoisePrediction(*jnp.split(said, 2, axis=-1))
            if learns_variance
            else ancestral.NoisePrediction(said)
        )

    return ancestral.sample(
        predict,
        x if known is None else known.start(time_of_step(steps[0])),
        steps,
        solver=settings.solver,
        noise=noise,
        eta=settings.eta,
        largest=settings.data_limit,
    )


def stochastic(
    output: Output,
    x: Float[Array, "b l p"],
    noise: Float[Array, "n b l p"],
    config: Config,
    settings: SampleConfig,
    time_shift: Float[Array, ""],
    known: KnownPath | None = None,
) -> Float[Array, "b l p"]:
    """From noise to data by the SDE with the same marginals."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    last = 0.0 if settings.last_step == "none" else settings.last_step_size
    interval = paths.interval(path, prediction, sde=settings.diffusion, last_step_size=last, steps=settings.steps)
    times = _times(interval, settings, time_shift, known)
    return sde.integrate(
        _velocity(output if known is None else known.shown(output), config),
        x if known is None else known.start(times[0]),
        times,
        path=path,
        solver=settings.solver,
        form=settings.diffusion,
        norm=settings.diffusion_norm,
        last_step=settings.last_step,
        last_step_size=settings.last_step_size,
        noise=noise,
    )
