"""lumina scaling run GRID: train every run of a grid that `lumina scaling plan` wrote.

Each run is trained by a process of its own into runs/NAME beside the file, and is one line of RUNS.jsonl there; runs
that diverged are in FAILED.jsonl. Start the same command again after a stop, a kill or an error: a run that is over is
not trained again, and one that was half done goes on from its checkpoint, bit for bit.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lumina_jax.failures import message, reported
from lumina_jax.launch import keep_memory_on_cpu, outlive_output, runs_on_cpu

if TYPE_CHECKING:
    from lumina_jax.scaling.devices import DeviceSet
    from lumina_jax.scaling.grid import GridCell, ScalingGrid

PROGRAMS_FOLDER = "programs"
CHILD = "LUMINA_GRID_CHILD"
"""Set in processes that end with the one that started them."""
STOPPED = 75
"""The exit status of a run that was asked to stop before its end."""


@dataclass(frozen=True)
class Arguments:
    grid: tyro.conf.Positional[Path]
    """The file of the grid."""
    jobs: int | None = None
    """Runs that are trained at the same time, each on its part of the cores or accelerators. Default: on CPUs as many
    as have the cores of the grid, else 1."""
    only: tuple[str, ...] = ()
    """Train only these: names of runs, or parts of names; or budgets, such as 1e13."""
    but: tuple[str, ...] = ()
    """Train all but these."""
    here: bool = False
    """Train in this process, one run after another, instead of one process for each."""
    dry: bool = False
    """Only say what there is to do."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=list(words), prog="lumina scaling run", description=__doc__)
    with reported():
        keep_memory_on_cpu()  # first: it starts this program again
        status = run(arguments)
    return status


def run(arguments: Arguments) -> int:
    """0 if all chosen runs are over. jax is imported here."""
    folder = arguments.grid.parent
    environment, on_cpu = _environment(folder), runs_on_cpu()
    if not arguments.here:
        os.environ["JAX_PLATFORMS"] = "cpu"  # this process must leave the accelerators to those that train
    from lumina_jax.scaling.devices import device_sets
    from lumina_jax.scaling.grid import read_grid
    from lumina_jax.scaling.processes import end_with_parent
    from lumina_jax.scaling.results import read_result

    grid = read_grid(arguments.grid)
    cells = chosen(grid, arguments.only, arguments.but)
    if arguments.here:
        if os.environ.pop(CHILD, ""):
            end_with_parent()
        outlive_output()
        if on_cpu:
            os.sched_setaffinity(0, device_sets(1, grid.cores, on_cpu=True)[0].cores)
        return train_here(grid, cells, folder)
    waiting = [cell for cell in cells if read_result(grid, cell, folder) is None]
    print(_summary(grid, cells, waiting), flush=True)
    if arguments.dry:
        print("\n".join(cell.name for cell in waiting))
        return 0
    sets = device_sets(arguments.jobs, grid.cores, on_cpu=on_cpu)
    return train_in_processes(grid, arguments.grid, waiting, sets, environment)


def train_in_processes(
    grid: "ScalingGrid",
    file: Path,
    waiting: "Sequence[GridCell]",
    sets: "Sequence[DeviceSet]",
    environment: dict[str, str],
) -> int:
    """Train cells that are not over, and keep the table of results; 0 if all are over now."""
    from lumina_jax.scaling.grid import RUNS_FILE, RUNS_FOLDER
    from lumina_jax.scaling.processes import train_cells
    from lumina_jax.scaling.progress import GridProgress
    from lumina_jax.scaling.results import FAILED_FILE, write_tables
    from lumina_jax.training.lock import Lock

    folder = file.parent
    lock = Lock(str(folder / RUNS_FOLDER))
    lock.take()
    try:
        progress = GridProgress(waiting)

        def ended(cell: "GridCell", is_over: bool) -> None:
            write_tables(grid, folder)
            progress.ended(cell, is_over)

        write_tables(grid, folder)
        failures = train_cells(
            waiting, folder, sets, lambda cell: _command(file, cell), environment, ended=ended, shown=progress.shown
        )
        results = write_tables(grid, folder)
    finally:
        lock.release()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    diverged = [str(result.line["name"]) for result in results if result.failed is not None]
    print(f"{len(results)} of {len(grid.cells)} runs are over; {folder / RUNS_FILE} has {len(results) - len(diverged)}")
    if diverged:
        print(f"{folder / FAILED_FILE} has those that diverged, which are in no fit: {', '.join(diverged)}")
    if failures:
        print("start the same command again when the cause is removed", file=sys.stderr)
    return 1 if failures else 0


def train_here(grid: "ScalingGrid", cells: "Sequence[GridCell]", folder: Path) -> int:
    """Train cells in this process, one after another; jax is imported here."""
    from lumina_jax.commands.train import run_in_job
    from lumina_jax.parallel.multihost import is_first
    from lumina_jax.scaling.results import finish, read_result
    from lumina_jax.training.loop import NotFiniteError

    for cell in cells:
        if read_result(grid, cell, folder) is not None:
            continue
        failed = None
        try:
            is_finished = run_in_job(grid.config(cell, folder))
        except NotFiniteError as error:
            is_finished, failed = True, message(error).split(";")[0]
        if not is_finished:
            return STOPPED
        if is_first():
            finish(grid, cell, folder, failed)
    return 0


def chosen(grid: "ScalingGrid", only: Sequence[str], but: Sequence[str]) -> "list[GridCell]":
    """The cells whose names contain one of the words `only`, if there are any, and none of the words `but`.

    Raises:
      ValueError: a word is in no name, or no cell is left.
    """
    for word in (*only, *but):
        if not any(is_meant(cell, word) for cell in grid.cells):
            raise ValueError(
                f"{word!r} must be a part of the name of a run, such as {grid.cells[0].name}, but no run has it"
            )
    found = [
        cell
        for cell in grid.cells
        if (not only or any(is_meant(cell, word) for word in only)) and not any(is_meant(cell, word) for word in but)
    ]
    if not found:
        raise ValueError("--only and --but leave no run; leave one of them out")
    return found


def is_meant(cell: "GridCell", word: str) -> bool:
    """Whether whole parts of the name of a cell, between its dashes, are the word: 4x128 is none of 14x128."""
    return re.search(rf"(?:^|-){re.escape(word)}(?:-|$)", cell.name) is not None


def _command(file: Path, cell: "GridCell") -> list[str]:
    return [sys.executable, "-m", "lumina_jax", "scaling", "run", str(file), "--here", "--only", cell.name]


def _environment(folder: Path) -> dict[str, str]:
    """The environment of the processes that train. Compiled programs are kept beside the grid, because runs that differ
    by their seed, and runs that go on, have the same."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str((folder / PROGRAMS_FOLDER).absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return kept | os.environ | {"PYTHONUNBUFFERED": "1", CHILD: "1"}


def _summary(grid: "ScalingGrid", cells: "Sequence[GridCell]", waiting: "Sequence[GridCell]") -> str:
    flops = sum(cell.flops for cell in waiting)
    some = "" if len(cells) == len(grid.cells) else f" of {len(grid.cells)}"
    return f"{len(cells)}{some} runs, of which {len(cells) - len(waiting)} are over; {flops:.3g} FLOPs are left"
