"""Do the pictures show what their captions say? The share of pictures whose nearest true picture has their caption.

In: drawn pictures and, for each, the place of its true picture among all true pictures. Out: one number a group.
Nearest is by the mean squared difference of pixels, so it suits small sets of distinct pictures.
"""

import numpy as np
from jaxtyping import Int, UInt8


def nearest(drawn: UInt8[np.ndarray, "n h w c"], true: UInt8[np.ndarray, "m h w c"]) -> Int[np.ndarray, " n"]:
    """For each drawn picture the place of the true one that is nearest by pixels."""
    a = drawn.reshape(len(drawn), -1).astype(np.float64)
    b = true.reshape(len(true), -1).astype(np.float64)
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.argmin(squared, axis=1)


def retrieval(
    drawn: UInt8[np.ndarray, "n h w c"], true: UInt8[np.ndarray, "m h w c"], own: Int[np.ndarray, " n"]
) -> float:
    """The share of drawn pictures that are nearest to their own true picture, `true[own[i]]`."""
    return float(np.mean(nearest(drawn, true) == own))
