"""From prompts to pictures and clips: the one file that touches every part.

In: a model, its text encoder, the autoencoders of its latents if it has any, and prompts. Out: samples as their
modality shows them, such as frames, uint8 [f h w 3]; or the noise that they come from, or their log density.
`sampler.py` holds the compiled programs: one for each shape, batch size and solver, which serves any prompts, seeds,
guidance scale and time shift.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key, Shaped
from PIL import Image

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.flow.likelihood import rademacher
from lumina_jax.generation.clips import check_clips
from lumina_jax.generation.composition import Composition, PictureRegion, check_captions, composition
from lumina_jax.generation.conditions import AnyCondition, condition_of, prompt_of
from lumina_jax.generation.drawing import Batches
from lumina_jax.generation.editing import Edit
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.following import Follower
from lumina_jax.generation.guided import Prompt, Task
from lumina_jax.generation.noise import origins
from lumina_jax.generation.not_drawn import NOT_DECODED, NotDrawn, lost_on_the_way
from lumina_jax.generation.originals import Mask, Source, check_resampling, originals
from lumina_jax.generation.programs import Programs, fixed, programs
from lumina_jax.generation.request import check_request, check_reversible, shortened
from lumina_jax.generation.sampler import Latents
from lumina_jax.generation.scenes import Scene
from lumina_jax.generation.style import Reference, StyleOf, check_reference
from lumina_jax.modalities import Modality, Shape, modality_of
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import axis_size
from lumina_jax.parallel.multihost import whole
from lumina_jax.seeds import key_of_seed

Sample = Shaped[np.ndarray, "..."]
"""Such as frames, uint8 [f h w 3], or the log mel spectrogram [t 80] of a sound."""

BATCH = 16
"""Samples drawn at once, unless another number is asked for."""


class DrawingOptions(TypedDict, total=False):
    """What `Pipeline.drawn` may be told by name besides prompts and settings; explained there."""

    seed: int
    seeds: Sequence[int] | None
    source: Source | Sequence[Source] | None
    mask: Mask | Sequence[Mask] | None
    strength: float | None
    also: Sequence[tuple[str, float]]
    regions: Sequence[PictureRegion]
    scenes: Sequence[Scene]
    scene_blend: int | None
    invert: str | Sequence[str] | None
    normalized: bool
    style: StyleOf | None
    shape: Shape | Sequence[Shape] | None
    batch: int | None
    modality: str | None


class Pipeline:
    """A trained model that draws samples from prompts.

        pictures = pipeline.pictures(["red heart, noto style"], seed=7)     # PIL images
        arrays = pipeline(["red heart, noto style"], seed=7)

    `parameters` may be replaced between calls without compiling again.
    """

    def __init__(
        self,
        config: Config,
        graph: nnx.GraphDef,
        parameters: dict,
        encoder: TextEncoder | None,
        autoencoders: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ):
        """A pipeline.

        Args:
          autoencoders: by the name of the modality; None: the model has none.
          mesh: the devices on which the parameters lie as in training; None: they lie on one.
        """
        self.config = config
        self.parameters = parameters
        self.step = 0
        """Steps of the optimiser that the parameters have taken, as far as is known."""
        self.mesh = mesh
        """The devices on which the parameters lie as in training; None: they lie on one."""
        self.least_batch = 1 if mesh is None else axis_size(mesh, "data", "fsdp")
        """Devices that share the samples of a batch."""
        self.follower: Follower | None = None
        """Who is told of samples while they are drawn on one device. Programs that are compiled do not change."""
        self.encoder = encoder
        self.autoencoders = {} if autoencoders is None else autoencoders
        self._graph = graph
        self._modalities: dict[int, Modality] = {}
        self._programs: dict[int, Programs] = {}

    def __call__(
        self,
        prompts: Sequence[str],
        settings: SampleConfig | None = None,
        **options: Unpack[DrawingOptions],
    ) -> list[Sample]:
        """One sample for each prompt, as `drawn` makes them; arguments as there.

        Raises:
          ValueError: as `drawn`, and for samples that are not finite, which it names.
        """
        found = dict(self.drawn(prompts, settings, **options))
        missing = {index: sample.reason for index, sample in found.items() if isinstance(sample, NotDrawn)}
        if missing:
            index = min(missing)
            raise ValueError(
                f"{len(missing)} of {len(prompts)} samples could not be drawn; that of {shortened(prompts[index])}: "
                f"{missing[index]}"
            )
        return [sample for _, sample in sorted(found.items(), key=lambda of: of[0]) if not isinstance(sample, NotDrawn)]

    def pictures(
        self,
        prompts: Sequence[str],
        settings: SampleConfig | None = None,
        **options: Unpack[DrawingOptions],
    ) -> list[Image.Image]:
        """One picture for each prompt: of a clip its frames side by side, of a sound its spectrogram.

        Arguments and errors as for a call.
        """
        modality = self.modality(options.get("modality"))
        return [Image.fromarray(modality.preview(sample)) for sample in self(prompts, settings, **options)]

    def drawn(
        self,
        prompts: Sequence[str],
        settings: SampleConfig | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        source: Source | Sequence[Source] | None = None,
        mask: Mask | Sequence[Mask] | None = None,
        strength: float | None = None,
        also: Sequence[tuple[str, float]] = (),
        regions: Sequence[PictureRegion] = (),
        scenes: Sequence[Scene] = (),
        scene_blend: int | None = None,
        invert: str | Sequence[str] | None = None,
        normalized: bool = False,
        style: StyleOf | None = None,
        shape: Shape | Sequence[Shape] | None = None,
        batch: int | None = None,
        modality: str | None = None,
    ) -> Iterator[tuple[int, Sample | NotDrawn]]:
        """Index and sample of each prompt, batch by batch; sample i depends on the seed, i and its prompt, not on its
        neighbours.

        Args:
          prompts: captions, or for a label-conditional model the numbers of labels.
          settings: None: those of the configuration.
          seed, seeds: of the noise, below 2**64; sample i is the first that seeds[i] draws alone, in such a batch.
          source: what is edited, one for all samples or a list of one for each, see `Source`.
          mask: True where it is drawn anew, [h w], [f h w] or of a sound [t]; None: everywhere.
          strength: how much is drawn anew: the path begins at 1 - strength. None: 1, for a mask or a short source.
          also: further captions of every sample and their weights; the prompt has the weight 1.
          regions: parts of every sample with captions of their own; later ones cover earlier ones.
          scenes, scene_blend: of every clip, instead of its prompt, and frames across seams, see `composition`.
          invert: what the source shows, one caption or one for each: samples begin with the noise that leads to it.
          normalized: each channel of the source's latents gets the mean 0 and the deviation 1: its colours go.
          style: what all samples are to look like, one of them or a source.
          shape: of all samples or of each, multiples of the pixels of a patch; None: as in training.
          batch: samples drawn at once, rounded up to a multiple of `least_batch`; the last batch of a shape is filled
            up, so that one program serves all. None: all prompts, but at most BATCH.
          modality: the modality of the model to draw; None: the first.

        Raises:
          ValueError: as `check_request`, `originals`, `composition` and `check_reference` and
            `check_clips`; it is raised here, before the first batch.
        """
        drawing, settings = self.modality(modality), self.config.sample if settings is None else settings
        shape = [drawing.shape_for(prompt, self.config.text) for prompt in prompts] if shape is None else shape
        shapes = [shape] * len(prompts) if isinstance(shape, Shape) else list(shape)
        asked: dict[str, Any] = {"modality": modality, "seed": seed, "seeds": seeds}
        check_request(self.config, settings, prompts, shapes, drawing.patch_extent, **asked)
        check_captions(self.config, also, regions, scenes)
        check_reference(style, invert, settings, shapes, drawing)
        check_clips(settings, shapes, has_style=style is not None, mesh=self.mesh)
        parts = (also, regions, scenes, scene_blend)
        composed = {wanted: composition(drawing, wanted, *parts) for wanted in dict.fromkeys(shapes)}
        edited = check_resampling(settings, originals(drawing, shapes, source, mask, strength, invert, normalized))
        begun = (origins(len(prompts), seed, seeds), edited, composed, style)
        batch = min(BATCH, len(prompts)) if batch is None else batch
        return Batches(self, drawing, prompts, settings, shapes, *begun).samples(batch + -batch % self.least_batch)

    def latents(
        self,
        noise: Latents,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        keys: Key[Array, " b"] | None = None,
        edit: Edit | None = None,
        composed: Composition | None = None,
        reference: Reference | None = None,
        modality: str | None = None,
    ) -> Latents:
        """What the model draws from this noise, or makes of a source; `keys` are for the stochastic solvers.

        Args:
          composed: the captions of each sample; None: its prompt alone.
          reference: whose style the samples have; None: nothing's.

        Raises:
          ValueError: the devices that share the samples do not divide their number.
        """
        keys = jax.random.split(jax.random.key(0), len(noise)) if keys is None else keys
        captions: Sequence[str | None] = (None,) if composed is None else composed.captions
        shares = composed.shares if composed is not None and len(captions) > 1 else None
        beside = (self.prompt(prompts, settings, captions), edit, shares, reference)
        return self._compiled(modality).draw(fixed(settings), self.parameters, noise, keys, *beside)

    def prompt(
        self, prompts: Sequence[str], settings: SampleConfig, captions: Sequence[str | None] = (None,)
    ) -> Prompt:
        """What steers a batch; `captions` are of all samples, None stands for the prompt of each."""
        return prompt_of(self.config, self.encoder, self._null, prompts, settings, captions)

    @functools.cached_property
    def _null(self) -> AnyCondition:
        """The empty prompt."""
        return condition_of(self.config, self.encoder, [""])

    def modality(self, name: str | None = None) -> Modality:
        """A modality of the model; None: the first. Errors as `modality_of`."""
        index = self.config.model.modality_index(name)
        if index not in self._modalities:
            self._modalities[index] = modality_of(self.config, self.config.model.modalities[index].name)
        return self._modalities[index]

    def _compiled(self, name: str | None) -> Programs:
        """The programs of a modality, which are compiled when they are first used."""
        modality = self.modality(name)
        if modality.index not in self._programs:
            trained = Extent(*modality.latent_size(modality.trained_shape)[:3])
            follower = self.follower if self.mesh is None else None
            task = Task(self._graph, self.config, trained, modality.index, follower=follower)
            self._programs[modality.index] = programs(task, self.mesh)
        return self._programs[modality.index]

    def decoded(self, latents: Latents, settings: SampleConfig, modality: Modality) -> list[Sample | NotDrawn]:
        """Samples of latents, or why there are none."""
        latents, autoencoder = whole(latents), self.autoencoders.get(modality.config.name)
        are_drawn = _finite_rows(latents)
        if autoencoder is not None:  # a sample that is not finite leaves the others alone
            latents = jnp.where(are_drawn[:, None, None, None, None], latents, 0)
        decoded = modality.from_latents(np.asarray(latents), autoencoder)
        are_decoded = _finite_rows(decoded)
        with np.errstate(invalid="ignore"):
            shown = modality.shown(decoded)
        lost = lost_on_the_way(settings)
        return [
            sample if is_drawn and is_decoded else NotDrawn(NOT_DECODED if is_drawn else lost)
            for sample, is_drawn, is_decoded in zip(shown, are_drawn, are_decoded)
        ]

    def invert(
        self, latents: Latents, prompts: Sequence[str], settings: SampleConfig, *, modality: str | None = None
    ) -> Latents:
        """The noise from which these latents are drawn: the same path, from data to noise.

        Raises:
          ValueError: the solver is a stochastic one, whose path can't be walked back.
        """
        check_reversible(settings)
        return self._compiled(modality).invert(
            fixed(settings), self.parameters, latents, self.prompt(prompts, settings)
        )

    def log_density(
        self,
        latents: Latents,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        seed: int,
        modality: str | None = None,
    ) -> Float[Array, " b"]:
        """log p(latents | prompt) in nats; the seed is of the estimate of the divergence.

        Raises:
          ValueError: the solver is a stochastic one.
        """
        check_reversible(settings)
        signs = rademacher(key_of_seed(seed), latents.shape)
        prompt = self.prompt(prompts, settings)
        return self._compiled(modality).density(fixed(settings), self.parameters, latents, signs, prompt)


def new_pipeline(
    config: Config,
    parameters: dict[str, Any] | None,
    encoder: TextEncoder | None,
    autoencoders: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Pipeline:
    """A pipeline for a model of this configuration; `parameters` may follow later, on the devices of `mesh`."""
    return Pipeline(config, abstract_model(config.model)[0], parameters or {}, encoder, autoencoders, mesh)


def _finite_rows(values: Float[jax.Array | np.ndarray, "b ..."]) -> Bool[np.ndarray, " b"]:
    """Which samples of a batch are finite."""
    return np.asarray(jnp.isfinite(values).all(axis=tuple(range(1, values.ndim))))
