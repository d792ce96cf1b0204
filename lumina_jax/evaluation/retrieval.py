"""Do the pictures show what their captions say? Then the nearest true picture is the one of the same caption.

In: drawn and true pictures. Out: for each drawn one, the place of the nearest true one. Nearest is by the squared
difference of pixels, so it suits small sets of distinct pictures.
"""

import numpy as np
from jaxtyping import Int, UInt8


def nearest(drawn: UInt8[np.ndarray, "n h w c"], true: UInt8[np.ndarray, "m h w c"]) -> Int[np.ndarray, " n"]:
    """For each drawn picture the place of the true one that is nearest by pixels."""
    a = drawn.reshape(len(drawn), -1).astype(np.float64)
    b = true.reshape(len(true), -1).astype(np.float64)
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.argmin(squared, axis=1)
