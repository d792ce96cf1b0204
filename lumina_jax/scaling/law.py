"""The law of a loss, L(N, D) = E + A N^-a + B D^-b, and its least squares fit by variable projection.

In: cells of a grid of runs. Out: the law with its residuals, or a ValueError that says what the table cannot tell.
Hoffmann et al. (2203.15556, approach 3) fit this law by five-dimensional descent; given (a, b) it is linear in
(E, A, B) >= 0, so that only two exponents are searched: over a grid first, then by Nelder and Mead's method on
non-negative least squares. Columns are divided by their geometric mean, N^-a by N0^-a, which conditions them.

The noise is that of each run's loss. "relative": its standard deviation is a share of the loss; "absolute": it is the
same for all runs. Residuals are divided by it, and the relative one is that of the fitted loss, found by reweighting.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, nnls
from scipy.special import erf

from lumina_jax.scaling.projection import Cone
from lumina_jax.scaling.table import Cells

Noise = Literal["relative", "absolute"]
LEAST_EXPONENT, GREATEST_EXPONENT = 0.004, 4.0
"""The range of exponents that is searched."""
COARSE_LINES = 48
REWEIGHTINGS, HUBER_REWEIGHTINGS = 4, 40
CONVERGED = 1e-9
NUMERICAL_NOISE = 1e-6
"""The least standard deviation, as a share of the loss; tables without noise would have none."""
Values = Float[np.ndarray, " n"]
Numbers = float | Float[np.ndarray, "..."]


@dataclass(frozen=True)
class LossLaw:
    """L = E + A N^-a + B D^-b, for N parameters and D samples; with arrays [n] instead of numbers, n laws."""

    E: Any
    A: Any
    a: Any
    B: Any
    b: Any

    def loss(self, parameters: Numbers, samples: Numbers) -> Any:
        return self.E + self.A * parameters**-self.a + self.B * samples**-self.b


@dataclass(frozen=True)
class Design:
    """What a fit needs of cells: their columns, and the square roots of their weights.

    Attributes:
      root: the number 1 / (standard deviation of the cell's mean), up to a common factor.
    """

    log_parameters: Values
    log_samples: Values
    root: Values

    @staticmethod
    def of(cells: Cells, root: Values) -> "Design":
        return Design(np.log(cells.parameters), np.log(cells.samples), root)

    def columns(self, a: Float[np.ndarray, " i"], b: Float[np.ndarray, " j"]) -> Float[np.ndarray, "i j n 3"]:
        """The weighted columns of (E, A N0^-a, B D0^-b) for each pair of exponents."""
        by_size = np.exp(-a[:, None] * (self.log_parameters - self.log_parameters.mean())) * self.root
        by_data = np.exp(-b[:, None] * (self.log_samples - self.log_samples.mean())) * self.root
        shape = (len(a), len(b), len(self.root))
        return np.stack(
            [np.broadcast_to(one, shape) for one in (self.root, by_size[:, None], by_data[None, :])], axis=-1
        )

    def scales(self, a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 3"]:
        """What turns the coefficients of `columns` into (E, A, B)."""
        logs = np.broadcast_arrays(0.0 * a, a * self.log_parameters.mean(), b * self.log_samples.mean())
        return np.exp(np.stack(logs, axis=-1))

    def law(self, a: float, b: float, y: Values) -> tuple[LossLaw, float]:
        """The law with the given exponents that fits weighted losses best, and the root of its sum of squares."""
        coefficients, norm = nnls(self.columns(np.array([a]), np.array([b]))[0, 0], y)
        E, A, B = (coefficients * self.scales(np.array(a), np.array(b))).tolist()
        return LossLaw(E, A, float(a), B, float(b)), float(norm)


@dataclass(frozen=True)
class LawFit:
    """A fitted law.

    Attributes:
      noise: the model of the noise that the weights follow.
      root: 1 / (standard deviation of a cell's mean), up to a common factor.
      target: the weighted losses whose least squares fit is the law. With Huber's loss they are pseudo-values
        (Huber 1981, section 7.8), whose residuals have the variance of the robust estimate.
      scale: standard deviation of the noise of one run, as a share of the loss (of the mean loss if absolute).
      spare: observations less parameters.
    """

    cells: Cells
    law: LossLaw
    noise: Noise
    root: Values
    target: Values
    scale: float
    spare: int

    @property
    def design(self) -> Design:
        return Design.of(self.cells, self.root)

    @property
    def fitted(self) -> Values:
        return self.law.loss(self.cells.parameters, self.cells.samples)

    @property
    def residuals(self) -> Values:
        """Losses less fitted losses, in standard deviations of a cell's mean."""
        return (self.cells.values - self.fitted) * self.root / self.scale

    def noise_of(self, loss: Numbers) -> Numbers:
        """The standard deviation of one run at a loss."""
        return self.scale * (loss if self.noise == "relative" else 0 * loss + self.cells.values.mean())


def fit_law(cells: Cells, noise: Noise | Literal["auto"] = "auto", huber: float | None = None) -> LawFit:
    """Fit the law.

    Args:
      noise: "auto" takes the model under which the losses are likelier.
      huber: residuals of log losses beyond this count linearly instead of squared; Hoffmann et al. use 1e-3.
    """
    if noise == "auto":
        return max(
            (fit_law(cells, one, huber) for one in ("relative", "absolute")), key=_log_likelihood
        )  # the first if they are equal
    fitted, robust, start = cells.values, np.ones(len(cells)), None
    for _ in range(REWEIGHTINGS if huber is None else HUBER_REWEIGHTINGS):
        size = fitted if noise == "relative" else np.full(len(cells), cells.values.mean())
        root = np.sqrt(cells.counts) / size
        law = _best(Design.of(cells, root * np.sqrt(robust)), cells.values * root * np.sqrt(robust), start)
        start, previous = (law.a, law.b), fitted
        fitted = law.loss(cells.parameters, cells.samples)
        if huber is not None:
            robust = np.minimum(1.0, huber / np.maximum(np.abs(np.log(cells.values / fitted)), NUMERICAL_NOISE))
        if np.max(np.abs(fitted / previous - 1)) < CONVERGED:
            break
    return _with_scale(cells, law, noise, root, huber)


def _best(design: Design, y: Values, start: tuple[float, float] | None) -> LossLaw:
    """The law of the least sum of squares, from the best of a grid or from the exponents of an earlier fit."""
    if start is None:
        lines = np.geomspace(LEAST_EXPONENT, GREATEST_EXPONENT, COARSE_LINES)
        columns = design.columns(lines, lines).reshape(-1, len(y), 3)
        rest = Cone.of(columns).residuals(y[:, None]).reshape(COARSE_LINES, COARSE_LINES)
        row, column = np.unravel_index(np.argmin(rest), rest.shape)
        start = float(lines[row]), float(lines[column])
    found = minimize(
        lambda logs: design.law(float(np.exp(logs[0])), float(np.exp(logs[1])), y)[1],
        np.log(start),
        method="Nelder-Mead",
        bounds=[(np.log(LEAST_EXPONENT), np.log(GREATEST_EXPONENT))] * 2,
        options={"xatol": 1e-7, "fatol": 1e-13, "initial_simplex": np.log(start) + 0.05 * np.eye(3, 2, -1)},
    )
    a, b = np.exp(found.x).tolist()
    return design.law(a, b, y)[0]


def _with_scale(cells: Cells, law: LossLaw, noise: Noise, root: Values, huber: float | None) -> LawFit:
    fitted = law.loss(cells.parameters, cells.samples)
    residuals, spare = (cells.values - fitted) * root, len(cells) - 5
    if huber is not None:
        cut = huber * np.sqrt(cells.counts) * np.where(noise == "relative", 1, fitted / cells.values.mean())
        spread = max(1.4826 * float(np.median(np.abs(residuals))), NUMERICAL_NOISE)
        residuals = np.clip(residuals, -cut, cut) / erf(cut / spread / np.sqrt(2))
    scale = max(float(np.sqrt(np.sum(residuals**2) / max(spare, 1))), NUMERICAL_NOISE)
    return LawFit(cells, law, noise, root, fitted * root + residuals, scale, spare)


def _log_likelihood(fit: LawFit) -> float:
    return float(np.sum(np.log(fit.root)) - len(fit.root) * np.log(fit.scale))
