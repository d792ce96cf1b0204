"""Tables of training runs: JSON lines as typed values, and runs of one cell of a grid together.

In: a file with one JSON object a line, {"recipe", "parameters", "samples", "flops", "loss", "seed"}, of which other
keys are kept. Out: `TrainedRun`s, or a ValueError that names the file, the line, the rule and the value. Runs of the
same recipe, parameters, samples and FLOPs that differ by their seed are one cell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from lumina_jax.documents import parse_json

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SHOWN = 3
"""How many faults of a file a message lists."""


class TrainedRun(BaseModel):
    """A trained model and its held-out loss.

    Attributes:
      recipe: the name of what was trained: block, objective and data.
      parameters: trained parameters of the model, N.
      samples: samples that it was trained on, D.
      flops: floating point operations of its training, C.
      loss: its held-out loss.
      seed: the seed of its training.
      curve: losses during its training, as pairs of FLOPs and loss.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    recipe: Annotated[str, Field(min_length=1)]
    parameters: Positive
    samples: Positive
    flops: Positive
    loss: Positive
    seed: int
    curve: list[tuple[Positive, Annotated[float, Field(allow_inf_nan=False)]]] | None = None
    _line: int = PrivateAttr(0)

    @property
    def line(self) -> int:
        """Its line in the file, from 1."""
        return self._line

    @property
    def budget(self) -> float:
        """The FLOPs that it was allowed, which `lumina scaling run` notes as `budget`: as it takes whole steps, a short
        run has fewer. Without such a note those that it has."""
        value = (self.model_extra or {}).get("budget")
        if isinstance(value, int | float) and self.flops <= value < 2 * self.flops:
            return float(value)
        return self.flops

    @property
    def key(self) -> tuple[str, float, float, float, int]:
        return (self.recipe, self.parameters, self.samples, self.flops, self.seed)

    def metric(self, name: str) -> float:
        """The value of a column: `loss`, or a key beside those of every run.

        Raises:
          ValueError: the run lacks it, or it is no finite number.
        """
        if name == "loss":
            return self.loss
        columns = self.model_extra or {}
        value = columns.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            numbers = sorted(key for key, one in columns.items() if isinstance(one, int | float))
            has = f"has {name}={value!r}" if name in columns else f"lacks {name!r}; its numbers are loss, {numbers}"
            raise ValueError(f"each run needs a finite number in column {name!r}, but line {self.line} {has}")
        return float(value)


@dataclass(frozen=True)
class Cells:
    """The cells of a grid, in order of FLOPs, then of parameters.

    Attributes:
      values: the mean of a metric over the runs of each cell.
      counts: the number of runs of each cell.
      budgets: the FLOPs that the runs of each cell were allowed.
    """

    parameters: Float[np.ndarray, " n"]
    samples: Float[np.ndarray, " n"]
    flops: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]
    budgets: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, chosen: Any) -> "Cells":
        """The cells that an index or mask [n] chooses."""
        return Cells(*(array[chosen] for array in vars(self).values()))


def read_runs(file: Path) -> list[TrainedRun]:
    """Read a file of runs; empty lines are skipped.

    Raises:
      ValueError: the file has no run, a line is no JSON, lacks a key or has a value that no run can have, or two lines
        are the same run.
      OSError: the file is not readable.
    """
    runs, faults = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            run = parse_json(line, TrainedRun, f"line {number}")
        except ValueError as error:
            faults.append(str(error))
        else:
            run._line = number
            runs.append(run)
    if faults:
        more = f"; and {len(faults) - SHOWN} more lines" if len(faults) > SHOWN else ""
        raise ValueError(f"{file}: {'; '.join(faults[:SHOWN])}{more}; correct or delete these lines")
    if not runs:
        raise ValueError(f"{file} must have a run on each line, but it is empty")
    _check_distinct(runs, file)
    return runs


def runs_of_recipe(runs: Sequence[TrainedRun], recipe: str | None, flag: str = "--recipe") -> list[TrainedRun]:
    """The runs of one recipe; ValueError if there are none, or if several recipes could be meant."""
    names = sorted({run.recipe for run in runs})
    if recipe is None and len(names) > 1:
        raise ValueError(f"the runs are of {len(names)} recipes ({', '.join(names)}); choose one with {flag}")
    if recipe is not None and recipe not in names:
        raise ValueError(f"{flag} must be one of {', '.join(names)}, but is {recipe!r}")
    return [run for run in runs if recipe is None or run.recipe == recipe]


def cells_of(runs: Sequence[TrainedRun], metric: str = "loss") -> Cells:
    """The cells of runs of one recipe, and the mean of a metric over the seeds of each."""
    found: dict[tuple[float, float, float], list[TrainedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.flops, run.parameters, run.samples, run.seed)):
        found.setdefault((run.parameters, run.samples, run.flops), []).append(run)
    keys = np.array([*found]).reshape(len(found), 3)
    values = np.array([np.mean([run.metric(metric) for run in cell]) for cell in found.values()])
    budgets = np.array([max(run.budget for run in cell) for cell in found.values()])
    counts = np.array([len(cell) for cell in found.values()])
    return Cells(keys[:, 0], keys[:, 1], keys[:, 2], values, counts, budgets)


def _check_distinct(runs: Sequence[TrainedRun], file: Path) -> None:
    first: dict[Any, int] = {}
    pairs = [(first[run.key], run.line) for run in runs if first.setdefault(run.key, run.line) != run.line]
    if pairs:
        shown = ", ".join(f"{one} and {other}" for one, other in pairs[:SHOWN])
        more = f", and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
        raise ValueError(
            f"{file}: a run must appear once, but these lines have the same recipe, parameters, samples, flops and "
            f"seed: {shown}{more}; delete one of each pair, or give different seeds"
        )
