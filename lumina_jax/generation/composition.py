"""Samples of several captions: where each caption says what is drawn, and how much.

In: captions with weights for whole samples, and captions of regions in pixels. Out: the share of each caption in each
value of the latents; all of them sum to 1. The network is called with every caption, and the mean of its outputs with
these shares takes the part of the output for one caption, at every time: composable diffusion (Liu et al., arXiv
2206.01714) with captions for all of a sample, MultiDiffusion (Bar-Tal et al., arXiv 2302.08113, section 4) with
regions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float
from scipy.ndimage import correlate1d

from lumina_jax.config import Config
from lumina_jax.generation.originals import Mask
from lumina_jax.generation.request import check_prompt
from lumina_jax.generation.scenes import Scene, scene_shares
from lumina_jax.modalities import Modality, Shape

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the right column and the bottom row are not part of it."""
MOST_WEIGHT = 1e3


class PictureRegion(NamedTuple):
    """A part of a picture with a caption of its own."""

    caption: str
    area: Box | Mask
    """A box, or booleans [h w], True in the region."""
    blend: int = 0
    """Pixels across the edge of the region in which its share falls from 1 to 0."""


class Composition(NamedTuple):
    """The captions of the samples of one shape."""

    captions: tuple[str | None, ...]
    """None stands for the prompt of each sample. There are only captions that have a share."""
    shares: Float[np.ndarray, "n *f h w"]
    """Of each caption, in each value of the latents; where there are scenes, of each frame."""


def check_captions(
    config: Config,
    also: Sequence[tuple[str, float]],
    regions: Sequence[PictureRegion],
    scenes: Sequence[Scene] = (),
) -> None:
    """Refuse captions that are empty, or that the model cannot read.

    Raises:
      ValueError: there is such a caption; the message names it.
    """
    captions = {f"also[{index}]": caption for index, (caption, _) in enumerate(also)}
    captions |= {f"regions[{index}]": region.caption for index, region in enumerate(regions)}
    captions |= {f"scenes[{index}]": scene.caption for index, scene in enumerate(scenes)}
    for name, caption in captions.items():
        if not caption.strip():
            raise ValueError(f"{name} has an empty caption; say what it shows")
        check_prompt(config, caption)


def composition(
    modality: Modality,
    shape: Shape,
    also: Sequence[tuple[str, float]] = (),
    regions: Sequence[PictureRegion] = (),
    scenes: Sequence[Scene] = (),
    scene_blend: int | None = None,
) -> Composition | None:
    """The captions of samples of this shape and their shares; None: their prompts alone.

    Args:
      also: captions and their weights; the prompt has the weight 1.
      regions: those that come later cover earlier ones; the prompt and `also` have what no region covers.
      scenes: one after the other, instead of the prompt, `also` and `regions`.
      scene_blend: frames across the seam of two scenes in which one gives way to the other; None: three quarters of
        the shortest scene, rounded down.

    Raises:
      ValueError: a weight is not positive, a box or a mask does not fit the shape, nothing of a region is left, or
        scenes do not fit the shape, or are combined with other captions.
    """
    if scenes:
        if also or regions:
            raise ValueError("scenes are the captions of whole frames; leave other captions and regions out")
        captions = tuple(scene.caption for scene in scenes)
        return Composition(captions, scene_shares(modality, shape, scenes, scene_blend))
    if not also and not regions:
        return None
    if regions and modality.time_axis == "width":
        raise ValueError(f"regions are parts of pictures, but this draws {modality.plural}; leave them out")
    for index, (_, weight) in enumerate(also):
        if not 0 < weight <= MOST_WEIGHT:  # also of what is no number
            raise ValueError(
                f"a weight must be above 0 and at most {MOST_WEIGHT:g}, but also[{index}] has {weight}; the prompt has "
                "1, and what must not be shown is a negative"
            )
    weights = [1.0, *(weight for _, weight in also)]
    shares = [np.full((shape.height, shape.width), weight / math.fsum(weights)) for weight in weights]
    for index, region in enumerate(regions):
        covered = _covered(region, shape, f"regions[{index}]")
        shares = [*(share * (1 - covered) for share in shares), covered]
    _, height, width, _ = modality.latent_size(shape)
    of_latents = reduce(np.stack(shares), "n (h a) (w b) -> n h w", "mean", h=height, w=width)
    has_share = of_latents.max(axis=(1, 2)) > 0
    for index, is_left in enumerate(has_share[len(weights) :]):
        if not is_left:
            raise ValueError(f"nothing of regions[{index}] is left, because later regions cover it; leave it out")
    every = (None, *(caption for caption, _ in also), *(region.caption for region in regions))
    left = tuple(caption for caption, is_left in zip(every, has_share) if is_left)
    return Composition(left, np.asarray(of_latents[has_share], np.float32))


def _covered(region: PictureRegion, shape: Shape, name: str) -> Float[np.ndarray, "h w"]:
    """How much a region covers of each pixel: the mean of it over a square of `blend` pixels around the pixel.

    So the share falls linearly across a straight edge. At the border of the picture the region goes on.
    """
    inside = _inside(region.area, shape, name).astype(float)
    if not isinstance(region.blend, int) or not 0 <= region.blend <= max(shape[:2]):
        raise ValueError(
            f"{name}.blend={region.blend!r} must be a number of pixels from 0 to {max(shape[:2])}, the longest side"
        )
    if region.blend < 2:
        return inside
    window = np.ones(region.blend + 1 - region.blend % 2)
    if region.blend % 2 == 0:  # it ends in the middle of pixels
        window[[0, -1]] = 0.5
    for axis in (0, 1):
        inside = correlate1d(inside, window, axis=axis, mode="nearest") / region.blend
    return inside


def _inside(area: Any, shape: Shape, name: str) -> Bool[np.ndarray, "h w"]:
    """Whether each pixel lies in an area."""
    size = f"{shape.width} x {shape.height}"
    if isinstance(area, np.ndarray):
        if area.dtype != bool or area.shape != shape[:2]:
            raise ValueError(
                f"the mask of {name} must hold booleans, one for each of the {size} pixels (width x height) of what is "
                f"drawn, but holds {area.dtype} and has the shape {area.shape}"
            )
        if not area.any():
            raise ValueError(f"the mask of {name} has no pixel in it; paint its part white")
        return area
    if len(area) != 4 or not all(isinstance(edge, int | np.integer) for edge in area):
        raise ValueError(f"the box of {name} must be left, top, right and bottom in whole pixels, but is {area}")
    left, top, right, bottom = area
    if not (0 <= left < right <= shape.width and 0 <= top < bottom <= shape.height):
        raise ValueError(
            f"the box of {name} must have 0 <= left < right <= {shape.width} and 0 <= top < bottom <= {shape.height}, "
            f"for {size} pixels (width x height) are drawn, but is {left},{top},{right},{bottom}"
        )
    inside = np.zeros(shape[:2], bool)
    inside[top:bottom, left:right] = True
    return inside
