"""Clips that loop, and clips longer than those of training: which frames the network sees at which positions.

A clip loops if its frames are on a ring: at each step of a path the ring is opened elsewhere, so that no two neighbours
are always the last and the first frame (the latents are shifted cyclically in Mobius, arXiv 2502.20307, section 3; here
it is the positions of tokens, which is the same to attention). A long clip is drawn in windows that overlap: the
velocity of a frame is a mean over the windows that it is in (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumina_jax.config import SampleConfig
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.modalities import Shape
from lumina_jax.parallel.mesh import AnyMesh, axis_size
from lumina_jax.tokens import Tokens


def check_clips(
    settings: SampleConfig, shapes: Sequence[Shape], *, has_style: bool = False, mesh: AnyMesh | None = None
) -> None:
    """Refuse clips that cannot loop, and windows that cannot be cut.

    Raises:
      ValueError: what loops has one frame or steps of an adaptive solver, or windows are asked for beside a style or
        where devices divide the tokens of a clip.
    """
    if settings.loop and min(shape.frames for shape in shapes) < 2:
        raise ValueError("sample.loop=True joins the ends of clips, but what is drawn has one frame; leave it out")
    if settings.loop and settings.solver in SOLVERS and SOLVERS[settings.solver].adaptive:
        raise ValueError(
            f"sample.loop=True turns clips from step to step, which the adaptive solver {settings.solver!r} takes for "
            "errors; choose one with given steps, such as midpoint"
        )
    size = settings.window_frames
    if size is None or max(shape.frames for shape in shapes) <= size:
        return
    if has_style:
        raise ValueError(f"sample.window_frames={size} cuts clips, which hides their reference; draw without a style")
    if mesh is not None and axis_size(mesh, "sequence") > 1:
        raise ValueError(
            f"sample.window_frames={size} cuts clips, whose tokens mesh.sequence divides already; divide samples or "
            "weights instead, with mesh.sequence=1"
        )


def stride_around(frames: int) -> int:
    """By how many frames a ring is turned at each step: near the golden section, and prime to the frames, so that the
    ring is opened everywhere equally often."""
    wanted = frames * (math.sqrt(5) - 1) / 2
    return min((one for one in range(1, frames + 1) if math.gcd(one, frames) == 1), key=lambda one: abs(one - wanted))


def turned(
    tokens: Tokens, frames: int, length: int, steps: int, t: Float[Array, ""] | Float[Array, " b"]
) -> Int[Array, "b l 4"]:
    """The positions of the tokens of a clip whose ring is opened elsewhere at each of `steps` parts of the time.

    Args:
      length: tokens of a clip; rows may hold several clips.
    """
    of_frame = length // frames
    turns = jnp.floor(jnp.reshape(t, (-1, 1)) * steps).astype(jnp.int32) * stride_around(frames)
    index, frame, row, column = jnp.unstack(jnp.asarray(tokens.positions), axis=-1)
    moved = (frame + turns) % frames
    return jnp.stack([index + (moved - frame) * of_frame, moved, row, column], axis=-1)


class Windows(NamedTuple):
    """The windows of a clip."""

    starts: tuple[int, ...]
    """The first frame of each."""
    frames: int
    """Of each window."""
    of_frame: int
    """Tokens of a frame."""

    @property
    def weights(self) -> Float[np.ndarray, "w f"]:
        """The share of each window in each frame of the clip: the more, the nearer its middle."""
        of_window = np.minimum(np.arange(self.frames) + 1, self.frames - np.arange(self.frames)).astype(float)
        weights = np.zeros((len(self.starts), self.starts[-1] + self.frames))
        for window, start in enumerate(self.starts):
            weights[window, start : start + self.frames] = of_window
        return (weights / weights.sum(axis=0)).astype(np.float32)

    def cut(self, rows: Tokens) -> Tokens:
        """Each row as rows of its windows, one after the other, with the positions of the first one."""
        length = self.frames * self.of_frame
        first = [start * self.of_frame for start in self.starts]

        def windows(x: Array) -> Array:
            parts = jnp.stack([x[:, start : start + length] for start in first], axis=1)
            return parts.reshape(-1, *parts.shape[2:])

        patches, kinds, positions, segment_ids, modalities = rows
        return Tokens(
            windows(patches),
            windows(kinds),
            jnp.repeat(positions[:, :length], len(first), axis=0),
            windows(segment_ids),
            None if modalities is None else windows(modalities),
        )

    def joined(self, outputs: Float[Array, "wn l o"]) -> Float[Array, "n _ o"]:
        """The mean over windows of what was found for each of them."""
        weights = np.repeat(self.weights, self.of_frame, axis=1)
        parts = outputs.reshape(-1, len(self.starts), *outputs.shape[1:])
        length = outputs.shape[1]
        found = jnp.zeros((len(parts), weights.shape[1], outputs.shape[2]), outputs.dtype)
        for window, start in enumerate(first * self.of_frame for first in self.starts):
            share = weights[window, start : start + length, None]
            found = found.at[:, start : start + length].add(share * parts[:, window])
        return found


def windows_of(settings: SampleConfig, frames: int, length: int) -> Windows | None:
    """The windows of a clip of so many frames and tokens; None: it is drawn as a whole."""
    size = settings.window_frames
    if size is None or frames <= size:
        return None
    stride = max(1, size // 2)
    starts = (*range(0, frames - size, stride), frames - size)
    return Windows(starts, size, length // frames)
