"""lumina scaling evaluate GRID: draw held-out captions with every run of a grid that is over, and note how well.

Each run is evaluated as by `lumina evaluate RUN --split held_out --loss-samples 0`, with its own settings of sampling
and the same seed. How many pictures were drawn, and their Frechet and kernel distance from the true ones, become
columns of its line in RUNS.jsonl, for `lumina scaling compare --metric frechet`. Start the same command again after a
stop: what was drawn with the same flags is not drawn again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu

EVALUATION_FILE = "evaluation.json"
"""All numbers of `lumina evaluate`, in the folder of a run."""


@dataclass(frozen=True)
class Arguments:
    grid: tyro.conf.Positional[Path]
    """The file of the grid."""
    only: tuple[str, ...] = ()
    """Evaluate only these: names of runs, or parts of names; or budgets, such as 1e13."""
    but: tuple[str, ...] = ()
    """Evaluate all but these."""
    split: str | None = "held_out"
    """The part of emoji or of a prepared folder whose captions are drawn; None: all, the only choice for other data."""
    limit: int = 512
    """Captions that each run draws, at most."""
    seed: int = 1
    """Seed of the noise."""
    batch: int = 32
    """Pictures drawn at once."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=list(words), prog="lumina scaling evaluate", description=__doc__)
    with reported():
        keep_memory_on_cpu()  # first: it starts this program again
        status = evaluate(arguments)
    return status


def evaluate(arguments: Arguments) -> int:
    """0 if every caption was drawn, else 1. jax is imported here.

    Raises:
      ValueError: no chosen run is over, or the pictures of a run cannot be compared.
    """
    from lumina_jax.commands import evaluate as one_run
    from lumina_jax.commands.scaling.run import chosen
    from lumina_jax.scaling.grid import read_grid
    from lumina_jax.scaling.pictures import DrawingSettings, note_pictures, read_pictures
    from lumina_jax.scaling.results import read_result, run_folder_of, write_tables

    grid, folder, status = read_grid(arguments.grid), arguments.grid.parent, 0
    settings = DrawingSettings(split=arguments.split, limit=arguments.limit, seed=arguments.seed)
    over = [
        run_folder_of(folder, cell)
        for cell in chosen(grid, arguments.only, arguments.but)
        if (result := read_result(grid, cell, folder)) is not None and result.failed is None
    ]
    if not over:
        raise ValueError(
            f"runs must be over before they draw, but none is; train them with: lumina scaling run {arguments.grid}"
        )
    for number, run in enumerate(over, 1):
        print(f"{number} of {len(over)}: {run.name}", flush=True)
        before = read_pictures(run)
        if before is not None and before.settings == settings:
            continue
        file = run / EVALUATION_FILE
        status |= one_run.evaluate(
            one_run.Arguments(
                run=run, seed=arguments.seed, split=arguments.split, limit=arguments.limit, batch=arguments.batch,
                loss_samples=0, json=file,
            )
        )  # fmt: skip
        note_pictures(run, settings, file)
        write_tables(grid, folder)
    write_tables(grid, folder)
    return status
