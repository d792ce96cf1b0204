"""The kernel distance of two sets of features: the squared maximum mean discrepancy for a cubic polynomial kernel.

In: features x [n d] and y [m d], computed with in float64. Out: the unbiased estimate, which is negative about as often
as positive if both sets come from one distribution, and its standard error. The kernel is k(a, b) = (a b / d + 1)^3.
Binkowski et al., arXiv 1801.01401, section 4; on features of Inception-v3 it is the kernel inception distance (KID).
Gretton et al., Journal of Machine Learning Research 13, 2012, lemma 6, have the estimate.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK_NUMBERS = 2**23
"""Values of the kernel that are in memory at a time."""
SUBSETS, SUBSET_SIZE = 100, 1000
"""As in published tables."""


class KernelDistance(NamedTuple):
    """A number, and the standard deviation of its error."""

    value: float
    standard_error: float


class SubsetEstimate(NamedTuple):
    """KernelDistances from random subsets: their mean and standard deviation."""

    mean: float
    deviation: float
    subsets: int
    size: int


def kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> KernelDistance:
    """Return the unbiased estimate from all pairs, and its standard error by the jackknife over the samples of a set.

    Sets with the same rows are at a distance of exactly 0. The estimate assumes that sets are independent, which a set
    and itself are not: it would be negative.
    """
    n, m = len(x), len(y)
    if _digests(x) == _digests(y):
        return KernelDistance(0.0, 0.0)
    within_x, within_y = (kernel_sums(z, z)[0] - _self_kernel(z) for z in (x, y))
    across_x, across_y = kernel_sums(x, y)
    value = within_x.sum() / (n * (n - 1)) + within_y.sum() / (m * (m - 1)) - 2 * across_x.sum() / (n * m)
    variance = _jackknife(within_x, across_x, m) + _jackknife(within_y, across_y, n)
    return KernelDistance(float(value), float(np.sqrt(variance)))


def kernel_distance_of_subsets(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
) -> SubsetEstimate:
    """Return the mean and the deviation of the estimates from random subsets of both sets, as tables report KID.

    Raises:
      ValueError: a set has fewer than `size` samples.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"{size=} must be at least 2 and at most the {min(len(x), len(y))} samples of the smaller set")
    draws = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        a, b = x[draws.choice(len(x), size, replace=False)], y[draws.choice(len(y), size, replace=False)]
        within = sum(kernel_sums(z, z)[0].sum() - _self_kernel(z).sum() for z in (a, b))
        values.append(within / (size * (size - 1)) - 2 * kernel_sums(a, b)[0].sum() / size**2)
    return SubsetEstimate(float(np.mean(values)), float(np.std(values)), subsets, size)


def kernel_sums(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Return the sum over y of the kernel with each x, and the sum over x of the kernel with each y."""
    step = max(1, BLOCK_NUMBERS // len(y))
    columns = y.T.astype(np.float64) / y.shape[1]
    rows, total = [], np.zeros(len(y))
    for start in range(0, len(x), step):
        kernel = x[start : start + step].astype(np.float64) @ columns + 1
        kernel *= kernel * kernel
        rows.append(kernel.sum(axis=1))
        total += kernel.sum(axis=0)
    return np.concatenate(rows), total


def _self_kernel(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    return ((x.astype(np.float64) ** 2).mean(axis=1) + 1) ** 3


def _jackknife(within: Float[np.ndarray, " n"], across: Float[np.ndarray, " n"], others: int) -> float:
    """Return the part of the variance that one set causes, from the estimates without each of its samples.

    Args:
      within: the sums of the kernel of each sample with the rest of its set.
      across: the sums with the other set, which has `others` samples.
    """
    n = len(within)
    if n < 3:
        return float("nan")
    left_out = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * others)
    return float((n - 1) * left_out.var())


def _digests(x: Float[np.ndarray, "n d"]) -> list[bytes]:
    return sorted(hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in x)
