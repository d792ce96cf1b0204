"""Confidence intervals of a fitted law, from likelihood ratios that a bootstrap calibrates.

In: a `LawFit`. Out: regions of laws that fit the losses about as well as the best one,

    { law : S(law) <= S(best) + c s^2 },    S the weighted sum of squares, s^2 = S(best) / (n - 5),

and the range of any quantity over them. Each bootstrap draw adds noise to the fitted losses, the residuals of the cells
in a new order with random signs, and fits them again. Two thresholds c follow:

joint: the law as planted lies in the region of 90 % of draws. The ranges of E, A, a, B and b over it hold together with
  at least 90 % confidence, and each alone with more (Scheffe's method).
single: 95 % of draws have (S with E, a or b as planted) - S(best) <= c s^2 for all three. It is for the range of one
  quantity, such as the loss of one model, and exceeds that of 90 % because draws know the model of the noise.

The residuals of cells hold the noise of seeds and what the law misses, and so does s^2. Percentiles of refitted
parameters would be too narrow: the fit is far from linear, E is bounded by 0, and estimates are biased. A likelihood
ratio does not depend on how the law is parametrised (Seber and Wild 1989, chapter 5).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.stats import f as fisher
from scipy.stats import t as student

from lumina_jax.scaling.law import GREATEST_EXPONENT, LEAST_EXPONENT, NUMERICAL_NOISE, LawFit, LossLaw
from lumina_jax.scaling.projection import Cone

DRAW_LINES, FINE_LINES = 25, 61
ZOOMS = 12
TIGHT = 0.6
"""A box is tight when its lines find a box of at least this share of its size."""
MARGIN = 1.5
"""The factor by which the threshold of the searched box exceeds that of normal noise."""
NEGLIGIBLE = 1e-13
"""Directions of the columns below this share of the largest are dropped."""
CHUNK = 250
"""Draws that are solved at once."""


@dataclass(frozen=True)
class Surface:
    """The sums of squares of a fit over lines of exponents.

    The columns of all points span few directions, `basis`, in which observations are expressed: the cost of a draw
    does not grow with their number.
    """

    fit: LawFit
    a: Float[np.ndarray, " i"]
    b: Float[np.ndarray, " j"]

    @cached_property
    def _compressed(self) -> tuple[Float[np.ndarray, "n r"], Cone]:
        columns = self.fit.design.columns(self.a, self.b)
        distinct = np.concatenate([columns[0, 0, :, :1], columns[:, 0, :, 1].T, columns[0, :, :, 2].T], axis=1)
        basis, sizes, _ = np.linalg.svd(distinct / np.linalg.norm(distinct, axis=0), full_matrices=False)
        basis = basis[:, sizes > NEGLIGIBLE * sizes[0]]
        flat = columns.reshape(-1, *columns.shape[2:])
        return basis, Cone.of(np.matmul(basis.T, flat))

    @property
    def cone(self) -> Cone:
        return self._compressed[1]

    @cached_property
    def scales(self) -> Float[np.ndarray, "g 3"]:
        """What turns the coefficients of a point into (E, A, B)."""
        return self.fit.design.scales(*np.meshgrid(self.a, self.b, indexing="ij")).reshape(-1, 3)

    def projected(self, y: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, " d"]]:
        """Observations in the basis, and the sums of squares outside it."""
        basis, _ = self._compressed
        inside = basis.T @ y
        return inside, np.maximum(np.sum(y**2, 0) - np.sum(inside**2, 0), 0.0)

    def residuals(self, y: Float[np.ndarray, "n d"], E: float | None = None) -> Float[np.ndarray, "i j d"]:
        """The least sums of squares, with E fixed if it is given."""
        inside, outside = self.projected(y if E is None else y - E * self.fit.root[:, None])
        rest = self.cone.residuals(inside, fixed=None if E is None else 0) + outside
        return rest.reshape(len(self.a), len(self.b), -1)

    def boxed(self, threshold: float) -> tuple[float, float, float, float]:
        """The lines just outside the points whose sum of squares is at most the threshold."""
        is_inside = self.residuals(self.fit.target[:, None])[..., 0] <= threshold
        edges = []
        for lines, hit in ((self.a, is_inside.any(1)), (self.b, is_inside.any(0))):
            index = np.flatnonzero(hit)
            edges += [lines[max(index[0] - 1, 0)], lines[min(index[-1] + 1, len(lines) - 1)]]
        return tuple(edges)


@dataclass(frozen=True)
class Region:
    """The laws that fit about as well as the best one, at the points of a fine surface.

    Attributes:
      factor: the threshold c; its square root is how many standard errors an interval reaches.
    """

    surface: Surface
    threshold: float
    factor: float

    @cached_property
    def profiles(self) -> Float[np.ndarray, "i j"]:
        return self.surface.residuals(self.surface.fit.target[:, None])[..., 0]

    def exponent(self, axis: int) -> tuple[float, float]:
        """The interval of a (axis 0) or b (axis 1)."""
        lines = (self.surface.a, self.surface.b)[axis]
        low, high = crossings(np.log(lines), self.profiles.min(1 - axis), self.threshold)
        return float(np.exp(low)), float(np.exp(high))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The intervals of E, A, a, B and b."""
        E, A, B = (self.linear(np.tile(row, (len(self.surface.scales), 1))) for row in np.eye(3))
        return {"E": E, "A": A, "a": self.exponent(0), "B": B, "b": self.exponent(1)}

    def linear(self, function: Float[np.ndarray, "g 3"]) -> tuple[float, float]:
        """The interval of a function that is linear in (E, A, B) given the exponents, such as the loss of a model."""
        _, values = self._extremes(function * self.surface.scales)
        return float(np.nanmin(values[0])), float(np.nanmax(values[1]))

    def loss(self, parameters: float, samples: float) -> tuple[float, float]:
        """The interval of the loss of a model."""
        a, b = (one.ravel() for one in np.meshgrid(self.surface.a, self.surface.b, indexing="ij"))
        return self.linear(np.stack([np.ones_like(a), parameters**-a, samples**-b], axis=1))

    @cached_property
    def laws(self) -> LossLaw:
        """Laws on the boundary of the region, and the best one, as arrays: extreme in E, A, B and in A to B."""
        law, count = self.surface.fit.law, len(self.surface.scales)
        functions = [np.eye(3)[index] for index in range(3)] + [np.array([0.0, 1.0, -1.0])]
        a, b = (one.ravel() for one in np.meshgrid(self.surface.a, self.surface.b, indexing="ij"))
        best = self.surface.cone.coefficients(self._inside)
        found = [np.array([[law.E, law.A, law.a, law.B, law.b]])]
        for function in functions:
            weights = np.tile(function, (count, 1))
            if function[2] < 0:  # in units of the best ratio, so that the extremes are those of A / B
                weights[:, 2] *= best[:, 1] / np.maximum(best[:, 2], np.finfo(float).tiny)
            points, values = self._extremes(weights)
            for end in range(2):
                E, A, B = (points[end] * self.surface.scales).T
                found.append(np.stack([E, A, a, B, b], axis=1)[np.isfinite(values[end])])
        E, A, a, B, b = np.concatenate(found).T
        return LossLaw(E, A, a, B, b)

    @cached_property
    def _inside(self) -> Float[np.ndarray, " r"]:
        return self.surface.projected(self.surface.fit.target[:, None])[0][:, 0]

    def _extremes(self, function: Float[np.ndarray, "g 3"]) -> tuple[np.ndarray, np.ndarray]:
        outside = float(self.surface.projected(self.surface.fit.target[:, None])[1][0])
        return self.surface.cone.extremes(self._inside, self.threshold - outside, function)


