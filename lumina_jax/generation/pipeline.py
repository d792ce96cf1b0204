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
from jaxtyping import Array, Bool, Float, Int, Key, Shaped
from PIL import Image

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.flow.likelihood import rademacher
from lumina_jax.generation.composition import Composition, PictureRegion, check_captions, composition
from lumina_jax.generation.editing import Edit
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.guided import Prompt, Task
from lumina_jax.generation.noise import noise_of, origins
from lumina_jax.generation.not_drawn import NOT_DECODED, NotDrawn, lost_on_the_way
from lumina_jax.generation.originals import Mask, Source, originals
from lumina_jax.generation.programs import Programs, fixed, programs
from lumina_jax.generation.request import check_request, check_reversible, label_of, shortened
from lumina_jax.generation.sampler import Latents
from lumina_jax.modalities import Modality, Shape, modality_of
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import axis_size
from lumina_jax.parallel.multihost import whole
from lumina_jax.seeds import key_of_seed
from lumina_jax.tokens import TextFeatures

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
        shape: Shape | Sequence[Shape] | None = None,
        batch: int | None = None,
        modality: str | None = None,
    ) -> Iterator[tuple[int, Sample | NotDrawn]]:
        """Index and sample of each prompt, batch by batch; sample i depends on the seed, i and its prompt, not on its
        neighbours.

        Args:
          prompts: captions, or for a label-conditional model the numbers of labels.
          settings: None: those of the configuration.
          seed: of the noise, from 0 to 2**64 - 1.
          seeds: one for each prompt, instead of `seed`: sample i is the first one that seeds[i] draws alone, with the
            same `batch`.
          source: what is edited, one for all samples or a list of one for each, see `Source`.
          mask: True where it is drawn anew, [h w], [f h w] or of a sound [t]; None: everywhere.
          strength: how much is drawn anew, from 0 to 1: the path begins at the time 1 - strength. None: 1, which
            needs a mask or a source that is shorter than what is drawn.
          also: further captions of every sample and their weights; the prompt has the weight 1.
          regions: parts of every sample with captions of their own; later ones cover earlier ones.
          shape: of all samples or of each, multiples of the pixels of a patch; None: as in training.
          batch: samples drawn at once, rounded up to a multiple of `least_batch`; the last batch of a shape is filled
            up, so that one program serves all. None: all prompts, but at most BATCH.
          modality: the modality of the model to draw; None: the first.

        Raises:
          ValueError: as `check_request`, `originals` and `composition`; it is raised here, before the first batch.
        """
        drawing, settings = self.modality(modality), self.config.sample if settings is None else settings
        shape = [drawing.shape_for(prompt, self.config.text) for prompt in prompts] if shape is None else shape
        shapes = [shape] * len(prompts) if isinstance(shape, Shape) else list(shape)
        check_request(
            self.config, settings, prompts, shapes, drawing.patch_extent, modality=modality, seed=seed, seeds=seeds
        )
        check_captions(self.config, also, regions)
        composed = {wanted: composition(drawing, wanted, also, regions) for wanted in dict.fromkeys(shapes)}
        edited, of_sample = originals(drawing, shapes, source, mask, strength), origins(len(prompts), seed, seeds)
        batch = min(BATCH, len(prompts)) if batch is None else batch
        batch += -batch % self.least_batch

        def samples() -> Iterator[tuple[int, Sample | NotDrawn]]:
            for wanted, chosen, filled in _batches(shapes, batch):
                noise, keys = noise_of([of_sample[index] for index in filled], drawing.latent_size(wanted))
                edit = edited and edited.edit(filled, wanted, drawing, self.autoencoders.get(drawing.config.name))
                texts, parts = [prompts[index] for index in filled], composed[wanted]
                latents = self.latents(noise, texts, settings, keys=keys, edit=edit, composed=parts, modality=modality)
                yield from zip(chosen, self._decoded(latents, settings, drawing))

        return samples()

    def latents(
        self,
        noise: Latents,
        prompts: Sequence[str],
        settings: SampleConfig,
        *,
        keys: Key[Array, " b"] | None = None,
        edit: Edit | None = None,
        composed: Composition | None = None,
        modality: str | None = None,
    ) -> Latents:
        """What the model draws from this noise, or makes of a source; `keys` are for the stochastic solvers.

        Args:
          composed: the captions of each sample; None: its prompt alone.

        Raises:
          ValueError: the devices that share the samples do not divide their number.
        """
        keys = jax.random.split(jax.random.key(0), len(noise)) if keys is None else keys
        captions: Sequence[str | None] = (None,) if composed is None else composed.captions
        shares = composed.shares if composed is not None and len(captions) > 1 else None
        prompt = self._prompt(prompts, settings, captions)
        return self._compiled(modality).draw(fixed(settings), self.parameters, noise, keys, prompt, edit, shares)

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
            task = Task(self._graph, self.config, trained, modality.index)
            self._programs[modality.index] = programs(task, self.mesh)
        return self._programs[modality.index]

    def _decoded(self, latents: Latents, settings: SampleConfig, modality: Modality) -> list[Sample | NotDrawn]:
        """Samples of latents."""
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
            fixed(settings), self.parameters, latents, self._prompt(prompts, settings)
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
        prompt = self._prompt(prompts, settings)
        return self._compiled(modality).density(fixed(settings), self.parameters, latents, signs, prompt)

    def _prompt(
        self, prompts: Sequence[str], settings: SampleConfig, captions: Sequence[str | None] = (None,)
    ) -> Prompt:
        """What steers a batch; `captions` are of all samples, None stands for the prompt of each."""
        scale, shift = jnp.float32(settings.guidance), jnp.float32(settings.time_shift)
        negative = self._condition([settings.negative]) if settings.negative else self._null

        def for_each(condition: TextFeatures | Int[Array, "1 1"]) -> TextFeatures | Int[Array, "b 1"]:
            return jax.tree.map(lambda x: jnp.repeat(x, len(prompts), axis=0), condition)

        texts = (prompts if caption is None else [caption] * len(prompts) for caption in captions)
        condition, *others = [self._condition(of_each) for of_each in texts]
        if settings.negative_scale is None:
            return Prompt(condition, for_each(negative), scale, shift, others=tuple(others))
        of_negative = for_each(negative), jnp.float32(settings.negative_scale)
        return Prompt(condition, for_each(self._null), scale, shift, *of_negative, others=tuple(others))

    @functools.cached_property
    def _null(self) -> TextFeatures | Int[Array, "1 1"]:
        """The empty prompt."""
        return self._condition([""])

    def _condition(self, prompts: Sequence[str]) -> TextFeatures | Int[Array, "b 1"]:
        if self.encoder is not None:
            return jax.tree.map(np.asarray, self.encoder.encode(prompts))  # on no device: the model may be on others
        return jnp.asarray([[label_of(prompt, self.config.model.classes)] for prompt in prompts])


def new_pipeline(
    config: Config,
    parameters: dict[str, Any] | None,
    encoder: TextEncoder | None,
    autoencoders: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Pipeline:
    """A pipeline for a model of this configuration; `parameters` may follow later, on the devices of `mesh`."""
    return Pipeline(config, abstract_model(config.model)[0], parameters or {}, encoder, autoencoders, mesh)


def _batches(shapes: Sequence[Shape], batch: int) -> Iterator[tuple[Shape, list[int], list[int]]]:
    """The shape and the indices of the samples of each batch, and these with the last one repeated to fill it up."""
    for wanted in dict.fromkeys(shapes):
        indices = [index for index, shape in enumerate(shapes) if shape == wanted]
        for start in range(0, len(indices), batch):
            chosen = indices[start : start + batch]
            yield wanted, chosen, [*chosen, *chosen[-1:] * (batch - len(chosen))]


def _finite_rows(values: Float[jax.Array | np.ndarray, "b ..."]) -> Bool[np.ndarray, " b"]:
    """Which samples of a batch are finite."""
    return np.asarray(jnp.isfinite(values).all(axis=tuple(range(1, values.ndim))))
