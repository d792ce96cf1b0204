"""Non-negative least squares for a grid of designs at once.

A law that is linear in some of its coefficients, given its exponents, is fitted by variable projection (Golub and
Pereyra 1973): the exponents lie on a grid, and at each point of it the coefficients are those of non-negative least
squares. With at most three columns their solution is that of one of seven sets of free columns, and all sets of all
points of all bootstrap draws are solved together. The same sets give the exact range of a linear function of the
coefficients over {v >= 0: |y - X v|^2 <= threshold}, whose extreme point lies inside one face of the cone v >= 0.

Axes: g points of the grid, n observations, k columns, d draws, s free columns.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

SINGULAR = 1e-11
"""Columns with a relative pivot below this count as linearly dependent."""
Columns = Float[np.ndarray, "g n k"]


@dataclass(frozen=True)
class Face:
    """Least squares with the columns of `free` at every point of a grid.

    Attributes:
      basis: orthonormal basis of the columns.
      inverse: the inverse of R in X = Q R.
      is_regular: where the columns are linearly independent.
    """

    free: tuple[int, ...]
    basis: Float[np.ndarray, "g n s"]
    inverse: Float[np.ndarray, "g s s"]
    is_regular: Bool[np.ndarray, " g"]


@dataclass(frozen=True)
class Cone:
    """Designs [g n k] of a grid, factored for each set of free columns."""

    columns: Columns
    faces: tuple[Face, ...]

    @staticmethod
    def of(columns: Columns) -> "Cone":
        width = columns.shape[-1]
        subsets = [free for size in range(1, width + 1) for free in itertools.combinations(range(width), size)]
        return Cone(columns, tuple(_face(columns, free) for free in subsets))

    def residuals(self, y: Float[np.ndarray, "n d"], fixed: int | None = None) -> Float[np.ndarray, "g d"]:
        """The least sum of squares at each point, for each draw.

        Args:
          fixed: a column whose coefficient is 0; subtract its part from y to fix another value.
        """
        total = np.sum(y**2, 0)
        best = np.broadcast_to(total, (len(self.columns), len(total))).copy()
        for face in self.faces:
            if fixed in face.free:
                continue
            parts = np.matmul(face.basis.transpose(0, 2, 1), y)
            is_feasible = face.is_regular[:, None] & np.all(np.matmul(face.inverse, parts) >= 0, 1)
            np.minimum(best, total - np.sum(parts**2, 1), out=best, where=is_feasible)
        return np.maximum(best, 0.0)

    def coefficients(self, y: Float[np.ndarray, " n"]) -> Float[np.ndarray, "g k"]:
        """The coefficients of the least sum of squares at each point."""
        best = np.full(len(self.columns), np.sum(y**2))
        found = np.zeros((len(self.columns), self.columns.shape[-1]))
        for face in self.faces:
            parts = np.matmul(face.basis.transpose(0, 2, 1), y[:, None])
            values = np.matmul(face.inverse, parts)[..., 0]
            rest = np.sum(y**2) - np.sum(parts**2, (1, 2))
            is_better = face.is_regular & np.all(values >= 0, -1) & (rest < best)
            best[is_better] = rest[is_better]
            found[is_better] = 0.0
            found[np.ix_(is_better, face.free)] = values[is_better]
        return found

    def extremes(
        self, y: Float[np.ndarray, " n"], threshold: float, function: Float[np.ndarray, "g k"]
    ) -> tuple[Float[np.ndarray, "2 g k"], Float[np.ndarray, "2 g"]]:
        """Where a linear function of the coefficients is least and greatest, among those with |y - X v|^2 <= threshold.

        Returns:
          The coefficients of the least and the greatest, and the values of the function, nan at points where no
          coefficients reach the threshold.
        """
        points = np.zeros((2, *function.shape))
        values = np.full((2, len(function)), np.nan)
        if np.sum(y**2) <= threshold:  # all coefficients are 0
            values[:] = 0.0
        for face in self.faces:
            parts = np.matmul(face.basis.transpose(0, 2, 1), y[:, None])
            room = threshold - (np.sum(y**2) - np.sum(parts**2, (1, 2)))
            centre = np.matmul(face.inverse, parts)[..., 0]
            slope = np.einsum("gij,gi->gj", face.inverse, function[:, face.free])
            length = np.linalg.norm(slope, axis=-1)
            step = np.sqrt(np.maximum(room, 0)) / np.where(length > 0, length, 1)
            move = np.einsum("gij,gj->gi", face.inverse, slope) * step[:, None]
            for end, sign in enumerate((-1, 1)):
                candidate = centre + sign * move
                value = np.sum(candidate * function[:, face.free], -1)
                is_feasible = face.is_regular & (room >= 0) & np.all(candidate >= 0, -1)
                is_better = is_feasible & ~(sign * value <= sign * values[end])
                values[end, is_better] = value[is_better]
                points[end, is_better] = 0.0
                points[end][np.ix_(is_better, face.free)] = candidate[is_better]
        return points, values


def _face(columns: Columns, free: tuple[int, ...]) -> Face:
    basis, right = np.linalg.qr(columns[:, :, free])
    pivots = np.abs(np.einsum("gii->gi", right))
    sizes = np.linalg.norm(columns[:, :, free], axis=1)
    is_regular = np.all(pivots > SINGULAR * sizes, -1)
    right[~is_regular] = np.eye(len(free))
    return Face(free, basis, np.linalg.inv(right), is_regular)