@dataclass(frozen=True)
class Confidence:
    """The region for all parameters together, and that for any one quantity."""

    joint: Region
    single: Region


def confidence(fit: LawFit, draws: int, seed: int, level: float = 0.9) -> Confidence:
    """The regions at a level of confidence, calibrated by bootstrap draws.

    The thresholds are at least those of normal noise: F of 5 and n - 5 degrees of freedom, and Student's t.
    """
    best = float(np.sum((fit.target - fit.fitted * fit.root) ** 2))
    normal = student.isf((1 - level) / 4, fit.spare) ** 2, 5 * fisher.ppf(level, 5, fit.spare)
    searched = _zoomed(fit, best + MARGIN * normal[1] * fit.scale**2, DRAW_LINES)
    factors = np.maximum(normal, calibrated(searched, draws, seed, level))
    regions = []
    for factor in factors.tolist():
        threshold = best + factor * fit.scale**2
        regions.append(Region(_zoomed(fit, threshold, FINE_LINES), threshold, factor))
    return Confidence(joint=regions[1], single=regions[0])


def calibrated(surface: Surface, draws: int, seed: int, level: float) -> tuple[float, float]:
    """The thresholds c for one quantity and for all parameters, from the statistics of the draws."""
    fit, random = surface.fit, np.random.default_rng(seed)
    row, column = np.searchsorted(surface.a, fit.law.a), np.searchsorted(surface.b, fit.law.b)
    fitted = (fit.fitted * fit.root)[:, None]
    residuals = fit.target - fitted[:, 0]
    found = []
    for start in range(0, draws, CHUNK):
        shape = len(residuals), min(CHUNK, draws - start)
        noise = random.choice(residuals, shape) * random.choice([-1.0, 1.0], shape)
        noise += NUMERICAL_NOISE * random.standard_normal(shape)
        rest = surface.residuals(fitted + noise)
        with_floor = surface.residuals(fitted + noise, fit.law.E).min((0, 1))
        own = rest.min((0, 1))
        planted = np.max([rest[row].min(0), rest[:, column].min(0), with_floor], axis=0), np.sum(noise**2, 0)
        found.append((np.stack(planted) - own) * fit.spare / np.maximum(own, np.finfo(float).tiny))
    single, joint = np.concatenate(found, axis=1)
    return np.quantile(single, (1 + level) / 2), np.quantile(joint, level)


