"""The compiled programs of sampling: from noise to data, back, and the density of data.

In: a model as graph and parameters, latents or noise, and a condition. Out: latents [b f h w c] or log densities. The
condition's keys and values are computed once; guidance scale and time shift are inputs, never reasons to compile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from lumina_jax.config import Config, SampleConfig
from lumina_jax.flow import guidance, ode, paths, sde, timesteps
from lumina_jax.flow.likelihood import log_likelihood
from lumina_jax.generation import extrapolation
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.models.flag_dit import Condition, FlagDiT
from lumina_jax.tokens import Grid, Kind, TextFeatures, Tokens, tokens_of, unpatchify

Latents = Float[jax.Array | np.ndarray, "b f h w c"]
Output = Callable[[Float[Array, ""], Float[Array, "b l p"]], Float[Array, "b l p"]]
Velocity = Callable[[Float[Array, ""], Float[Array, "b l p"], Any], Float[Array, "b l p"]]
STOCHASTIC = ("euler_maruyama", "sde_heun")


class Task(NamedTuple):
    """What a program is compiled for."""

    graph: nnx.GraphDef
    config: Config
    trained: Extent
    """Of the latents of training."""


class Prompt(NamedTuple):
    """What steers the samples of a batch; all of it may be traced."""

    condition: TextFeatures | Int[Array, "b 1"]
    null: TextFeatures | Int[Array, "b 1"]
    guidance_scale: Float[Array, ""]
    time_shift: Float[Array, ""]


def draw(
    task: Task, settings: SampleConfig, parameters: dict, noise: Latents, keys: Key[Array, " b"], prompt: Prompt
) -> Latents:
    """Noise to latents; `keys` are for the stochastic solvers' own noise."""
    tokens, grid = _tokens(noise, task.config)
    output = _output(task, settings, parameters, noise, tokens, prompt)
    if settings.solver in STOCHASTIC:
        x = _stochastic(output, tokens.patches, keys, task.config, settings, prompt.time_shift)
    else:
        velocity, times = _flow(output, task.config, settings, prompt.time_shift)
        x = ode.integrate(velocity, tokens.patches, times, **_solver(settings))
    return unpatchify(x, grid, task.config.model.patch_size)


def invert(task: Task, settings: SampleConfig, parameters: dict, latents: Latents, prompt: Prompt) -> Latents:
    """Latents to the noise from which an ODE solver draws them."""
    tokens, grid = _tokens(latents, task.config)
    output = _output(task, settings, parameters, latents, tokens, prompt)
    velocity, times = _flow(output, task.config, settings, prompt.time_shift)
    noise = ode.integrate(velocity, tokens.patches, times[::-1], **_solver(settings))
    return unpatchify(noise, grid, task.config.model.patch_size)


def density(
    task: Task, settings: SampleConfig, parameters: dict, latents: Latents, signs: Latents, prompt: Prompt
) -> Float[Array, " b"]:
    """log p of latents in nats, by Hutchinson's estimate with these signs."""
    tokens, _ = _tokens(latents, task.config)
    output = _output(task, settings, parameters, latents, tokens, prompt)
    velocity, times = _flow(output, task.config, settings, prompt.time_shift)
    of_signs, _ = _tokens(signs, task.config)
    found = log_likelihood(
        velocity, tokens.patches, of_signs.patches, times[::-1], mask=_is_patch(tokens), **_solver(settings)
    )
    return found.log_density


def _tokens(latents: Latents, config: Config) -> tuple[Tokens, Grid]:
    model = config.model
    return tokens_of(latents, patch_size=model.patch_size, nextline=model.nextline, nextframe=model.nextframe)


def _is_patch(tokens: Tokens) -> Float[Array, "b l 1"]:
    return jnp.asarray(tokens.kinds == Kind.PATCH, jnp.float32)[:, :, None]


def _output(
    task: Task, settings: SampleConfig, parameters: dict, latents: Latents, tokens: Tokens, prompt: Prompt
) -> Output:
    """The guided network as a function of time and patches; zero at markers."""
    config = task.config
    model: FlagDiT = nnx.merge(task.graph, parameters)
    size = Extent(*latents.shape[1:4])
    factor = extrapolation.rope_factor(settings, config.model, size, task.trained)
    base_length = extrapolation.base_length(settings, config.model, size, task.trained)
    both: Condition = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), prompt.condition, prompt.null)
    alone: Condition = prompt.condition
    if isinstance(both, TextFeatures) and isinstance(alone, TextFeatures):
        both, alone = model.encode_text(both), model.encode_text(alone)
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), tokens)
    is_patch = _is_patch(tokens)

    def call(tokens: Tokens, t: Float[Array, ""], condition: Condition) -> Float[Array, "b l p"]:
        rope = extrapolation.rope_scaling(factor, settings.rope_watershed, t)
        times = jnp.full((len(tokens.patches), 1), t)
        return model(tokens, times, condition, rope=rope, base_length=base_length)

    def output(t: Float[Array, ""], x: Float[Array, "b l p"]) -> Float[Array, "b l p"]:
        def plain() -> Float[Array, "b l p"]:
            return call(tokens._replace(patches=x), t, alone)

        def guided() -> Float[Array, "b l p"]:
            with_text, without_text = jnp.split(call(doubled._replace(patches=jnp.concatenate([x, x])), t, both), 2)
            return guidance.guide(
                with_text,
                without_text,
                prompt.guidance_scale,
                patch_size=config.model.patch_size,
                guided_channels=settings.guided_channels,
            )

        return is_patch * jax.lax.cond(prompt.guidance_scale == 1, plain, guided)

    return output


def _solver(settings: SampleConfig) -> dict[str, Any]:
    return {"solver": settings.solver, "rtol": settings.rtol, "atol": settings.atol}


def _flow(
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


def _stochastic(
    output: Output,
    x: Float[Array, "b l p"],
    keys: Key[Array, " b"],
    config: Config,
    settings: SampleConfig,
    time_shift: Float[Array, ""],
) -> Float[Array, "b l p"]:
    """From noise to data by the SDE with the same marginals."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction
    last = 0.0 if settings.last_step == "none" else settings.last_step_size
    start, end = paths.interval(path, prediction, sde=settings.diffusion, last_step_size=last, steps=settings.steps)
    draws = jax.vmap(lambda key: jax.random.normal(key, (settings.steps, *x.shape[1:])), out_axes=1)(keys)
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
        noise=draws,
    )
