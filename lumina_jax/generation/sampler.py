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

from lumina_jax.config import Config, Modality, SampleConfig
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
    place: int = 0
    """Of the modality in those of the model."""

    @property
    def modality(self) -> Modality:
        return self.config.model.modalities[self.place]


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
    tokens, grid = _tokens(noise, task)
    output = _output(task, settings, parameters, noise, tokens, prompt)
    if settings.solver in STOCHASTIC:
        x = _stochastic(output, tokens.patches, keys, task.config, settings, prompt.time_shift)
    else:
        velocity, times = _flow(output, task.config, settings, prompt.time_shift)
        x = ode.integrate(velocity, tokens.patches, times, **_solver(settings))
    return _latents(x, grid, task)


def invert(task: Task, settings: SampleConfig, parameters: dict, latents: Latents, prompt: Prompt) -> Latents:
    """Latents to the noise from which an ODE solver draws them."""
    tokens, grid = _tokens(latents, task)
    output = _output(task, settings, parameters, latents, tokens, prompt)
    velocity, times = _flow(output, task.config, settings, prompt.time_shift)
    noise = ode.integrate(velocity, tokens.patches, times[::-1], **_solver(settings))
    return _latents(noise, grid, task)


def density(
    task: Task, settings: SampleConfig, parameters: dict, latents: Latents, signs: Latents, prompt: Prompt
) -> Float[Array, " b"]:
    """log p of latents in nats, by Hutchinson's estimate with these signs."""
    tokens, _ = _tokens(latents, task)
    output = _output(task, settings, parameters, latents, tokens, prompt)
    velocity, times = _flow(output, task.config, settings, prompt.time_shift)
    of_signs, _ = _tokens(signs, task)
    found = log_likelihood(
        velocity, tokens.patches, of_signs.patches, times[::-1], mask=_counts(tokens, task), **_solver(settings)
    )
    return found.log_density


def _tokens(latents: Latents, task: Task) -> tuple[Tokens, Grid]:
    """Tokens of latents; where the model has several modalities, with patches as wide as the widest."""
    model = task.config.model
    tokens, grid = tokens_of(
        latents, patch_size=task.modality.patch_size, nextline=model.nextline, nextframe=model.nextframe
    )
    if not model.others:
        return tokens, grid
    missing = model.patch_values - task.modality.patch_values
    patches = jnp.pad(jnp.asarray(tokens.patches), ((0, 0), (0, 0), (0, missing)))
    return tokens._replace(patches=patches, modalities=jnp.full(tokens.kinds.shape, task.place)), grid


def _latents(patches: Float[Array, "b l p"], grid: Grid, task: Task) -> Latents:
    """The inverse of `_tokens`."""
    return unpatchify(patches[:, :, : task.modality.patch_values], grid, task.modality.patch_size)


def _counts(tokens: Tokens, task: Task) -> Float[Array, "b l _"]:
    """1 for the values of patches, 0 at markers and where a patch is filled up."""
    is_patch = jnp.asarray(tokens.kinds == Kind.PATCH, jnp.float32)[:, :, None]
    if not task.config.model.others:
        return is_patch
    return is_patch * (jnp.arange(task.config.model.patch_values) < task.modality.patch_values)


def _output(
    task: Task, settings: SampleConfig, parameters: dict, latents: Latents, tokens: Tokens, prompt: Prompt
) -> Output:
    """The guided network as a function of time and patches; zero at markers."""
    config = task.config
    model: FlagDiT = nnx.merge(task.graph, parameters)
    size = Extent(*latents.shape[1:4])
    factor = extrapolation.rope_factor(settings, config.model, size, task.trained)
    base_length = extrapolation.base_length(settings, config.model, task.modality, size, task.trained)
    both: Condition = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), prompt.condition, prompt.null)
    alone: Condition = prompt.condition
    if isinstance(both, TextFeatures) and isinstance(alone, TextFeatures):
        both, alone = model.encode_text(both), model.encode_text(alone)
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), tokens)
    counts = _counts(tokens, task)

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
                patch_size=task.modality.patch_size,
                guided_channels=settings.guided_channels,
            )

        return counts * jax.lax.cond(prompt.guidance_scale == 1, plain, guided)

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
