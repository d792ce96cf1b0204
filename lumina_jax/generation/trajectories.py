"""From a guided network to the way of its samples: the probability flow, the SDE, or the steps of DDPM.

In: the output of the network as a function of time and patches, and the settings. Out: a velocity with its times, or
the patches at the end of the way.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, SampleConfig
from lumina_jax.flow import ancestral, paths, sde, timesteps
from lumina_jax.flow.schedule import time_of_step

Times = Float[Array, ""] | Float[Array, " b"]
"""One for all samples of a batch, or one for each."""
Output = Callable[[Times, Float[Array, "b l p"]], Float[Array, "b l o"]]
Velocity = Callable[[Times, Float[Array, "b l p"], Any], Float[Array, "b l p"]]


def solver_settings(settings: SampleConfig) -> dict[str, Any]:
    return {"solver": settings.solver, "rtol": settings.rtol, "atol": settings.atol}


def flow(
    output: Output, config: Config, settings: SampleConfig, time_shift: Float[Array, ""]
) -> tuple[Velocity, Float[Array, " n"]]:
    """The velocity of the probability flow, and its times from noise to data."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    start, end = paths.interval(path, prediction)
    times = start + (end - start) * timesteps.sampling_grid(settings.steps, shift=time_shift)
    return _velocity(output, config), times


def _velocity(output: Output, config: Config) -> Velocity:
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    return lambda t, x, _: paths.velocity_from(prediction, path, output(t, x), x, t)


def denoised(
    output: Output,
    x: Float[Array, "b l p"],
    noise: Float[Array, "n b l p"],
    settings: SampleConfig,
    time_shift: Float[Array, ""],
    learns_variance: bool,
) -> Float[Array, "b l p"]:
    """From noise to data along steps of DDPM."""

    def predict(step: Int[Array, ""], x: Float[Array, "b l p"]) -> ancestral.NoisePrediction:
        said = output(time_of_step(step), x)
        return (
            ancestral.NoisePrediction(*jnp.split(said, 2, axis=-1))
            if learns_variance
            else ancestral.NoisePrediction(said)
        )

    return ancestral.sample(
        predict,
        x,
        ancestral.spaced_steps(settings.steps, time_shift),
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
) -> Float[Array, "b l p"]:
    """From noise to data by the SDE with the same marginals."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    last = 0.0 if settings.last_step == "none" else settings.last_step_size
    start, end = paths.interval(path, prediction, sde=settings.diffusion, last_step_size=last, steps=settings.steps)
    return sde.integrate(
        _velocity(output, config),
        x,
        start + (end - start) * timesteps.sampling_grid(settings.steps, shift=time_shift),
        path=path,
        solver=settings.solver,
        form=settings.diffusion,
        norm=settings.diffusion_norm,
        last_step=settings.last_step,
        last_step_size=settings.last_step_size,
        noise=noise,
    )
