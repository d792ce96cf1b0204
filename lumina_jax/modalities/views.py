"""The views of an object from all around it, each of them a frame; saved as a turntable, gif and mp4."""

from dataclasses import dataclass
from typing import ClassVar

from lumina_jax.modalities.picture import PictureModality


@dataclass(frozen=True, kw_only=True)
class ViewsModality(PictureModality):
    """Objects in data.frames views, spread evenly around them."""

    plural: ClassVar[str] = "views"
