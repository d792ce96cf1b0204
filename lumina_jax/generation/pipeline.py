"""From prompts to pictures and clips: the one file that touches every part.

In: a model, its text encoder, the autoencoder of its latents if it has one, and prompts. Out: frames, uint8 [f h w 3],
one of a picture, or for a sound its log mel spectrogram; or the noise that they come from, or their log density.
`sampler.py` holds the compiled programs: one for each shape, batch and solver, whatever the prompts, seeds, guidance
scale and time shift.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lumina_jax.config import Config, SampleConfig, SoundConfig, VisualConfig
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.encoders.sound_vae import SoundVae
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.flow.likelihood import rademacher
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.generation import sampler
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.request import Shape as Shape
from lumina_jax.generation.request import check_request, label_of, shortened
from lumina_jax.generation.sampler import Latents, Prompt, Task
from lumina_jax.mel import QUIET, frames_of, unit_to_mel, whole_frames
from lumina_jax.models.division import division, parameter_shardings
from lumina_jax.parallel.mesh import axis_size
from lumina_jax.parallel.multihost import whole
from lumina_jax.seeds import key_of_seed
from lumina_jax.tokens import TextFeatures, unit_to_pixels

Sample = UInt8[np.ndarray, "_ _ _ 3"] | Float[np.ndarray, "_ 80"]
"""Frames, or the log mel spectrogram of a sound."""


NOT_DECODED = "the autoencoder makes values of it that are not finite; check the files in vae.path"


class NotDrawn(NamedTuple):
    """In the place of a sample whose values are not finite."""

    reason: str


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
        self.encoder = encoder
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
        """One sample for each prompt, as `drawn` makes them.

        Raises:
          ValueError: as `drawn`, and for samples that are not finite, which it names.
        """
        found = dict(self.drawn(prompts, settings, seed=seed, shape=shape, batch=batch, modality=modality))
        missing = {index: sample.reason for index, sample in found.items() if isinstance(sample, NotDrawn)}
        if missing:
            index = min(missing)
            raise ValueError(
                f"{len(missing)} of {len(prompts)} samples could not be drawn; that of {shortened(prompts[index])}: "
                f"{missing[index]}"
            )
        return [sample for _, sample in sorted(found.items(), key=lambda of: of[0]) if not isinstance(sample, NotDrawn)]

    def drawn(
        self,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        seed: int,
        shape: Shape | Sequence[Shape],
        batch: int,
        modality: str | None = None,
    ) -> Iterator[tuple[int, Sample | NotDrawn]]:
        """Index and sample of each prompt, batch by batch; sample i depends on the seed, i and its prompt, not on its
        neighbours.

        Args:
          prompts: captions, or for a label-conditional model the numbers of labels.
          seed: of the noise, from 0 to 2**64 - 1.
          shape: of all samples or of each; height and width are multiples of the pixels of a patch.
          batch: samples drawn at once, rounded up to a multiple of `least_batch`; the last batch of a shape is filled
            up, so that one program serves all.
          modality: which of the model's to draw; None: its own.

        Raises:
          ValueError: what is asked for cannot be drawn: see `check_request`. It is raised here, before the first batch.
        """
        own = [shape] * len(prompts) if isinstance(shape, Shape) else list(shape)
        check_request(self.config, settings, prompts, own, self._unit(modality), modality=modality, seed=seed)
        batch += -batch % self.least_batch

        def batches() -> Iterator[tuple[int, Sample | NotDrawn]]:
            for wanted in dict.fromkeys(own):
                places = [place for place, of_place in enumerate(own) if of_place == wanted]
                for start in range(0, len(places), batch):
                    chosen = places[start : start + batch]
                    filled = [*chosen, *chosen[-1:] * (batch - len(chosen))]
                    of_sample = jax.vmap(functools.partial(jax.random.fold_in, key_of_seed(seed)))
                    noise, keys = _noise(of_sample(jnp.asarray(filled)), self._latent_size(wanted, modality))
                    texts = [prompts[place] for place in filled]
                    latents = self.latents(noise, texts, settings, keys=keys, modality=modality)
                    yield from zip(chosen, self._decoded(latents, settings, modality))

        return batches()

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
        if isinstance(self.config.data_of(modality).media, SoundConfig):
            return 1, self._factor
        side = self.config.model.modality_of(modality).patch_size * self._factor
        return side, side

    def _latent_size(self, shape: Shape, modality: str | None) -> tuple[int, ...]:
        """Of the latents [f h w c] of a sample."""
        high = 1 if isinstance(self.config.data_of(modality).media, SoundConfig) else self._factor
        channels = self.config.model.modality_of(modality).channels
        return (shape.frames, shape.height // high, shape.width // self._factor, channels)

    def _decoded(self, latents: Latents, settings: SampleConfig, modality: str | None) -> list[Sample | NotDrawn]:
        """Samples of latents. An autoencoder decodes frames one after another, so memory is that of one."""
        latents = whole(latents)
        are_drawn = _finite_rows(latents)
        is_sound = isinstance(self.config.data_of(modality).media, SoundConfig)
        if self._vae is not None:  # a sample that is not finite leaves the others alone
            latents = jnp.where(are_drawn[:, None, None, None, None], latents, 0)
        if is_sound:
            values = np.asarray(latents)[:, 0, 0]
            decoded = values if self._vae is None else np.asarray(self._vae.decode(values))
        elif self._vae is not None:
            frames = [np.asarray(self._vae.decode(frame)) for frame in jnp.unstack(latents, axis=1)]
            decoded = np.stack(frames, axis=1)
        else:
            decoded = np.asarray(latents)
        are_decoded = _finite_rows(decoded)
        with np.errstate(invalid="ignore"):
            if is_sound:
                shown = unit_to_mel(decoded) if self._vae is None else np.maximum(decoded, np.float32(QUIET))
            else:
                shown = unit_to_pixels(decoded)
        lost = _lost_on_the_way(settings)
        return [
            sample if is_drawn and is_decoded else NotDrawn(NOT_DECODED if is_drawn else lost)
            for sample, is_drawn, is_decoded in zip(shown, are_drawn, are_decoded)
        ]

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
        if self.encoder is not None:
            return jax.tree.map(np.asarray, self.encoder.encode(prompts))  # on no device: the model may be on others
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
    media = config.data_of(config.model.modalities[place].name).media
    if isinstance(media, SoundConfig):
        frames = frames_of(media.seconds, media.sample_rate)
        return Extent(1, 1, frames if factor == 1 else whole_frames(frames, factor) // factor)
    assert isinstance(media, VisualConfig)
    frames, height, width = media.extent()
    return Extent(frames, height // factor, width // factor)


@functools.partial(jax.jit, static_argnums=1)
def _noise(keys: Key[Array, " b"], size: tuple[int, ...]) -> tuple[Latents, Key[Array, " b"]]:
    """The noise that each key stands for, and a key for the path from there."""
    of_start, of_path = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    return jax.vmap(lambda key: jax.random.normal(key, size))(of_start), of_path


def _finite_rows(values: Float[jax.Array | np.ndarray, "b ..."]) -> Bool[np.ndarray, " b"]:
    """Which samples of a batch are finite."""
    return np.asarray(jnp.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def _lost_on_the_way(settings: SampleConfig) -> str:
    """Why the latents of a sample are not finite, and what helps."""
    if settings.solver in SOLVERS and SOLVERS[settings.solver].adaptive:
        return (
            f"the solver {settings.solver} found no steps that keep its errors below {settings.rtol=} and "
            f"{settings.atol=}; allow larger ones, such as --rtol 0.01, or use fixed steps: --solver midpoint"
        ).replace("settings.", "")
    return "its values are not finite; use less guidance, more steps or another solver, or check the weights"


def _check_reversible(settings: SampleConfig) -> None:
    if settings.solver in sampler.STOCHASTIC:
        raise ValueError(
            f"only the probability flow can be walked back, but solver={settings.solver!r} is stochastic; choose an "
            "ODE solver such as midpoint or dopri5"
        )


def _static(settings: SampleConfig) -> SampleConfig:
    """The settings that shape the program; those that are inputs of it are set to fixed values."""
    return dataclasses.replace(settings, guidance=1.0, time_shift=1.0)
