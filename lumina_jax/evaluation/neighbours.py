"""How well two sets of features cover each other, by distances to nearest neighbours.

In: features of real samples x [n d] and of drawn samples y [m d], computed with in float64. The ball of a sample has as
its radius the distance to its k-th nearest neighbour in its set. It includes its border for precision and recall, and
excludes it for density and coverage, as in the code of each paper's authors.

* precision: the share of drawn samples within the ball of a real one; recall: the share of real samples within the ball
  of a drawn one. Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2, k = 3.
* density: the number of real balls that a drawn sample is in, divided by k, on average; coverage: the share of real
  balls that a drawn sample is in. Naeem et al., arXiv 2002.09797, equations 3 and 4, k = 5.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
BLOCK_NUMBERS = 2**23
"""Distances that are in memory at a time."""
SAME = 1e-12
"""Samples whose squared distance is below this share of their squared norms count as the same; rounding is far less."""
BORDER = 1e-9
"""The width of a border, as a share of the squared radius; rounding is far less."""


class Cover(NamedTuple):
    """How well the drawn samples cover the real ones, and the other way round; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def cover(
    real: Float[np.ndarray, "n d"],
    drawn: Float[np.ndarray, "m d"],
    *,
    k: int = PRECISION_NEIGHBOURS,
    density_k: int = DENSITY_NEIGHBOURS,
) -> Cover:
    """Return precision and recall with `k` neighbours, and density and coverage with `density_k`.

    Raises:
      ValueError: a set has no more samples than neighbours.
    """
    least = min(len(real), len(drawn))
    if not 0 < k < least or not 0 < density_k < len(real):
        raise ValueError(
            f"{k=} and {density_k=} neighbours must be at least 1 and fewer than the {len(real)} real and {len(drawn)} "
            "drawn samples; compare more samples"
        )
    center = real.mean(axis=0, dtype=np.float64)
    real, drawn = real - center, drawn - center
    radii, wide_radii = neighbour_radii(real, (k, density_k))
    [drawn_radii] = neighbour_radii(drawn, (k,))
    is_precise, balls = np.zeros(len(drawn), bool), np.zeros(len(drawn))
    recalled, covered = [], []
    for rows, squared in squared_distances(real, drawn):
        is_precise |= (squared <= radii[rows, None] * (1 + BORDER)).any(axis=0)
        recalled.append((squared <= drawn_radii * (1 + BORDER)).any(axis=1))
        within = (squared < wide_radii[rows, None] * (1 - BORDER)) | (squared == 0)
        balls += within.sum(axis=0)
        covered.append(within.any(axis=1))
    shares = [np.concatenate(parts).mean() for parts in (recalled, covered)]
    return Cover(float(is_precise.mean()), float(shares[0]), float(balls.mean() / density_k), float(shares[1]))


def neighbour_radii(x: Float[np.ndarray, "n d"], ks: tuple[int, ...]) -> list[Float[np.ndarray, " n"]]:
    """Return, for each k, the squared distance of each sample to its k-th nearest neighbour, itself not counted."""
    found = [np.partition(squared, ks, axis=1)[:, ks] for _, squared in squared_distances(x, x)]
    return list(np.concatenate(found).T)


def squared_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "r m"]]]:
    """Yield blocks of rows, and the squared Euclidean distances of these rows of x to all rows of y."""
    step = max(1, BLOCK_NUMBERS // len(y))
    norms = (y**2).sum(axis=1)
    for start in range(0, len(x), step):
        block = x[start : start + step]
        both = (block**2).sum(axis=1)[:, None] + norms
        squared = both - 2 * block @ y.T
        squared[squared < SAME * both] = 0.0
        yield slice(start, start + step), squared
