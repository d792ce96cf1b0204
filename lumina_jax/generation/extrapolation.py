"""Pictures of other sizes than those of training.

In: the size of a picture and of those trained on. Out: the scaling of the rotary embedding at each time of the path,
and the training length that proportional attention needs (Lumina-T2X, arXiv 2405.05945, section 2.3; the schedule over
time: Lumina-Next, arXiv 2406.18583, section 2.2).
"""

import math

from jaxtyping import Array, Float

from lumina_jax.config import ModelConfig, SampleConfig
from lumina_jax.models.rope import RopeScaling, time_aware
from lumina_jax.tokens import latent_grid


def rope_factor(settings: SampleConfig, model: ModelConfig, *, height: int, width: int, trained: int) -> float:
    """How much longer than in training the coordinates of a picture's tokens are.

    `sample.rope_factor`, or when that is None the ratio of the sides, sqrt(area / trained area), where rotary
    embeddings turn by row and column, and the ratio of the areas where they turn by the place in the sequence. Smaller
    pictures than those of training keep the factor 1.

    Args:
      height, width, trained: in one unit, `trained` the side of a square of the training area.
    """
    if settings.rope_factor is not None:
        return settings.rope_factor
    area = height * width / trained**2
    return max(1.0, area if model.rope_axes == 1 else math.sqrt(area))


def rope_scaling(factor: float, watershed: float, t: float | Float[Array, ""]) -> RopeScaling:
    """The scaling at time t; none at all for a factor of 1."""
    return RopeScaling() if factor == 1 else time_aware(factor, watershed, t)


def base_length(settings: SampleConfig, model: ModelConfig, *, height: int, width: int, trained: int) -> int | None:
    """Tokens of a training picture, for proportional attention; None where lengths are equal, or when it is off.

    The scale of a training picture of one token, sqrt(log length / log 1), would be infinite: it has none.

    Args:
      height, width, trained: of the latents, `trained` the side of a square one of training.
    """
    if not settings.proportional_attention:
        return None
    length, base = (
        latent_grid(
            1, *size, patch_size=model.patch_size, nextline=model.nextline, nextframe=model.nextframe
        ).length
        for size in ((height, width), (trained, trained))
    )  # fmt: skip
    return None if length == base or base == 1 else base
