"""The results of the runs of a grid: one file in the folder of each run, and from those the table of all.

In: a grid, its folder, and what a run has logged. Out: `result.json` of the run, which exists exactly when the run is
over, and RUNS.jsonl, which is made anew from these files in the order of the grid. So a run is never counted twice, and
the lines depend on nothing but the grid and the numbers that were computed. Runs whose loss was not finite are in
FAILED.jsonl instead; those that have drawn have further columns (`pictures`).

    {"name": "flag-4x128-1e13-s0", "recipe": "flag", "parameters": 1743040, "samples": 14432, "flops": 9.98e12,
     "loss": 0.31, "seed": 0, "standard_error": 0.02, "middle_loss": 0.27, "training_loss": 0.28,
     "budget": 1e13, "steps": 451, "batch": 32, "rate": 0.0015, "layers": 4, "width": 128,
     "curve": [[1.3e12, 0.61], [2.6e12, 0.45]]}
"""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumina_jax.config import Config
from lumina_jax.config.section import require
from lumina_jax.documents import read_json
from lumina_jax.run import CONFIG_FILE, read_run
from lumina_jax.scaling.grid import RUNS_FILE, RUNS_FOLDER, GridCell, ScalingGrid, write_whole
from lumina_jax.scaling.pictures import read_pictures
from lumina_jax.training.jsonl import read_metrics
from lumina_jax.training.metrics import HELD_OUT_LOSS, TRAINED_ON_LOSS

RESULT_FILE, FAILED_FILE, LOG_FILE = "result.json", "FAILED.jsonl", "log.txt"
LAST_REPORTS = 5
"""The training loss of a run is the mean of this many last reports."""
EXECUTION = frozenset({"mesh", "hosts", "sample"})
"""Sections of a configuration that do not change what is trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The end of a run."""

    settings: str
    """The digest of the configuration that was trained."""
    failed: str | None
    """Why the run has no loss; None: it has one."""
    line: dict[str, Any]
    """The line of the run in the table."""


def run_folder_of(folder: Path, cell: GridCell) -> Path:
    return folder / RUNS_FOLDER / cell.name


def settings_digest(config: Config) -> str:
    """A digest of what is trained, wherever the grid lies."""
    sections = {name: value for name, value in dataclasses.asdict(config).items() if name not in EXECUTION}
    sections["run"] = {name: value for name, value in sections["run"].items() if name not in ("root", "jsonl")}
    return hashlib.blake2b(json.dumps(sections, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_result(grid: ScalingGrid, cell: GridCell, folder: Path) -> RunResult | None:
    """The result of a run; None: it is not over.

    Raises:
      ValueError: what was trained in its folder is another run than the one of the grid.
    """
    run_folder, config = run_folder_of(folder, cell), grid.config(cell, folder)
    file = run_folder / RESULT_FILE
    result: RunResult | None = read_json(file, RunResult) if file.is_file() else None
    if result is not None:
        is_same = result.settings == settings_digest(config)
    else:
        begun = (run_folder / CONFIG_FILE).is_file()
        is_same = not begun or settings_digest(read_run(run_folder)) == settings_digest(config)
    require(
        is_same,
        f"{run_folder} was trained with other settings than those of the grid; write the grid into another folder with "
        "--out, or remove that folder",
    )
    return result


def finish(grid: ScalingGrid, cell: GridCell, folder: Path, failed: str | None = None) -> RunResult:
    """Write the result of a run that is over.

    Args:
      failed: why it ended before its last step; None: it did not.

    Raises:
      ValueError: the run has not measured its held-out loss.
    """
    reports = [] if failed else read_metrics(run_folder_of(folder, cell))
    numbers: dict[str, Any] = {} if failed else _losses(cell, reports)
    if not failed and not math.isfinite(numbers["loss"] or math.nan):
        failed, numbers = f"the held-out loss after step {cell.steps} is not finite", {}
    line = {
        "name": cell.name,
        "recipe": cell.recipe,
        "parameters": cell.parameters,
        "samples": cell.samples,
        "flops": cell.flops,
        **numbers,
        "seed": cell.seed,
        "budget": cell.budget,
        "steps": cell.steps,
        "batch": cell.batch,
        "rate": cell.rate,
        "layers": cell.size.layers,
        "width": cell.size.width,
    }
    line |= {"failed": failed} if failed else {"curve": _curve(cell, reports)}
    result = RunResult(settings=settings_digest(grid.config(cell, folder)), failed=failed, line=line)
    write_whole(run_folder_of(folder, cell) / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    return result


def _losses(cell: GridCell, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the last step; "held_out" is False where the data hold nothing out."""
    measured = [
        (report, name) for report in reports if report["step"] == cell.steps and (name := _measured(report)) is not None
    ]
    require(
        bool(measured),
        f"a run must have measured its held-out loss at its last step, but the metrics of {cell.name} have none at "
        f"step {cell.steps}; {LOG_FILE} in its folder says why. Remove the folder, and run the grid again",
    )
    last, name = measured[-1]
    trained = [report["loss"] for report in reports if report.get("loss") is not None]
    return {
        "loss": last[name],
        "standard_error": last.get(f"{name}_error"),
        "middle_loss": last.get(f"{name}_middle"),
        "held_out": name == HELD_OUT_LOSS,
        "training_loss": statistics.fmean(trained[-LAST_REPORTS:]) if trained else None,
    }


def _measured(report: dict[str, Any]) -> str | None:
    """The name of the loss at fixed times and noise in a report; None: there is none."""
    return next((name for name in (HELD_OUT_LOSS, TRAINED_ON_LOSS) if name in report), None)


def _curve(cell: GridCell, reports: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Pairs of FLOPs and held-out loss, in the order of steps; without losses that are not finite."""
    pairs = [(report["step"], report[name]) for report in reports if (name := _measured(report)) is not None]
    return [[cell.flops * step / cell.steps, loss] for step, loss in pairs if loss is not None]


def write_tables(grid: ScalingGrid, folder: Path) -> list[RunResult]:
    """Write RUNS.jsonl and FAILED.jsonl from the results of all runs that are over; returns these results."""
    results = [
        _with_pictures(result, run_folder_of(folder, cell))
        for cell in grid.cells
        if (result := read_result(grid, cell, folder)) is not None
    ]
    for name, lines in (
        (RUNS_FILE, [one.line for one in results if one.failed is None]),
        (FAILED_FILE, [one.line for one in results if one.failed is not None]),
    ):
        file = folder / name
        if lines or file.exists():
            write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
    return results


def _with_pictures(result: RunResult, run_folder: Path) -> RunResult:
    """The result with the columns of the pictures that the run has drawn, if it has."""
    pictures = read_pictures(run_folder)
    if result.failed is not None or pictures is None:
        return result
    return dataclasses.replace(result, line=result.line | pictures.columns())
