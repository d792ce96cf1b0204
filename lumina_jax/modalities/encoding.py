"""How the samples of a modality become latents once and for all, for the cache of them (`data/latents.py`).

In: what a record holds. Out: mean and log variance of its latents, as an autoencoder gives them.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lumina_jax.modalities.decoding.media import Media

PART_SAMPLES = 1024
"""The most samples in a file of the cache."""


class LatentScale(NamedTuple):
    """The scale in which latents are trained on: (z - shift) * scaling."""

    shift: float
    scaling: float


@runtime_checkable
class Encoding(Protocol):
    """How records become latents."""

    folder: str
    """Name of a folder in the cache: it says all that the latents depend on besides the records."""
    part_samples: int
    """Samples in a file of the cache."""
    devices: int
    """Devices that share a batch."""
    scale: LatentScale
    channels: int

    def __call__(self, media: Media) -> np.ndarray:
        """What the autoencoder is shown of a record.

        Raises:
          ValueError: it cannot be decoded.
        """
        ...

    def batch_size(self, sample: np.ndarray) -> int:
        """How many such samples are gathered for a call of `encode`."""
        ...

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b f v u z"]:
        """Mean and log variance of samples of one shape."""
        ...
