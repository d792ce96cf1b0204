"""Compute-optimal sizes from IsoFLOP parabolas (Hoffmann et al. 2203.15556, approach 2; Liang et al. 2410.08184).

In: cells of a grid with several sizes for each budget of compute. Out: for each budget the minimum of a parabola of the
loss in log N, and power laws N = k C^g, D = k C^g, L = k C^-g through the minima. It assumes neither an additive law
nor a floor, but the parabolas are biased where sizes are far apart or not centred, even without noise; read it beside
the law.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lumina_jax.scaling.table import Cells

SAME_BUDGET = 0.05
"""Budgets that differ by less, as a share, count as one."""
LEAST_SIZES = 3


@dataclass(frozen=True)
class BudgetParabola:
    """The parabola of one budget, with its minimum.

    Attributes:
      cells: the cells of the budget.
      curve: coefficients of the parabola of the loss in log N, the highest power first.
      why_not: why the parabola has no minimum inside the sizes; empty if it has one.
    """

    flops: float
    cells: Cells
    curve: Float[np.ndarray, " 3"]
    parameters: float
    samples: float
    loss: float
    why_not: str = ""


@dataclass(frozen=True)
class PowerLaw:
    """A power law coefficient C^exponent, with 90 % bootstrap intervals."""

    coefficient: tuple[float, float, float]
    exponent: tuple[float, float, float]

    def at(self, flops: float) -> float:
        return float(self.coefficient[0] * flops ** self.exponent[0])

    def as_json(self) -> dict[str, dict[str, float]]:
        names = "value", "low", "high"
        return {key: dict(zip(names, one)) for key, one in vars(self).items()}


@dataclass(frozen=True)
class IsoFlops:
    """All budgets, and the power laws of the minima (None if fewer than two budgets have one)."""

    budgets: tuple[BudgetParabola, ...]
    parameters: PowerLaw | None
    samples: PowerLaw | None
    loss: PowerLaw | None


def budgets_of(cells: Cells) -> tuple[BudgetParabola, ...]:
    """The budgets with at least three sizes, and their parabolas."""
    order = np.argsort(cells.flops, kind="stable")
    ends = np.flatnonzero(np.diff(np.log(cells.flops[order])) > np.log1p(SAME_BUDGET)) + 1
    groups = [cells.where(group) for group in np.split(order, ends)]
    return tuple(_parabola(group) for group in groups if len(np.unique(group.parameters)) >= LEAST_SIZES)


def isoflops(cells: Cells, draws: int, seed: int) -> IsoFlops:
    """Parabolas and power laws; each draw of the bootstrap gives the losses of a budget residuals of all budgets, and
    skips budgets that lose their minimum."""
    budgets = budgets_of(cells)
    best = [one for one in budgets if not one.why_not]
    if len(best) < 2:
        return IsoFlops(budgets, None, None, None)
    random = np.random.default_rng(seed)
    spare = sum(max(len(one.cells) - 3, 0) for one in best)
    residuals = np.concatenate([(one.cells.values / _values(one) - 1) * np.sqrt(one.cells.counts) for one in best])
    residuals *= np.sqrt(len(residuals) / max(spare, 1))
    found = [_powers(best)]
    for _ in range(draws):
        again = []
        for one in best:
            noise = random.choice(residuals, len(one.cells)) * random.choice([-1.0, 1.0], len(one.cells))
            values = _values(one) * (1 + noise / np.sqrt(one.cells.counts))
            columns = {**vars(one.cells), "values": values}
            again.append(_parabola(Cells(**columns)))
        again = [one for one in again if not one.why_not]
        if len(again) >= 2:
            found.append(_powers(again))
    table = np.array(found)  # [draws, quantity, (log coefficient, exponent)]
    low, high = np.quantile(table, [0.05, 0.95], axis=0)
    laws = [
        PowerLaw(
            tuple(np.exp([table[0, row, 0], low[row, 0], high[row, 0]]).tolist()),
            (float(table[0, row, 1]), float(low[row, 1]), float(high[row, 1])),
        )
        for row in range(3)
    ]
    return IsoFlops(budgets, *laws)


def _values(budget: BudgetParabola) -> Float[np.ndarray, " n"]:
    return np.polyval(budget.curve, np.log(budget.cells.parameters))


def _parabola(cells: Cells) -> BudgetParabola:
    flops = float(np.exp(np.mean(np.log(cells.flops))))
    logs, centre = np.log(cells.parameters), float(np.mean(np.log(cells.parameters)))
    square, slope, constant = np.polyfit(logs - centre, cells.values, 2, w=np.sqrt(cells.counts))
    curve = np.array([square, slope - 2 * square * centre, constant - slope * centre + square * centre**2])
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = centre - slope / (2 * square)
    loss = float(np.polyval(curve, vertex)) if square > 0 else float("nan")
    why_not = ""
    if not square > 0:
        why_not = "the loss has no minimum in N"
    elif not logs.min() <= vertex <= logs.max():
        why_not = f"the minimum lies {'below' if vertex < logs.min() else 'above'} all sizes"
    elif not loss > 0:
        why_not = "the minimum is not positive"
    if why_not:
        return BudgetParabola(flops, cells, curve, float("nan"), float("nan"), float("nan"), why_not)
    order = np.argsort(logs)
    each = np.interp(vertex, logs[order], np.log(cells.flops / cells.samples)[order])
    return BudgetParabola(flops, cells, curve, float(np.exp(vertex)), float(flops / np.exp(each)), loss)


def _powers(budgets: list[BudgetParabola]) -> Float[np.ndarray, "3 2"]:
    """log coefficient and exponent of N, D and L."""
    logs = np.log([one.flops for one in budgets])
    table = np.log([[one.parameters, one.samples, one.loss] for one in budgets])
    exponents, constants = np.polyfit(logs, table, 1)
    return np.stack([constants, exponents], axis=1)
