"""From prompts to pictures: the one file that touches every part.

In: a run folder (or a model and its text encoder) and prompts. Out: pictures, uint8 [h w 3].
One compiled program per picture shape, batch and solver draws the noise, encodes the captions' keys and values once,
walks the ODE or SDE and returns latents; prompts, seeds, guidance scale and time shift are its inputs, so they never
compile again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.flow import guidance, ode, paths, sde, timesteps
from lumina_jax.models.flag_dit import Condition, FlagDiT
from lumina_jax.tokens import TextFeatures, tokens_of, unit_to_pixels, unpatchify


class Shape(NamedTuple):
    """Pixels of a picture."""

    height: int
    width: int


class Pipeline:
    """A trained model ready to draw.

    `parameters` may be replaced between calls (a training run shows its average so) without compiling again.
    """

    def __init__(self, config: Config, graph: nnx.GraphDef, parameters: dict, encoder: TextEncoder | None):
        self.config = config
        self.parameters = parameters
        self._encoder = encoder
        self._draw = jax.jit(functools.partial(_draw, graph, config), static_argnames=("shape", "settings"))

    def __call__(
        self,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        seed: int,
        shape: Shape,
        batch: int,
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """One picture for each prompt; picture i depends on the seed, i and its prompt, not on its neighbours.

        Args:
          prompts: captions, or for a label-conditional model the numbers of labels.
          seed: of the noise.
          shape: of the pictures; a multiple of the patch size.
          batch: pictures drawn at once; the last batch is filled up, so that one program serves all.

        Raises:
          ValueError: the shape does not fit the patches, or a prompt is no label of a label-conditional model.
        """
        check_shape(shape, self.config.model.patch_size)
        condition = self._condition([*prompts, *[""] * (-len(prompts) % batch)])
        null = self._condition([""] * batch)
        pictures: list[np.ndarray] = []
        for start in range(0, len(prompts), batch):
            rows = jnp.arange(start, start + batch)
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)
            chosen = jax.tree.map(lambda x, start=start: x[start : start + batch], condition)
            scale, shift = jnp.float32(settings.guidance), jnp.float32(settings.time_shift)
            latents = self._draw(
                self.parameters, keys, chosen, null, scale, shift, shape=shape, settings=_static(settings)
            )
            pictures.extend(unit_to_pixels(np.asarray(latents[:, 0])))
        return pictures[: len(prompts)]

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._draw._cache_size()  # type: ignore[attr-defined]

    def _condition(self, prompts: Sequence[str]) -> Condition:
        if self._encoder is not None:
            return jax.tree.map(jnp.asarray, self._encoder.encode(prompts))
        return jnp.asarray([[_label(prompt, self.config.model.classes)] for prompt in prompts])


def check_shape(shape: Shape, patch_size: int) -> None:
    if shape.height % patch_size or shape.width % patch_size or min(shape) < patch_size:
        raise ValueError(
            f"height and width must be positive multiples of the {patch_size=} of the model, but the size is "
            f"{shape.height} x {shape.width}"
        )


def _label(prompt: str, classes: int) -> int:
    """The number of a label; the empty prompt is the row for 'no label'."""
    if not prompt:
        return classes
    if not prompt.isdecimal() or int(prompt) >= classes:
        raise ValueError(f"a label-conditional model is prompted by a label from 0 to {classes - 1}, but got {prompt=}")
    return int(prompt)


def _static(settings: SampleConfig) -> SampleConfig:
    """The settings that shape the program; those that are inputs of it are set to fixed values."""
    return dataclasses.replace(settings, guidance=1.0, time_shift=1.0)


def _draw(
    graph: nnx.GraphDef,
    config: Config,
    parameters: dict,
    keys: Key[Array, " b"],
    condition: TextFeatures | Int[Array, "b 1"],
    null: TextFeatures | Int[Array, "b 1"],
    guidance_scale: Float[Array, ""],
    time_shift: Float[Array, ""],
    *,
    shape: Shape,
    settings: SampleConfig,
) -> Float[Array, "b f h w c"]:
    """Noise to latents, in one program."""
    model: FlagDiT = nnx.merge(graph, parameters)
    of_start, of_path = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    noise = jax.vmap(lambda key: jax.random.normal(key, (1, *shape, config.model.channels)))(of_start)
    tokens, grid = tokens_of(
        noise, patch_size=config.model.patch_size, nextline=config.model.nextline, nextframe=config.model.nextframe
    )
    both: Condition = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)
    alone: Condition = condition
    if isinstance(both, TextFeatures) and isinstance(alone, TextFeatures):
        both, alone = model.encode_text(both), model.encode_text(alone)
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), tokens)

    def output(t: Float[Array, ""], x: Float[Array, "b l p"]) -> Float[Array, "b l p"]:
        def plain() -> Float[Array, "b l p"]:
            return model(tokens._replace(patches=x), jnp.full((len(x), 1), t), alone)

        def guided() -> Float[Array, "b l p"]:
            twice = jnp.concatenate([x, x])
            outputs = model(doubled._replace(patches=twice), jnp.full((len(twice), 1), t), both)
            with_text, without_text = jnp.split(outputs, 2)
            return guidance.guide(
                with_text,
                without_text,
                guidance_scale,
                patch_size=config.model.patch_size,
                guided_channels=settings.guided_channels,
            )

        return jax.lax.cond(guidance_scale == 1, plain, guided)

    return unpatchify(
        _walk(output, tokens.patches, of_path, config, settings, time_shift), grid, config.model.patch_size
    )


def _walk(
    output: Callable[[Float[Array, ""], Float[Array, "b l p"]], Float[Array, "b l p"]],
    x: Float[Array, "b l p"],
    keys: Key[Array, " b"],
    config: Config,
    settings: SampleConfig,
    time_shift: Float[Array, ""],
) -> Float[Array, "b l p"]:
    """From noise to data along the path the model was trained on."""
    path, prediction = paths.path(config.flow.path), config.flow.prediction

    def velocity(t: Float[Array, ""], x: Float[Array, "b l p"], _: None) -> Float[Array, "b l p"]:
        return paths.velocity_from(prediction, path, output(t, x), x, t)

    unit_grid = timesteps.sampling_grid(settings.steps, shift=time_shift)
    if settings.solver not in ("euler_maruyama", "sde_heun"):
        start, end = paths.interval(path, prediction)
        grid = start + (end - start) * unit_grid
        return ode.integrate(velocity, x, grid, solver=settings.solver, rtol=settings.rtol, atol=settings.atol)
    last = 0.0 if settings.last_step == "none" else settings.last_step_size
    start, end = paths.interval(path, prediction, sde=settings.diffusion, last_step_size=last, steps=settings.steps)
    draws = jax.vmap(lambda key: jax.random.normal(key, (settings.steps, *x.shape[1:])), out_axes=1)(keys)
    return sde.integrate(
        velocity,
        x,
        start + (end - start) * unit_grid,
        path=path,
        solver=settings.solver,
        form=settings.diffusion,
        norm=settings.diffusion_norm,
        last_step=settings.last_step,
        last_step_size=settings.last_step_size,
        noise=draws,
    )
