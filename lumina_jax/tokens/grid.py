"""The order of a sample's tokens: a grid of patches read row by row, with its markers.

Latents of every modality become one sequence (Lumina-T2X, arXiv 2405.05945, section 2.2): patches of a row from left
to right and one [nextline] token; row after row; after each frame of a sample with several frames one [nextframe].
Pictures are one frame, sounds are one row of one frame.
"""

import dataclasses
import enum
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Kind(enum.IntEnum):
    """What a token is."""

    PAD = 0
    PATCH = 1
    NEXTLINE = 2
    NEXTFRAME = 3


class MarkerLayout(NamedTuple):
    """Kind and position of every token of one sample.

    `positions` holds four integers for each token: its index in the sample, which the 1-D rotary embedding of Flag-DiT
    uses, then frame, row and column, which that of Next-DiT uses. The column of a [nextline] is one past the last of
    its row; the row of a [nextframe] is one past the last of its frame.
    """

    kinds: Int[np.ndarray, " l"]
    positions: Int[np.ndarray, "l 4"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The patches of one sample, frames x rows x columns, and which markers separate them.

    >>> Grid(frames=1, rows=2, columns=3, nextline=True, nextframe=True).layout().kinds.tolist()
    [1, 1, 1, 2, 1, 1, 1, 2]
    """

    frames: int
    rows: int
    columns: int
    nextline: bool
    nextframe: bool

    def __post_init__(self) -> None:
        if min(self.frames, self.rows, self.columns) < 1:
            raise ValueError(f"a grid needs at least one patch along each axis, but got {self}")

    @property
    def has_frame_markers(self) -> bool:
        return self.nextframe and self.frames > 1

    @property
    def length(self) -> int:
        """Tokens of the sample, markers included."""
        row = self.columns + self.nextline
        return self.frames * (self.rows * row + self.has_frame_markers)

    @functools.lru_cache(maxsize=64)  # samples of one shape share it  # noqa: B019
    def layout(self) -> MarkerLayout:
        """Kind and position of every token; the arrays are shared and cannot be written."""
        columns, lines = self.columns + self.nextline, self.rows + self.has_frame_markers
        frame, row, column = np.indices((self.frames, lines, columns), dtype=np.int32)
        kinds = np.full(frame.shape, Kind.PATCH, np.int32)
        kinds[column == self.columns] = Kind.NEXTLINE
        kinds[(row == self.rows) & (column == 0)] = Kind.NEXTFRAME
        kinds[(row == self.rows) & (column > 0)] = Kind.PAD  # not part of the sequence
        kept = kinds != Kind.PAD
        indices = np.arange(self.length, dtype=np.int32)
        layout = MarkerLayout(kinds[kept], np.stack([indices, frame[kept], row[kept], column[kept]], axis=-1))
        for array in layout:
            array.flags.writeable = False
        return layout


def latent_grid(frames: int, height: int, width: int, *, patch_size: int, nextline: bool, nextframe: bool) -> Grid:
    """The grid of a latent of frames x height x width.

    A latent of height 1 (sound) is cut along its width only, when `patch_size` is 1.

    Raises:
      ValueError: height or width is not a multiple of `patch_size`.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{height=} and {width=} of a latent must be multiples of {patch_size=}; crop it to "
            f"{height - height % patch_size} x {width - width % patch_size}"
        )
    return Grid(frames, height // patch_size, width // patch_size, nextline, nextframe)
