"""From runs to a law with intervals, predictions for budgets of compute, and the test on runs held out.

In: runs of one recipe. Out: a `ScalingFit`, or a ValueError that says what the table cannot tell: before the fit if it
has too few cells or sizes, after it if a term vanishes or a loss lies far below the floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from lumina_jax.scaling.budget import SampleCost, sample_cost
from lumina_jax.scaling.confidence import Confidence, confidence
from lumina_jax.scaling.law import GREATEST_EXPONENT, LEAST_EXPONENT, NUMERICAL_NOISE, LawFit, fit_law
from lumina_jax.scaling.parabolas import IsoFlops, isoflops
from lumina_jax.scaling.settings import FitSettings
from lumina_jax.scaling.table import Cells, TrainedRun, cells_of

LEAST_CELLS, LEAST_VALUES = 7, 3
ON_A_LINE = 0.02
"""The spread of log D about a line in log N below which the two columns are one."""
LARGEST = 0.01
"""Budgets within this share of the largest are held out with it."""
UNLIKELY = 1e-6
"""A run whose loss is less likely than this, by a robust fit, is refused below the floor and noted elsewhere."""
EFFICIENCY = 0.37
"""Of the median absolute deviation: it tells as much as this share of the residuals would by their squares."""
ROBUST = 1e-3
"""The Huber constant of the robust fit, in log losses."""
LEVEL = 0.9
NORMAL_SPREAD = 1.4826
"""The standard deviation of normal noise by its median absolute deviation."""


@dataclass(frozen=True)
class Prediction:
    """The loss of a model that one run would show, with an interval that holds the noise of this run.

    Attributes:
      parameters_range: the interval of the number of parameters; nan if it was given.
      curve: the interval of the law itself, without the noise of a run.
    """

    flops: float
    parameters: float
    samples: float
    loss: float
    low: float
    high: float
    curve: tuple[float, float]
    parameters_range: tuple[float, float] = (float("nan"), float("nan"))
    samples_range: tuple[float, float] = (float("nan"), float("nan"))

    def as_json(self) -> dict[str, float]:
        ranges = {
            f"{name}_{end}": value
            for name in ("parameters", "samples")
            for end, value in zip(("low", "high"), getattr(self, f"{name}_range"))
            if np.isfinite(value)
        }
        plain = {name: getattr(self, name) for name in ("flops", "parameters", "samples", "loss", "low", "high")}
        return {**plain, "curve_low": self.curve[0], "curve_high": self.curve[1], **ranges}


@dataclass(frozen=True)
class HeldOut:
    """A cell that was not fitted: its prediction, and its loss."""

    prediction: Prediction
    loss: float
    runs: int

    @property
    def error(self) -> float:
        """Predicted by observed loss, less 1."""
        return self.prediction.loss / self.loss - 1

    @property
    def is_inside(self) -> bool:
        return self.prediction.low <= self.loss <= self.prediction.high

    def as_json(self) -> dict[str, Any]:
        predicted = self.prediction.as_json()
        predicted["predicted"] = predicted.pop("loss")
        return {**predicted, "loss": self.loss, "error": self.error, "inside": self.is_inside, "runs": self.runs}


@dataclass(frozen=True)
class ScalingFit:
    """All that a fit of one recipe gives.

    Attributes:
      held_out: cells that were not fitted, the one of the least predicted loss first.
      notes: what a reader must know of this fit.
    """

    recipe: str
    runs: int
    fit: LawFit
    confidence: Confidence
    cost: SampleCost
    iso: IsoFlops
    predictions: tuple[Prediction, ...]
    held_out: tuple[HeldOut, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        law, intervals = self.fit.law, self.confidence.joint.intervals()
        parameters = {
            name: {"value": getattr(law, name), "low": low, "high": high} for name, (low, high) in intervals.items()
        }
        held_out = [one.as_json() for one in self.held_out]
        powers = {name: getattr(self.iso, name) for name in ("parameters", "samples", "loss")}
        return {
            "recipe": self.recipe,
            "runs": self.runs,
            "cells": len(self.fit.cells),
            "level": LEVEL,
            **parameters,
            "noise": {"model": self.fit.noise, "scale": self.fit.scale},
            "flops_per_sample": {name: getattr(self.cost, name) for name in ("coefficient", "exponent", "error")},
            "predictions": [one.as_json() for one in self.predictions],
            "untold": list(untold(self.confidence)),
            "held_out": {**held_out[0], "cells": held_out} if held_out else None,
            "parabolas": {
                "budgets": [
                    {"flops": one.flops, "sizes": len(np.unique(one.cells.parameters)), "why_not": one.why_not}
                    if one.why_not
                    else {name: getattr(one, name) for name in ("flops", "parameters", "samples", "loss")}
                    for one in self.iso.budgets
                ],
                **{name: power and power.as_json() for name, power in powers.items()},
            },
            "notes": list(self.notes),
        }


def fit_runs(runs: Sequence[TrainedRun], settings: FitSettings) -> ScalingFit:
    """Fit the runs of one recipe.

    Raises:
      ValueError: the runs cannot tell the law.
    """
    cells = cells_of(runs)
    check_table(cells)
    is_kept = np.ones(len(cells), bool)
    if settings.hold_out == "largest":
        is_kept = cells.flops < cells.flops.max() * (1 - LARGEST)
    fitted = cells.where(is_kept)
    check_table(fitted)
    fit = fit_law(fitted, settings.noise, settings.huber)
    below = check_fit(fit, is_robust=settings.huber is not None)
    cost = sample_cost(fitted)
    region = confidence(fit, settings.bootstrap, settings.seed, LEVEL)
    hidden = cells.where(~is_kept)
    held_out = [
        HeldOut(_prediction(fit, region, flops, size, samples, runs), float(loss), int(runs))
        for size, samples, flops, loss, runs, _ in zip(*(array.tolist() for array in vars(hidden).values()))
    ]
    return ScalingFit(
        recipe=runs[0].recipe,
        runs=int(fitted.counts.sum()),
        fit=fit,
        confidence=region,
        cost=cost,
        iso=isoflops(fitted, settings.bootstrap, settings.seed),
        predictions=tuple(best_model(fit, region, cost, flops) for flops in settings.predict),
        held_out=tuple(sorted(held_out, key=lambda one: one.prediction.loss)),
        notes=(*below, *_notes(fit, region, cost)),
    )


def check_table(cells: Cells) -> None:
    """Refuse tables from which five parameters cannot be told."""
    for name, values, term in (("parameters", cells.parameters, "A and a"), ("samples", cells.samples, "B and b")):
        count = len(np.unique(values))
        if count < LEAST_VALUES:
            raise ValueError(
                f"{term} cannot be told: runs must have at least {LEAST_VALUES} different values of {name}, but these "
                f"have {count} ({', '.join(f'{one:g}' for one in np.unique(values))}); add runs of other {name}"
            )
    if len(cells) < LEAST_CELLS:
        raise ValueError(
            f"five parameters and their noise need at least {LEAST_CELLS} cells, that is runs that differ in "
            f"parameters or samples, but there are {len(cells)}; seeds of one cell count once: add runs"
        )
    logs = np.log(cells.parameters), np.log(cells.samples)
    slope, constant = np.polyfit(*logs, 1)
    if np.std(logs[1] - slope * logs[0] - constant) < ON_A_LINE:
        raise ValueError(
            f"A N^-a and B D^-b cannot be told apart: samples follow parameters as N^{slope:.2f} in all runs; add runs "
            "of the same parameters with other samples, such as a second budget"
        )


def check_fit(fit: LawFit, is_robust: bool) -> list[str]:
    """Notes on doubtful cells; ValueError if a loss is far below the floor."""
    notes = [] if is_robust else _outliers(fit)
    below = int(np.sum(fit.cells.values < fit.law.E))
    if below:
        notes.append(f"losses below the fitted floor E = {fit.law.E:.4g}, which only noise allows, in {below} cells")
    return notes


def untold(region: Confidence) -> tuple[str, ...]:
    """The parameters that the runs cannot tell: both of a term that may be absent or have any exponent."""
    intervals = region.joint.intervals()
    found: list[str] = []
    for factor, exponent in (("A", "a"), ("B", "b")):
        low, high = intervals[exponent]
        is_absent = getattr(region.joint.surface.fit.law, factor) == 0 or intervals[factor][0] == 0
        if is_absent or low <= LEAST_EXPONENT * 1.01 or high >= GREATEST_EXPONENT * 0.99:
            found += [factor, exponent]
    return tuple(found)


def best_model(fit: LawFit, region: Confidence, cost: SampleCost, flops: float) -> Prediction:
    """The model of the least loss for a budget; ValueError if the loss does not fall with parameters or samples."""
    for factor, column in (("A", "parameters"), ("B", "samples")):
        if getattr(fit.law, factor) == 0:
            raise ValueError(
                f"no best model for {flops:g} FLOPs can be told: {factor} is 0, because the loss does not fall with "
                f"{column} in these runs; use a wider range of {column}, or more seeds"
            )
    size = float(cost.best_parameters(fit.law, flops))
    samples = flops / float(cost.flops(size))
    sizes = cost.best_parameters(region.single.laws, flops)
    ends = np.array([np.nanmin(sizes), np.nanmax(sizes)])
    counts = np.array(flops / cost.flops(ends))
    found = _prediction(fit, region, flops, size, samples)
    return Prediction(
        **{
            **vars(found),
            "parameters_range": tuple(ends.tolist()),
            "samples_range": tuple(counts[::-1].tolist()),
        }
    )


def _prediction(
    fit: LawFit, region: Confidence, flops: float, parameters: float, samples: float, runs: int = 1
) -> Prediction:
    loss = float(fit.law.loss(parameters, samples))
    low, high = region.single.loss(parameters, samples)
    noise = float(fit.noise_of(loss)) / np.sqrt(runs) * student.ppf((1 + LEVEL) / 2, fit.spare)
    ends = loss - np.hypot(loss - low, noise), loss + np.hypot(high - loss, noise)
    return Prediction(flops, parameters, samples, loss, float(max(ends[0], 0.0)), float(ends[1]), (low, high))


def _outliers(fit: LawFit) -> list[str]:
    """Notes on cells far from a robust fit; ValueError if one is far below the floor of that fit."""
    robust = fit_law(fit.cells, fit.noise, ROBUST)
    gaps = (fit.cells.values - robust.fitted) * fit.root
    free = np.sort(np.abs(gaps))[5:]  # a robust fit passes through as many cells as it has parameters
    spread = max(NORMAL_SPREAD * float(np.median(free)), NUMERICAL_NOISE)
    far = float(student.isf(UNLIKELY, EFFICIENCY * fit.spare))
    depth = (robust.law.E - fit.cells.values) * fit.root / spread
    index = int(np.argmax(depth))
    if depth[index] > far:
        raise ValueError(
            f"no loss can lie far below the floor of all losses, but {_named(fit.cells, index)} has "
            f"{fit.cells.values[index]:g}, {depth[index]:.0f} standard deviations below the fitted floor E = "
            f"{robust.law.E:g}; correct or delete this run, or fit with --huber 0.01"
        )
    return [
        f"{_named(fit.cells, one)} lies {gaps[one] / spread:+.0f} standard deviations from a robust fit; "
        "look at this run, or use --huber 0.01"
        for one in np.flatnonzero(np.abs(gaps) > far * spread).tolist()
        if spread > NUMERICAL_NOISE
    ]


def _named(cells: Cells, index: int) -> str:
    return (
        f"the run of {cells.parameters[index]:g} parameters, {cells.samples[index]:g} samples and "
        f"{cells.flops[index]:g} FLOPs"
    )


def _notes(fit: LawFit, region: Confidence, cost: SampleCost) -> list[str]:
    notes = []
    names = untold(region)
    if names:
        columns = " and ".join(column for name, column in (("A", "parameters"), ("B", "samples")) if name in names)
        notes.append(
            f"{', '.join(names)} cannot be told: noise of {fit.scale:.2%} hides how the loss falls with {columns}; use "
            f"a wider range of {columns}, or more seeds"
        )
    if region.joint.intervals()["E"][0] == 0 and fit.law.E > 0:
        notes.append("the floor E may be 0: these runs do not come close enough to it to tell")
    if cost.knots is not None:
        notes.append(f"FLOPs per sample are no power of N (to {cost.error:.1%}), and are interpolated from the table")
    if cost.spread > 0.01:
        notes.append(f"FLOPs per sample of one size differ by up to {cost.spread:.1%}; their mean is used")
    return notes
