"""FLOPs of a sample as a function of the size of a model, and the best size for a budget of compute.

In: the cells of a table, whose FLOPs may hold attention, text and whatever else: C = g(N) D, where g(N) is not 6 N
times the tokens of a sample in general. Out: g as a power law k N^gamma where that agrees with the table to
`EXACT`, else as a monotone cubic interpolation of the table in logarithms, continued by the power law outside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from lumina_jax.scaling.law import LossLaw, Numbers
from lumina_jax.scaling.table import Cells

EXACT = 0.01
NEWTON_STEPS, CONVERGED = 60, 1e-10


@dataclass(frozen=True)
class SampleCost:
    """FLOPs of the training of a model on one sample.

    Attributes:
      coefficient: k of k N^gamma.
      exponent: gamma.
      error: the largest relative error of the power law in the table.
      spread: the largest relative difference of FLOPs per sample among cells of one size.
      knots: log N and log g(N) of the table where the power law does not hold, else None.
    """

    coefficient: float
    exponent: float
    error: float
    spread: float
    knots: Float[np.ndarray, "2 n"] | None = None

    def flops(self, parameters: Numbers) -> Numbers:
        return np.exp(self._log(np.log(parameters))[0])

    def best_parameters(self, law: LossLaw, flops: float) -> Any:
        """The number of parameters of the least loss for a budget, where a N^-a A = gamma b B D^-b; for arrays of laws
        one each, and nan where the law has no such number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(law.a * law.A) - np.log(law.b * law.B)
            x = np.zeros_like(ratio)
            for _ in range(NEWTON_STEPS):  # a root of a function that falls with log N
                log_cost, slope = self._log(x)
                excess = ratio - np.log(slope) - law.a * x + law.b * (np.log(flops) - log_cost)
                step = excess / (law.a + law.b * slope)
                x = x + step
                if not np.any(np.abs(step) > CONVERGED):
                    break
        return np.where(np.isfinite(ratio), np.exp(np.where(np.isfinite(ratio), x, 0.0)), np.nan)[()]

    def _log(self, x: Numbers) -> tuple[Numbers, Numbers]:
        """log g and its slope at log N."""
        if self.knots is None:
            return np.log(self.coefficient) + self.exponent * x, self.exponent + 0.0 * x
        sizes, costs = self.knots
        inside = np.clip(x, sizes[0], sizes[-1])
        curve = PchipInterpolator(sizes, costs)
        is_inside = (x >= sizes[0]) & (x <= sizes[-1])
        slope = np.where(is_inside, np.maximum(curve(inside, 1), 0.1 * self.exponent), self.exponent)
        return curve(inside) + self.exponent * (x - inside), slope[()]


def sample_cost(cells: Cells) -> SampleCost:
    """FLOPs per sample from a table; ValueError if they do not grow with the size of the model."""
    each = np.log(cells.flops / cells.samples)
    sizes, index = np.unique(np.log(cells.parameters), return_inverse=True)
    costs = np.bincount(index, each) / np.bincount(index)
    spread = float(np.expm1(np.max(np.abs(each - costs[index]))))
    exponent, constant = (float(one) for one in np.polyfit(sizes, costs, 1))
    if not exponent > 0:
        raise ValueError(
            f"flops / samples must grow with parameters, but in these runs it falls as N^{exponent:.2f}; check these "
            "columns"
        )
    error = float(np.expm1(np.max(np.abs(constant + exponent * sizes - costs))))
    is_interpolated = error > EXACT and bool(np.all(np.diff(costs) > 0))
    knots = np.stack([sizes, costs]) if is_interpolated else None
    return SampleCost(float(np.exp(constant)), exponent, error, spread, knots)
