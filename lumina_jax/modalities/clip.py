"""Clips: the frames of moving pictures, one after another; saved as gif, and as mp4 where PyAV is installed."""

from dataclasses import dataclass
from typing import ClassVar

from lumina_jax.modalities.picture import PictureModality


@dataclass(frozen=True, kw_only=True)
class ClipModality(PictureModality):
    """Clips of data.frames frames, or fewer where a clip is too short for that."""

    plural: ClassVar[str] = "clips"
