"""Samples of other sizes than those of training.

In: the extent of a sample and of those trained on. Out: the scaling of the rotary embedding at each time of the path,
and the training length that proportional attention needs (Lumina-T2X, arXiv 2405.05945, section 2.3; frequencies and
the schedule over time: Lumina-Next, arXiv 2406.18583, and its released code).
"""

import math
from typing import NamedTuple

from jaxtyping import Array, Float

from lumina_jax.config import ModalityConfig, ModelConfig, SampleConfig
from lumina_jax.models.rope import RopeScaling, time_aware
from lumina_jax.tokens import latent_grid


class Extent(NamedTuple):
    """Frames, height and width of latents."""

    frames: int
    height: int
    width: int


def rope_factor(settings: SampleConfig, model: ModelConfig, size: Extent, trained: Extent) -> float:
    """How much longer than in training the coordinates of a sample's tokens are.

    `sample.rope_factor`, or when that is None: where rotary embeddings turn by the position in the sequence, the ratio
    of the volumes; where they turn by row and column, that of the sides, sqrt(area / trained area); where they turn by
    frame as well, the larger of that and the ratio of the frames. Samples smaller than those of training keep 1.

    Where positions are squeezed at all times, the sides are the shorter ones: squeezing shows a thing larger, and by
    the area it would not fit into a wide picture any more (docs/extrapolation.md).
    """
    if settings.rope_factor is not None:
        return settings.rope_factor
    frames, rows, columns = (extent / of_training for extent, of_training in zip(size, trained))
    if model.position_axes == 1:
        return max(1.0, frames * rows * columns)
    sides = min(rows, columns) if settings.rope_watershed >= 1 else math.sqrt(rows * columns)
    return max(1.0, sides, frames if model.position_axes == 3 else 1.0)


def rope_target(settings: SampleConfig, model: ModelConfig, modality: ModalityConfig, trained: Extent) -> float | None:
    """The exponent of theta from which on frequencies are slowed by the whole factor (`models/rope.py`).

    With `sample.rope_frequency_aware` that of the wave that is as long as the coordinates of training: longer waves
    never came round there, so that a model has only seen a part of their angles. It is log(L / 2 pi) to the base theta
    for L coordinates, as in Lumina-Next, but at most 1. Else None: that of the longest wave.
    """
    if not settings.rope_frequency_aware or model.rope_theta == 1:
        return None
    frames, height, width = trained
    if model.position_axes == 1:
        extent: float = _length(trained, model, modality)
    else:
        extent = math.sqrt(height * width) / modality.patch_size
        extent = max(extent, frames) if model.position_axes == 3 else extent
    return min(1.0, math.log(extent / (2 * math.pi)) / math.log(model.rope_theta))


def rope_scaling(
    factor: float, watershed: float, t: float | Float[Array, ""] | Float[Array, " b"], target: float | None = None
) -> RopeScaling:
    """The scaling at time t, or at the time of each sample; none at all for a factor of 1."""
    return RopeScaling() if factor == 1 else time_aware(factor, watershed, t, target)


def base_length(
    settings: SampleConfig, model: ModelConfig, modality: ModalityConfig, size: Extent, trained: Extent
) -> int | None:
    """Tokens of a training sample, for proportional attention; None where lengths are equal, or when it is off.

    The scale of a training sample of one token, sqrt(log length / log 1), would be infinite: it has none.
    """
    if not settings.proportional_attention:
        return None
    length, base = (_length(extent, model, modality) for extent in (size, trained))
    return None if length == base or base == 1 else base


def _length(extent: Extent, model: ModelConfig, modality: ModalityConfig) -> int:
    """Tokens of a sample."""
    marks = {"nextline": model.nextline, "nextframe": model.nextframe}
    return latent_grid(*extent, patch_size=modality.patch_size, **marks).length
