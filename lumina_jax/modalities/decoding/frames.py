"""Which frames of a sample are trained on: all that a picture has, some of a clip, some of an object's views.

In: what a record holds. Out: PIL pictures of one size, in order. A clip gives `data.frames` frames, evenly over its
length or `data.frame_rate` a second from a random moment on, and fewer where it is too short for that; views are spread
evenly around the object.
"""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumina_jax.config import VisualConfig
from lumina_jax.modalities.decoding.clips import read_frames
from lumina_jax.modalities.decoding.media import Clip, LatentDistribution, Media, Sound, Views
from lumina_jax.modalities.decoding.pictures import Finish, as_decoded, open_picture

ROUNDING = 1e-6


def read_pictures(
    media: Media, wanted: VisualConfig, draws: random.Random | None, finish: Finish = as_decoded
) -> list[Image.Image]:
    """The frames of a sample.

    Args:
      draws: where a clip starts that is longer than its frames; None: in the middle.
      finish: what is done to each frame as soon as it is decoded.

    Raises:
      ValueError: it cannot be read, or its frames have different sizes.
    """
    if wanted.grid_columns is not None:
        _check_views(media, wanted)
    sizes: set[tuple[int, int]] = set()

    def checked(picture: Image.Image) -> Image.Image:
        sizes.add(picture.size)
        if len(sizes) > 1:
            raise ValueError(f"the frames of a sample must have one size, but have {sorted(sizes)}")
        return finish(picture)

    if isinstance(media, Clip):
        return read_frames(media, lambda seconds: moments(seconds, wanted, draws), checked)
    if isinstance(media, Views):
        return [open_picture(media.files[index], checked) for index in evenly(len(media.files), wanted.frames)]
    if isinstance(media, np.ndarray) and media.ndim == 4:
        return [open_picture(media[index], checked) for index in evenly(len(media), wanted.frames)]
    assert not isinstance(media, LatentDistribution | Sound)
    return [open_picture(media, checked)]


def _check_views(media: Media, wanted: VisualConfig) -> None:
    """Refuse what does not fill a grid: a clip, a picture, and an object of fewer views."""
    of_views = isinstance(media, Views) or (isinstance(media, np.ndarray) and media.ndim == 4)
    views = (len(media.files) if isinstance(media, Views) else len(media)) if of_views else 0  # type: ignore[arg-type]
    if views < wanted.frames:
        what = f"it has {views}" if of_views else "it is no object in views"
        raise ValueError(f"a grid needs the {wanted.frames} views of an object, but {what}; see data.grid_columns")


def evenly(count: int, wanted: int) -> list[int]:
    """Indices of `wanted` of `count` frames, from the first on, or of all when there are fewer."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def moments(seconds: float, wanted: VisualConfig, draws: random.Random | None) -> Sequence[float]:
    """Times in a clip of this length at which frames are taken."""
    if wanted.frame_rate is None:
        return [(frame + 0.5) * seconds / wanted.frames for frame in range(wanted.frames)]
    count = max(1, min(wanted.frames, int(seconds * wanted.frame_rate + ROUNDING)))
    spare = max(0.0, seconds - count / wanted.frame_rate)
    start = spare * (0.5 if draws is None else draws.random())
    return [start + (frame + 0.5) / wanted.frame_rate for frame in range(count)]