def crossings(
    lines: Float[np.ndarray, " i"], profile: Float[np.ndarray, " i"], threshold: float
) -> tuple[float, float]:
    """The outermost points at which a profile crosses the threshold, between lines by linear interpolation."""
    index = np.flatnonzero(profile <= threshold)
    ends = []
    for inner, outer in ((index[0], index[0] - 1), (index[-1], index[-1] + 1)):
        if 0 <= outer < len(lines):
            share = (threshold - profile[inner]) / (profile[outer] - profile[inner])
            ends.append(lines[inner] + share * (lines[outer] - lines[inner]))
        else:
            ends.append(lines[inner])
    return float(ends[0]), float(ends[1])


def _zoomed(fit: LawFit, threshold: float, count: int) -> Surface:
    """A surface whose lines just hold the points below the threshold, and the exponents of the fit."""
    box = LEAST_EXPONENT, GREATEST_EXPONENT, LEAST_EXPONENT, GREATEST_EXPONENT
    for _ in range(ZOOMS):
        size = _size(box)
        box = _surface(fit, box, DRAW_LINES).boxed(threshold)
        if _size(box) > TIGHT * size:
            break
    return _surface(fit, box, count)


def _surface(fit: LawFit, box: tuple[float, float, float, float], count: int) -> Surface:
    a0, a1, b0, b1 = box
    a, b = np.geomspace(a0, a1, count), np.geomspace(b0, b1, count)
    return Surface(fit, np.union1d(a, [fit.law.a]), np.union1d(b, [fit.law.b]))


def _size(box: tuple[float, float, float, float]) -> float:
    a0, a1, b0, b1 = box
    return float(np.log(a1 / a0) * np.log(b1 / b0))
