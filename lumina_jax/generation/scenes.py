"""Clips of several scenes, one after the other, each with a caption of its own.

In: captions with numbers of frames. Out: the share of each caption in each frame of the latents; across a seam it falls
from 1 to 0 within some frames. `composition.py` says how shares steer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float
from scipy.ndimage import correlate1d

from lumina_jax.modalities import Modality, Shape


class Scene(NamedTuple):
    """A part of a clip."""

    caption: str
    frames: int


def frames_of_blend(scenes: Sequence[Scene], blend: int | None) -> int:
    """The frames across a seam in which one scene gives way to the next: `blend`, or when that is None three quarters
    of the frames of the shortest scene, rounded down (docs/scenes.md)."""
    return 3 * min(scene.frames for scene in scenes) // 4 if blend is None else blend


def scene_shares(
    modality: Modality, shape: Shape, scenes: Sequence[Scene], scene_blend: int | None
) -> Float[np.ndarray, "n f h w"]:
    """The share of each scene in each value of the latents.

    Args:
      scene_blend: frames across a seam, half of them on either side; None: as `frames_of_blend`.

    Raises:
      ValueError: the modality has no clips, the frames of the scenes are not those of the shape, or the blend is longer
        than a scene.
    """
    counts = [scene.frames for scene in scenes]
    if modality.time_axis != "frames":
        raise ValueError(f"scenes are parts of clips, but this draws {modality.plural}; leave them out")
    if min(counts) < 1 or sum(counts) != shape.frames:
        raise ValueError(
            f"the scenes have {' + '.join(map(str, counts))} = {sum(counts)} frames, but each needs one, and "
            f"{shape.frames} are drawn"
        )
    blend = frames_of_blend(scenes, scene_blend)
    if not isinstance(blend, int) or not 0 <= blend <= min(counts):
        raise ValueError(f"scene_blend={blend!r} must be from 0 to the {min(counts)} frames of the shortest scene")
    scene_of = np.repeat(np.arange(len(counts)), counts)
    shares = (scene_of == np.arange(len(counts))[:, None]).astype(float)
    if blend > 1:
        window = np.ones(blend + 1 - blend % 2)
        if blend % 2 == 0:  # it ends in the middle of frames
            window[[0, -1]] = 0.5
        shares = correlate1d(shares, window / blend, axis=1, mode="nearest")
    frames, height, width, _ = modality.latent_size(shape)
    of_latents = reduce(shares, "n (f a) -> n f", "mean", f=frames)
    return np.broadcast_to(of_latents[:, :, None, None], (*of_latents.shape, height, width)).astype(np.float32)
