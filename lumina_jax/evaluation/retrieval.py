"""Do samples show what their captions say? Then the nearest true one is that of the same caption.

In: drawn and true pictures or clips. Out: for each drawn one, the place of the nearest true one, and how much it moves.
Nearest is by the squared difference of pixels, so it suits small sets of distinct samples.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

ALIKE = 8.0
"""Values of a byte, of 255."""


def nearest(drawn: UInt8[np.ndarray, "n *shape"], true: UInt8[np.ndarray, "m *shape"]) -> Int[np.ndarray, " n"]:
    """For each drawn sample the place of the true one that is nearest by pixels."""
    a = drawn.reshape(len(drawn), -1).astype(np.float64)
    b = true.reshape(len(true), -1).astype(np.float64)
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.argmin(squared, axis=1)


def look_alike(a: UInt8[np.ndarray, "n *shape"], b: UInt8[np.ndarray, "n *shape"]) -> Bool[np.ndarray, " n"]:
    """Whether two pictures can hardly be told apart, as the views of a bottle from two sides: their root mean squared
    difference is at most `ALIKE`."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.sqrt((difference**2).reshape(len(a), -1).mean(axis=1)) <= ALIKE


def motion(clips: UInt8[np.ndarray, "n f h w c"]) -> Float[np.ndarray, " n"]:
    """How much each clip moves: the mean absolute difference of consecutive frames, in values of a byte."""
    return np.abs(np.diff(clips.astype(np.float64), axis=1)).mean(axis=(1, 2, 3, 4))
