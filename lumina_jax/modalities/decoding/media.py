"""What a record may hold before it is decoded: pictures, clips, views, sounds, or latents that were encoded before.

In: files, encoded bytes or samples, as a source found them. Out: one typed value that says which part of them counts.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class LatentDistribution(NamedTuple):
    """The normal distribution from which a sample's latents are drawn, in the scale that is trained on."""

    mean: Float[np.ndarray, "f h w c"]
    deviation: Float[np.ndarray, "f h w c"]


class Clip(NamedTuple):
    """A moving picture in a file: a video, an animated webp or gif; what counts of it, in seconds."""

    file: Path | bytes
    start: float = 0.0
    end: float | None = None

    def span(self, whole: float) -> tuple[float, float]:
        """Start and duration in seconds of what counts of a file of `whole` seconds.

        Raises:
          ValueError: nothing is left of it.
        """
        end = whole if self.end is None else min(self.end, whole)
        if not 0 <= self.start < end:
            raise ValueError(f"a clip must start before it ends, but start={self.start} and it ends at {end:.2f} s")
        return self.start, end - self.start


class Views(NamedTuple):
    """Pictures of one object, in the order of the camera's way around it."""

    files: tuple[Path, ...]


class Sound(NamedTuple):
    """A recording: a file, or samples int16 [n] of one channel; what counts of it, in seconds."""

    recording: Path | np.ndarray
    rate: int | None = None
    """Samples a second; None: the file says it."""
    start: float = 0.0
    end: float | None = None


Media = Path | bytes | np.ndarray | Clip | Views | Sound | LatentDistribution
"""A picture as a file, its encoded bytes or its pixels uint8 [h w 3]; a clip or views as files or pixels uint8
[f h w 3]; a sound; latents that were encoded before (`latents.py`)."""
