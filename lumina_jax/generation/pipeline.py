"""From prompts to pictures and clips: the one file that touches every part.

In: a model, its text encoder, the autoencoder of its latents if it has one, and prompts. Out: frames, uint8 [f h w 3],
one of a picture, or for a sound its log mel spectrogram; or the noise that they come from, or their log density.
`sampler.py` holds the compiled programs: one for each shape, batch and solver, whatever the prompts, seeds, guidance
scale and time shift.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.encoders.sound_vae import SoundVae
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.flow.likelihood import rademacher
from lumina_jax.generation import sampler
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.request import Shape as Shape
from lumina_jax.generation.request import check_request, label_of
from lumina_jax.generation.sampler import Latents, Prompt, Task
from lumina_jax.mel import QUIET, frames_of, unit_to_mel, whole_frames
from lumina_jax.models.division import division, parameter_shardings
from lumina_jax.parallel.mesh import axis_size
from lumina_jax.parallel.multihost import whole
from lumina_jax.seeds import key_of_seed
from lumina_jax.tokens import TextFeatures, unit_to_pixels

Sample = UInt8[np.ndarray, "_ _ _ 3"] | Float[np.ndarray, "_ 80"]
"""Frames, or the log mel spectrogram of a sound."""


class Pipeline:
    """A trained model ready to draw.

    `parameters` may be replaced between calls (a training run shows its average so) without compiling again.
    """

    def __init__(
        self,
        config: Config,
        graph: nnx.GraphDef,
        parameters: dict,
        encoder: TextEncoder | None,
        vae: ImageVae | SoundVae | None = None,
        mesh: Mesh | None = None,
    ):
        """`mesh` has the devices on which the parameters lie as in training; None: there is one."""
        divided = None if mesh is None else division(config, mesh, parameter_shardings(config.model, mesh))
        self.config = config
        self.parameters = parameters
        self.least_batch = 1 if mesh is None else axis_size(mesh, "data", "fsdp")
        """Devices that share the samples of a batch."""
        self._encoder = encoder
        self._vae = vae
        self._factor = 1 if vae is None else vae.factor
        self._programs = [
            _compiled(Task(graph, config, _trained(config, place, self._factor), place, divided))
            for place in range(len(config.model.modalities))
        ]

    def __call__(
        self,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        seed: int,
        shape: Shape | Sequence[Shape],
        batch: int,
        modality: str | None = None,
    ) -> list[Sample]:
        """One sample for each prompt; sample i depends on the seed, i and its prompt, not on its neighbours.

        Args:
          prompts: captions, or for a label-conditional model the numbers of labels.
          seed: of the noise.
          shape: of all samples or of each; height and width are multiples of the pixels of a patch.
          batch: samples drawn at once, rounded up to a multiple of `least_batch`; the last batch of a shape is filled
            up, so that one program serves all.
          modality: which of the model's to draw; None: its own.

        Raises:
          ValueError: the shape does not fit the patches, a prompt is no label of a label-conditional model, or the
            model has no such modality.
        """
        batch += -batch % self.least_batch
        own = [shape] * len(prompts) if isinstance(shape, Shape) else list(shape)
        found: dict[int, Sample] = {}
        check_request(self.config, settings, prompts, own, self._unit(modality), modality=modality, seed=seed)
        for wanted in dict.fromkeys(own):
            places = [place for place, of_place in enumerate(own) if of_place == wanted]
            for start in range(0, len(places), batch):
                chosen = places[start : start + batch]
                filled = [*chosen, *chosen[-1:] * (batch - len(chosen))]
                of_sample = jax.vmap(functools.partial(jax.random.fold_in, key_of_seed(seed)))
                noise, keys = _noise(of_sample(jnp.asarray(filled)), self._latent_size(wanted, modality))
                texts = [prompts[place] for place in filled]
                latents = self.latents(noise, texts, settings, keys=keys, modality=modality)
                found.update(zip(chosen, self._decoded(latents, modality)))
        return [found[place] for place in range(len(prompts))]

    def latents(
        self,
        noise: Latents,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        keys: Key[Array, " b"] | None = None,
        modality: str | None = None,
    ) -> Latents:
        """What the model draws from this noise; `keys` are for the stochastic solvers.

        Raises:
          ValueError: the devices that share the samples do not divide their number.
        """
        keys = jax.random.split(jax.random.key(0), len(noise)) if keys is None else keys
        programs = self._programs[self.config.model.place(modality)]
        return programs.draw(_static(settings), self.parameters, noise, keys, self._prompt(prompts, settings))

    def _unit(self, modality: str | None) -> tuple[int, int]:
        """Pixels of a patch along height and width, or for a sound 1 and the frames of a value of its latent."""
        if self.config.data_of(modality).seconds is not None:
            return 1, self._factor
        side = self.config.model.modality_of(modality).patch_size * self._factor
        return side, side

    def _latent_size(self, shape: Shape, modality: str | None) -> tuple[int, ...]:
        """Of the latents [f h w c] of a sample."""
        high = 1 if self.config.data_of(modality).seconds is not None else self._factor
        channels = self.config.model.modality_of(modality).channels
        return (shape.frames, shape.height // high, shape.width // self._factor, channels)

    def _decoded(self, latents: Latents, modality: str | None) -> Iterable[Sample]:
        """Samples of latents. An autoencoder decodes frames one after another, so memory is that of one."""
        latents = whole(latents)
        if self.config.data_of(modality).seconds is not None:
            values = np.asarray(latents)[:, 0, 0]
            if self._vae is None:
                return list(unit_to_mel(values))
            return list(np.maximum(np.asarray(self._vae.decode(values)), np.float32(QUIET)))
        if self._vae is not None:
            frames = [np.asarray(self._vae.decode(frame)) for frame in jnp.unstack(latents, axis=1)]
            latents = np.stack(frames, axis=1)
        return list(unit_to_pixels(np.asarray(latents)))

    def invert(self, latents: Latents, prompts: Sequence[str], settings: SampleConfig) -> Latents:
        """The noise from which these latents are drawn: the same path, from data to noise.

        Raises:
          ValueError: the solver is a stochastic one, whose path can't be walked back.
        """
        _check_reversible(settings)
        return self._programs[0].invert(_static(settings), self.parameters, latents, self._prompt(prompts, settings))

    def log_density(
        self, latents: Latents, prompts: Sequence[str], settings: SampleConfig, *, seed: int
    ) -> Float[Array, " b"]:
        """log p(latents | prompt) in nats; the seed is of the estimate of the divergence.

        Raises:
          ValueError: the solver is a stochastic one.
        """
        _check_reversible(settings)
        signs = rademacher(key_of_seed(seed), latents.shape)
        prompt = self._prompt(prompts, settings)
        return self._programs[0].density(_static(settings), self.parameters, latents, signs, prompt)

    @property
    def compilations(self) -> int:
        """Drawing programs compiled so far."""
        return sum(programs.draw._cache_size() for programs in self._programs)

    def _prompt(self, prompts: Sequence[str], settings: SampleConfig) -> Prompt:
        scale, shift = jnp.float32(settings.guidance), jnp.float32(settings.time_shift)
        null = jax.tree.map(lambda x: jnp.repeat(x, len(prompts), axis=0), self._null)
        return Prompt(self._condition(prompts), null, scale, shift)

    @functools.cached_property
    def _null(self) -> TextFeatures | Int[Array, "1 1"]:
        """The empty prompt."""
        return self._condition([""])

    def _condition(self, prompts: Sequence[str]) -> TextFeatures | Int[Array, "b 1"]:
        if self._encoder is not None:
            return jax.tree.map(np.asarray, self._encoder.encode(prompts))  # on no device: the model may be on others
        return jnp.asarray([[label_of(prompt, self.config.model.classes)] for prompt in prompts])


class _Programs(NamedTuple):
    """The compiled programs of one modality."""

    draw: Any
    invert: Any
    density: Any


def _compiled(task: Task) -> _Programs:
    programs = (sampler.draw, sampler.invert, sampler.density)
    return _Programs(*(jax.jit(functools.partial(program, task), static_argnums=0) for program in programs))


def _trained(config: Config, place: int, factor: int) -> Extent:
    """The extent of the latents that a modality is trained on, of those of its first source."""
    data = config.data_of(config.model.modalities[place].name)
    if data.seconds is not None:
        frames = frames_of(data.seconds, data.sample_rate)
        return Extent(1, 1, frames if factor == 1 else whole_frames(frames, factor) // factor)
    frames, height, width = data.extent()
    return Extent(frames, height // factor, width // factor)


@functools.partial(jax.jit, static_argnums=1)
def _noise(keys: Key[Array, " b"], size: tuple[int, ...]) -> tuple[Latents, Key[Array, " b"]]:
    """The noise that each key stands for, and a key for the path from there."""
    of_start, of_path = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    return jax.vmap(lambda key: jax.random.normal(key, size))(of_start), of_path


def _check_reversible(settings: SampleConfig) -> None:
    if settings.solver in sampler.STOCHASTIC:
        raise ValueError(
            f"only the probability flow can be walked back, but solver={settings.solver!r} is stochastic; choose an "
            "ODE solver such as midpoint or dopri5"
        )


def _static(settings: SampleConfig) -> SampleConfig:
    """The settings that shape the program; those that are inputs of it are set to fixed values."""
    return dataclasses.replace(settings, guidance=1.0, time_shift=1.0)
