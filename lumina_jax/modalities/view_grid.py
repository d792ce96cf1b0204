"""The views of an object laid out as one picture, line by line (Lumina-T2MV: 12 views, 4 columns)."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from lumina_jax.modalities.decoding.media import Media
from lumina_jax.modalities.files.movies import FrameFiles
from lumina_jax.modalities.modality import Asked, Files, Shape
from lumina_jax.modalities.picture import PictureModality
from lumina_jax.tokens import tile_views


@dataclass(frozen=True, kw_only=True)
class ViewGridModality(PictureModality):
    """Grids of views. A sample has one frame, which is cut into views again when it is saved."""

    plural: ClassVar[str] = "grids of views"

    def decode(self, media: Media, draws: random.Random | None) -> UInt8[np.ndarray, "1 height width 3"]:
        return tile_views(super().decode(media, draws), self._columns)

    def files(self, frame_rate: float) -> Files:
        return FrameFiles(frame_rate, self._columns)

    @property
    def _columns(self) -> int:
        assert self.media.grid_columns is not None
        return self.media.grid_columns

    def _asked_shape(self, asked: Asked) -> Shape:
        if asked.given("height", "width", "video_frames"):
            raise ValueError("this draws a grid of views; use --size for the pixels of a view, and --views")
        views = self.media.frames if asked.views is None else asked.views
        if views % self._columns:
            raise ValueError(f"--views {views} must be a multiple of the {self._columns} columns of the grid")
        size = self.media.image_size if asked.size is None else asked.size
        frames, height, width = self.media.replace(image_size=size).extent(views)
        return Shape(height, width, frames)
