"""Clips and turntables on disk: gif and mp4, and their frames side by side.

In: frames as bytes 0..255, [f h w 3], the frames of a clip or the views around an object. Files appear complete or not
at all. PIL writes gif; mp4 (H.264) needs PyAV, the extra `media`.
"""

import importlib.util
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.modalities.files.png import written_whole
from lumina_jax.tokens import cut_views

Frames = UInt8[np.ndarray, "f h w 3"]
AnyFrames = UInt8[np.ndarray, "_ _ _ 3"]
"""Frames of a clip whose number and size have nothing to do with those of other clips."""
GAP = 2
"""White pixels between frames that stand side by side."""
STRIP_FRAMES = 16
"""More frames than these go into several lines."""
CONSTANT_RATE_FACTOR = "12"
"""Of H.264: close to lossless for the eye."""


class FrameFiles(NamedTuple):
    """Samples of several frames as gif, and as mp4 where PyAV is installed; see `Files`."""

    rate: float
    columns: int | None = None
    """Samples are grids of this number of views side by side, to be cut; None: they are none."""

    def frames(self, sample: AnyFrames) -> AnyFrames:
        return sample if self.columns is None else cut_views(sample, self.columns)

    def save(self, path: Path, sample: AnyFrames) -> None:
        frames = self.frames(sample)
        if len(frames) > 1:
            save_gif(path.with_suffix(".gif"), frames, self.rate)
            if importlib.util.find_spec("av") is not None:
                save_mp4(path.with_suffix(".mp4"), frames, self.rate)

    def plural(self, *, is_moving: bool) -> str:
        return "clips" if is_moving else "pictures"

    def about(self, asked: Any, shape: Any) -> dict[str, Any]:
        return {**shape._asdict(), "frame_rate": self.rate}


def save_gif(path: str | Path, frames: Frames, rate: float) -> None:
    """An endless animation of `rate` frames a second."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    with written_whole(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=max(10, round(1000 / rate)),  # viewers slow down what is shorter
            loop=0,
            disposal=1,
        )


def save_mp4(path: str | Path, frames: Frames, rate: float) -> None:
    """A video of `rate` frames a second; an odd last row or column is repeated, since H.264 counts in twos.

    Raises:
      ModuleNotFoundError: PyAV is not installed.
    """
    import av

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with written_whole(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CONSTANT_RATE_FACTOR}
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def frame_sheet(frames: Frames) -> UInt8[np.ndarray, "height width 3"]:
    """All frames on one picture, side by side, in several lines when there are many."""
    if len(frames) == 1:
        return frames[0]
    lines = math.ceil(len(frames) / STRIP_FRAMES)
    columns = math.ceil(len(frames) / lines)
    height, width = frames.shape[1] + GAP, frames.shape[2] + GAP
    sheet = np.full((lines * height - GAP, columns * width - GAP, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return sheet


def moving_sheet(clips: Sequence[AnyFrames], captions: Sequence[str]) -> AnyFrames:
    """The contact sheet of several clips, moving; a shorter clip begins again."""
    longest = max(map(len, clips))
    return np.stack([contact_sheet([clip[index % len(clip)] for clip in clips], captions) for index in range(longest)])
