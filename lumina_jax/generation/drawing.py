"""One call of a pipeline: which samples are drawn together, and what each of them begins with.

In: prompts, and what else was asked for, after all checks. Out: samples, batch by batch: from the noise of their seeds,
or from that of their sources, beside their references where they have some.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from lumina_jax.config import SampleConfig
from lumina_jax.generation.composition import Composition
from lumina_jax.generation.editing import Edit
from lumina_jax.generation.noise import NoiseOrigin, noise_of
from lumina_jax.generation.not_drawn import NotDrawn
from lumina_jax.generation.originals import Originals, latents_of
from lumina_jax.generation.style import Reference, StyleOf
from lumina_jax.modalities import Modality, Shape

if TYPE_CHECKING:
    from lumina_jax.generation.pipeline import Pipeline, Sample


class Start(NamedTuple):
    """What the samples of a batch begin with."""

    noise: Float[jax.Array | np.ndarray, "b f h w c"]
    keys: Key[Array, " b"]
    edit: Edit | None


@dataclass(frozen=True)
class Batches:
    """The samples of a call."""

    pipeline: "Pipeline"
    modality: Modality
    prompts: Sequence[str]
    settings: SampleConfig
    shapes: Sequence[Shape]
    origins: Sequence[NoiseOrigin]
    edited: Originals | None
    composed: Mapping[Shape, Composition | None]
    style: StyleOf | None

    def samples(self, batch: int) -> "Iterator[tuple[int, Sample | NotDrawn]]":
        """Index and sample of each prompt; the last batch of a shape is filled up."""
        for shape, chosen, filled in _batches(self.shapes, batch):
            start = self._start(filled, shape)
            latents = self.pipeline.latents(
                start.noise,
                [self.prompts[index] for index in filled],
                self.settings,
                keys=start.keys,
                edit=start.edit,
                composed=self.composed[shape],
                reference=self._reference(start, filled, shape),
                modality=self._name,
            )
            yield from zip(chosen, self.pipeline.decoded(latents, self.settings, self.modality))

    def _start(self, indices: Sequence[int], shape: Shape) -> Start:
        """What the samples of these indices begin with."""
        noise, keys = noise_of([self.origins[index] for index in indices], self.modality.latent_size(shape))
        if self.edited is None:
            return Start(noise, keys, None)
        edit = self.edited.edit(indices, shape, self.modality, self._autoencoder)
        if self.edited.captions is None:
            return Start(noise, keys, edit)
        sources = self.edited.latents(indices, shape, self.modality, self._autoencoder)
        return Start(self._inverted(sources, [self.edited.captions[index] for index in indices]), keys, edit)

    def _reference(self, start: Start, indices: Sequence[int], shape: Shape) -> Reference | None:
        """What is drawn beside the samples of these indices, which begin with `start`."""
        if self.style is None:
            return None
        style, count, composed = self.style, len(start.noise), self.composed[shape]
        captions, of = (None,) if composed is None else composed.captions, style.of if isinstance(style.of, int) else -1
        strength = np.array([0.0 if index == of else style.strength for index in indices], np.float32)
        if isinstance(style.of, int):
            first = self._start([style.of] * count, shape)
            prompt = self.pipeline.prompt([self.prompts[style.of]] * count, self.settings, captions)
            return Reference(first.noise, first.keys, prompt, first.edit, strength)
        found, texts = latents_of(style.of, shape, self.modality, self._autoencoder), [style.caption] * count
        latents = np.repeat(found[None], count, axis=0)
        prompt = self.pipeline.prompt(texts, self.settings, [None] * len(captions))
        edit = start.edit and Edit(latents, np.zeros_like(start.edit.kept), start.edit.strength)
        return Reference(self._inverted(latents, texts), start.keys, prompt, edit, strength)

    def _inverted(self, latents: Float[np.ndarray, "b f h w c"], captions: Sequence[str]) -> Any:
        """The noise [b f h w c] from which these latents are drawn with their captions."""
        return self.pipeline.invert(latents, captions, self.settings, modality=self._name)

    @property
    def _name(self) -> str:
        return self.modality.config.name

    @property
    def _autoencoder(self) -> Any:
        return self.pipeline.autoencoders.get(self._name)


def _batches(shapes: Sequence[Shape], batch: int) -> Iterator[tuple[Shape, list[int], list[int]]]:
    """The shape and the indices of the samples of each batch, and these with the last one repeated to fill it up."""
    for wanted in dict.fromkeys(shapes):
        indices = [index for index, shape in enumerate(shapes) if shape == wanted]
        for start in range(0, len(indices), batch):
            chosen = indices[start : start + batch]
            yield wanted, chosen, [*chosen, *chosen[-1:] * (batch - len(chosen))]
