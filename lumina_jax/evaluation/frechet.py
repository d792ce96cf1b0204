"""The Frechet distance of two sets of features, each described by its mean and covariance.

In: features x [n d] and y [m d], computed with in float64. Out: the number
|mean_x - mean_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), where S is the covariance with n - 1 in the denominator; 0 for
equal means and covariances. Heusel et al., arXiv 1706.08500, section 2; on features of Inception-v3 it is the Frechet
inception distance.
"""

import numpy as np
from jaxtyping import Float

BLOCK = 4096
"""Rows whose covariance is summed at a time."""


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Return the squared Frechet distance of the normal distributions with the moments of two sets.

    With S_x = A A^T and S_y = B B^T, the eigenvalues of S_x S_y are the squares of the singular values of A^T B. Their
    sum is the trace of the square root; it needs no root of a small or negative eigenvalue, so that sets of fewer
    samples than dimensions, whose covariance is singular, are no special case.
    """
    a, b = covariance_factor(x), covariance_factor(y)
    difference = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, difference @ difference + (a**2).sum() + (b**2).sum() - 2 * root))


def covariance_factor(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """Return R with R^T R = the covariance of the rows; r is the smaller one of n and d."""
    mean, scale = x.mean(axis=0, dtype=np.float64), np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return (x - mean) / scale
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), BLOCK):
        block = (x[start : start + BLOCK] - mean) / scale
        covariance += block.T @ block
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))).T
