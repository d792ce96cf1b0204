"""A record to an example: decoding and cropping as the modality does it, choosing one of its captions, and dropping the
caption or label for classifier-free guidance.

Runs inside grain's threads or worker processes. Every random choice depends on the run's seed and the sample's global
index alone, so neither the number of workers nor that of hosts changes it.
"""

import dataclasses
import random

import numpy as np
from jaxtyping import Float

from lumina_jax.config import ModelConfig
from lumina_jax.data.example import BadSample, Example, Record, reason_of
from lumina_jax.modalities import Modality
from lumina_jax.modalities.decoding.media import LatentDistribution, Media


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The map of the pipeline: (global index, record) to (global index, Example or BadSample)."""

    modality: Modality
    model: ModelConfig
    seed: int
    chooses_captions: bool = True
    """False: the caption is always the first of the record, as where a model is measured."""

    def __call__(self, numbered: tuple[int, Record | BadSample]) -> tuple[int, Example | BadSample]:
        index, record = numbered
        if isinstance(record, BadSample):
            return index, record
        draws = random.Random(f"{self.seed} {index}")
        is_dropped = draws.random() < self.modality.data.caption_dropout
        try:
            caption, label = self._condition(self._with_chosen_caption(index, record), is_dropped=is_dropped)
            latents = self._latents(record.media, draws)
        except Exception as error:  # whatever a decoder raises ends no run
            return index, BadSample(record.name, reason_of(error))
        return index, Example(record.name, latents, caption, label, self.modality.index)

    def _with_chosen_caption(self, index: int, record: Record) -> Record:
        """The record with one of its captions; the draw depends on nothing else, and changes no other draw."""
        if not (self.chooses_captions and record.caption and record.other_captions):
            return record
        draws = random.Random(f"{self.seed} {index} caption")
        return record._replace(caption=draws.choice(draws.choice([(record.caption,), *record.other_captions])))

    def _condition(self, record: Record, *, is_dropped: bool) -> tuple[str | None, int | None]:
        if self.model.conditioning == "text":
            if not record.caption:
                raise ValueError("there is no caption" if record.caption is None else "the caption is empty")
            return "" if is_dropped else record.caption, record.label
        classes = self.model.classes
        if record.label is None:
            raise ValueError("there is no label")
        if not 0 <= record.label < classes:
            raise ValueError(f"the label {record.label} is not in 0..{classes - 1}; see model.classes")
        return record.caption, classes if is_dropped else record.label

    def _latents(self, media: Media, draws: random.Random) -> Float[np.ndarray, "f h w c"]:
        if isinstance(media, LatentDistribution):
            return _drawn(media, draws)
        return self.modality.to_latents(self.modality.decode(media, draws))


def _drawn(latents: LatentDistribution, draws: random.Random) -> Float[np.ndarray, "f h w c"]:
    noise = np.random.default_rng(draws.getrandbits(128)).standard_normal(latents.mean.shape, np.float32)
    return latents.mean + latents.deviation * noise
