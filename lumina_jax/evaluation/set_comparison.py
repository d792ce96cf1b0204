"""All distances of two sets of features, with the rules that sets must satisfy.

In: features of the real set (the reference) and of the drawn set, [n d] and [m d]. Out: `SetDistances`. Precision,
recall, density and coverage change when the two sets are exchanged; the other distances do not.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from lumina_jax.evaluation.frechet import frechet_distance
from lumina_jax.evaluation.kernel_distance import (
    SUBSET_SIZE,
    SubsetEstimate,
    kernel_distance,
    kernel_distance_of_subsets,
)
from lumina_jax.evaluation.neighbours import DENSITY_NEIGHBOURS, Cover, cover


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetDistances:
    """The distances of two sets, and how many samples they have."""

    real: int
    drawn: int
    dimensions: int
    frechet: float
    kernel: float
    """The unbiased estimate from all pairs."""
    kernel_standard_error: float
    kernel_subsets: SubsetEstimate | None
    """None: a set has too few samples to draw subsets of the usual size."""
    cover: Cover | None
    """None: a set has too few samples for their nearest neighbours."""

    def as_json(self) -> dict[str, Any]:
        """Return all numbers by name; null for those that need more samples."""
        neighbours = dict.fromkeys(Cover._fields) if self.cover is None else self.cover._asdict()
        error = None if np.isnan(self.kernel_standard_error) else self.kernel_standard_error
        return {
            "frechet": self.frechet,
            "kernel": self.kernel,
            **neighbours,
            "kernel_standard_error": error,
            "kernel_subsets": None if self.kernel_subsets is None else self.kernel_subsets._asdict(),
            "real": self.real,
            "drawn": self.drawn,
            "dimensions": self.dimensions,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report, one fact a line."""
        yield f"  Frechet distance {self.frechet:.6g}"
        error = "" if np.isnan(self.kernel_standard_error) else f" (standard error {self.kernel_standard_error:.2g})"
        yield f"  kernel distance  {self.kernel:.6g}{error}"
        if self.kernel_subsets is not None:
            mean, deviation, subsets, size = self.kernel_subsets
            yield f"    {subsets} subsets of {size}: mean {mean:.6g}, deviation {deviation:.2g}"
        if self.cover is None:
            yield f"  precision, recall, density and coverage need more than {DENSITY_NEIGHBOURS} samples in each set"
        else:
            yield f"  precision {self.cover.precision:.4f}, recall {self.cover.recall:.4f}"
            yield f"  density   {self.cover.density:.4f}, coverage {self.cover.coverage:.4f}"
        if min(self.real, self.drawn) <= self.dimensions:
            yield (
                f"  a set has no more samples than the {self.dimensions} dimensions of its features, which makes the "
                "Frechet distance too large; compare it only between sets of the same sizes"
            )


def compare_sets(real: Float[np.ndarray, "..."], drawn: Float[np.ndarray, "..."]) -> SetDistances:
    """Return all distances that the numbers of samples allow.

    Raises:
      ValueError: a set has fewer than 2 samples or values that are not finite, or the widths differ.
    """
    for name, features in (("real", real), ("drawn", drawn)):
        if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
            raise ValueError(
                f"features must be an array [samples width] of at least 2 samples, but those of the {name} set are "
                f"{list(features.shape)}; compare more samples"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"features must be finite, but those of the {name} set are not; extract them again")
    if real.shape[1] != drawn.shape[1]:
        raise ValueError(
            f"features of both sets must have the same width, but have {real.shape[1]} (real) and {drawn.shape[1]} "
            "(drawn); extract both by the same network"
        )
    least = min(len(real), len(drawn))
    kernel = kernel_distance(real, drawn)
    return SetDistances(
        real=len(real),
        drawn=len(drawn),
        dimensions=real.shape[1],
        frechet=frechet_distance(real, drawn),
        kernel=kernel.value,
        kernel_standard_error=kernel.standard_error,
        kernel_subsets=kernel_distance_of_subsets(real, drawn) if least > SUBSET_SIZE else None,
        cover=cover(real, drawn) if least > DENSITY_NEIGHBOURS else None,
    )
