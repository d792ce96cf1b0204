"""By what factor one recipe needs less compute than another for the same loss.

In: runs of two recipes, `of` and `against`. Out: the factor f = C_of / C_against at equal loss, over the range of
losses that both cover; 0.65 means that the first needs 65 % of the compute of the second. Each recipe is reduced to its
frontier, the cells that no cell of at most their budget beats, and both frontiers are fitted by one curve,

    L = E + K C^-g for `against`,    L = E + K (C / f)^-g for `of`,

with a common floor E and exponent g, so that one factor holds for all losses; factors at single losses, read off the
frontiers, show where it does not. The interval is the range of f over the joint region of (E, K, g, f) whose likelihood
ratio a bootstrap calibrates, as in `confidence`; what the curve misses of the frontiers widens it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.stats import f as fisher

from lumina_jax.scaling.confidence import crossings
from lumina_jax.scaling.law import GREATEST_EXPONENT, LEAST_EXPONENT, NUMERICAL_NOISE
from lumina_jax.scaling.parabolas import SAME_BUDGET
from lumina_jax.scaling.projection import Cone
from lumina_jax.scaling.table import Cells, TrainedRun, cells_of

Better = Literal["lower", "higher"]
Lines = tuple[Float[np.ndarray, " i"], Float[np.ndarray, " j"]]
"""Logarithms of factors, and exponents."""
PARAMETERS, LEAST_CELLS, LEAST_OF_EACH = 4, 6, 2
LINES, ZOOMS, CHUNK = 33, 8, 200
MARGIN = 1.5
FARTHEST = np.log(1e4)
"""The largest logarithm of a factor that is searched."""
REWEIGHTINGS = 3
SHOWN_LOSSES = 5
LEVEL = 0.9


@dataclass(frozen=True)
class Frontiers:
    """The frontiers of two recipes, one after the other.

    Attributes:
      values: a metric of which less is better; the negative one if more is.
      is_of: which cells are of the first recipe.
      has_floor: whether the metric is bounded by 0 from below.
      root: 1 / (standard deviation of a cell), up to a common factor.
    """

    log_flops: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    is_of: Bool[np.ndarray, " n"]
    has_floor: bool
    root: Float[np.ndarray, " n"]

    def cone(self, log_factor: Float[np.ndarray, " i"], exponent: Float[np.ndarray, " j"]) -> Cone:
        """Designs of (E, K), or (E, -E, K) without a floor, at each factor and exponent."""
        logs = self.log_flops - self.log_flops.mean() - log_factor[:, None] * self.is_of
        curve = np.exp(-exponent[None, :, None] * logs[:, None]) * self.root
        ones = np.broadcast_to(self.root, curve.shape)
        columns = [ones, curve] if self.has_floor else [ones, -ones, curve]
        return Cone.of(np.stack(columns, axis=-1).reshape(-1, len(self.values), len(columns)))


@dataclass(frozen=True)
class ComputeFactor:
    """The factor with its interval.

    Attributes:
      losses: the range of losses that both recipes cover.
      at: losses in this range, and the factors read off the frontiers there.
    """

    of: str
    against: str
    metric: str
    factor: tuple[float, float, float]
    exponent: float
    losses: tuple[float, float]
    at: tuple[tuple[float, float], ...]
    cells: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "against": self.against,
            "metric": self.metric,
            "level": LEVEL,
            "factor": dict(zip(("value", "low", "high"), self.factor)),
            "exponent": self.exponent,
            "range": dict(zip(("low", "high"), self.losses)),
            "at": [{self.metric: loss, "factor": factor} for loss, factor in self.at],
            "frontier_cells": dict(zip(("of", "against"), self.cells)),
        }


def compare(
    of: Sequence[TrainedRun],
    against: Sequence[TrainedRun],
    metric: str = "loss",
    better: Better = "lower",
    draws: int = 1000,
    seed: int = 0,
) -> ComputeFactor:
    """Compare the runs of two recipes.

    Raises:
      ValueError: the runs have too few cells on the frontiers, or losses that do not overlap.
    """
    sign = 1.0 if better == "lower" else -1.0
    both = [frontier(cells_of(runs, metric), sign) for runs in (of, against)]
    names = of[0].recipe, against[0].recipe
    ranges = [(float(cells.values.min()), float(cells.values.max())) for cells in both]
    shared = max(low for low, _ in ranges), min(high for _, high in ranges)
    for name, cells in zip(names, both):
        if len(cells) < LEAST_OF_EACH:
            raise ValueError(
                f"a comparison needs at least {LEAST_OF_EACH} budgets at which {name} improves, but its {metric} is "
                "best at the smallest; add runs of more compute"
            )
    if not shared[0] < shared[1]:
        shown = " and ".join(
            f"{low * sign:.5g} to {high * sign:.5g} of {name}" for name, (low, high) in zip(names, ranges)
        )
        raise ValueError(f"the ranges of {metric} must overlap, but are {shown}; add runs of other budgets")
    if sum(map(len, both)) < LEAST_CELLS:
        raise ValueError(
            f"a factor and its noise need at least {LEAST_CELLS} cells on both frontiers together, but there are "
            f"{sum(map(len, both))}; add budgets"
        )
    factor, exponent = _factor(both, metric == "loss" and better == "lower", draws, seed)
    losses = np.linspace(*shared, SHOWN_LOSSES)
    logs = [np.interp(losses, cells.values[::-1], np.log(cells.flops[::-1])) for cells in both]
    at = tuple(zip((sign * losses).tolist(), np.exp(logs[0] - logs[1]).tolist()))
    low, high = sorted(sign * one for one in shared)
    return ComputeFactor(*names, metric, factor, exponent, (low, high), at, (len(both[0]), len(both[1])))


def frontier(cells: Cells, sign: float = 1.0) -> Cells:
    """Cells that are better than all others of at most their budget, in order of FLOPs; their values times the sign.

    Budgets count, and not FLOPs: a run of eleven steps that cost a little less than the others is no better for it.
    """
    values = sign * cells.values
    is_cheaper = cells.budgets[None] < (1 + SAME_BUDGET) * cells.budgets[:, None]
    is_best = values <= np.min(np.where(is_cheaper, values, np.inf), axis=1)
    chosen = Cells(**{**vars(cells), "values": values}).where(is_best)
    return chosen.where(np.argsort(chosen.flops))


def _factor(both: Sequence[Cells], has_floor: bool, draws: int, seed: int) -> tuple[tuple[float, float, float], float]:
    """The factor with its interval, and the exponent."""
    values = np.concatenate([cells.values for cells in both])
    weights = np.sqrt(np.concatenate([cells.counts for cells in both]))
    log_flops = np.log(np.concatenate([cells.flops for cells in both]))
    is_of = np.arange(len(values)) < len(both[0])
    fitted = values if has_floor else np.full(len(values), np.abs(values).mean())
    for _ in range(REWEIGHTINGS if has_floor else 1):
        frontiers = Frontiers(log_flops, values, is_of, has_floor, weights / fitted)
        best, log_factor, exponent = _best(frontiers)
        fitted = _curve(frontiers, log_factor, exponent)
    spare = len(values) - PARAMETERS
    variance = max(best / spare, NUMERICAL_NOISE**2)
    normal = PARAMETERS * fisher.ppf(LEVEL, PARAMETERS, spare)
    lines = _zoomed(frontiers, best + MARGIN * normal * variance, log_factor, exponent)
    threshold = max(normal, _calibrated(frontiers, lines, _curve(frontiers, log_factor, exponent), draws, seed))
    lines = _zoomed(frontiers, best + threshold * variance, log_factor, exponent)
    profile = _residuals(frontiers, lines, frontiers.values * frontiers.root)[..., 0].min(1)
    low, high = crossings(lines[0], profile, best + threshold * variance)
    return (float(np.exp(log_factor)), float(np.exp(low)), float(np.exp(high))), exponent


def _calibrated(frontiers: Frontiers, lines: Lines, fitted: Float[np.ndarray, " n"], draws: int, seed: int) -> float:
    """The threshold below which the planted curve of 90 % of bootstrap draws lies, in units of their variance."""
    random, found = np.random.default_rng(seed), []
    residuals = (frontiers.values - fitted) * frontiers.root
    for start in range(0, draws, CHUNK):
        shape = len(fitted), min(CHUNK, draws - start)
        noise = random.choice(residuals, shape) * random.choice([-1.0, 1.0], shape)
        noise += NUMERICAL_NOISE * random.standard_normal(shape)
        own = _residuals(frontiers, lines, (fitted * frontiers.root)[:, None] + noise).min((0, 1))
        spare = len(fitted) - PARAMETERS
        found.append((np.sum(noise**2, 0) - own) * spare / np.maximum(own, np.finfo(float).tiny))
    return float(np.quantile(np.concatenate(found), LEVEL))


def _best(frontiers: Frontiers) -> tuple[float, float, float]:
    """The least sum of squares, with its logarithm of the factor and its exponent."""
    lines = (np.linspace(-FARTHEST, FARTHEST, LINES), np.geomspace(LEAST_EXPONENT, GREATEST_EXPONENT, LINES))
    rest = _residuals(frontiers, lines, frontiers.values * frontiers.root)[..., 0]
    row, column = np.unravel_index(np.argmin(rest), rest.shape)
    y = frontiers.values * frontiers.root

    def objective(x: Float[np.ndarray, " 2"]) -> float:
        return float(np.sqrt(frontiers.cone(x[:1], np.exp(x[1:])).residuals(y[:, None])[0, 0]))

    start = np.array([lines[0][row], np.log(lines[1][column])])
    found = minimize(
        objective,
        start,
        method="Nelder-Mead",
        bounds=[(-FARTHEST, FARTHEST), (np.log(LEAST_EXPONENT), np.log(GREATEST_EXPONENT))],
        options={"xatol": 1e-7, "fatol": 1e-13, "initial_simplex": start + 0.1 * np.eye(3, 2, -1)},
    )
    return float(found.fun) ** 2, float(found.x[0]), float(np.exp(found.x[1]))


def _curve(frontiers: Frontiers, log_factor: float, exponent: float) -> Float[np.ndarray, " n"]:
    """The fitted values at a factor and an exponent."""
    cone = frontiers.cone(np.array([log_factor]), np.array([exponent]))
    coefficients = cone.coefficients(frontiers.values * frontiers.root)
    return cone.columns[0] @ coefficients[0] / frontiers.root


def _residuals(frontiers: Frontiers, lines: Lines, y: Float[np.ndarray, "n *d"]) -> Float[np.ndarray, "i j d"]:
    rest = frontiers.cone(*lines).residuals(y.reshape(len(y), -1))
    return rest.reshape(len(lines[0]), len(lines[1]), -1)


def _zoomed(frontiers: Frontiers, threshold: float, log_factor: float, exponent: float) -> Lines:
    """Lines of factors and exponents that just hold the points below the threshold."""
    box = [(-FARTHEST, FARTHEST), (np.log(LEAST_EXPONENT), np.log(GREATEST_EXPONENT))]
    y = frontiers.values * frontiers.root
    for _ in range(ZOOMS):
        logs = [np.union1d(np.linspace(*ends, LINES), [one]) for ends, one in zip(box, (log_factor, np.log(exponent)))]
        is_inside = _residuals(frontiers, (logs[0], np.exp(logs[1])), y)[..., 0] <= threshold
        for axis in range(2):
            index = np.flatnonzero(is_inside.any(1 - axis))
            box[axis] = logs[axis][max(index[0] - 1, 0)], logs[axis][min(index[-1] + 1, len(logs[axis]) - 1)]
    return logs[0], np.exp(logs[1])
