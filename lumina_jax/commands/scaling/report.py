"""lumina scaling report RUNS.jsonl --out FOLDER: the study of a grid of runs as one page and its figures.

FOLDER/index.html holds all figures and tables and loads nothing from anywhere; the figures are there as PNG files too.
Without --predict it shows predictions for 10 and 100 times the largest budget (docs/scaling-laws.md).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lumina_jax.failures import reported
from lumina_jax.scaling.settings import FitSettings

FARTHER = 10.0, 100.0


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[Path, tyro.conf.Positional]
    """A file with one run a line."""
    out: Path
    """The folder of the report."""
    settings: Annotated[FitSettings, tyro.conf.arg(name="")]
    title: str = "Scaling study"
    """The heading of the page."""


def main(words: Sequence[str]) -> int:
    with reported():
        report(tyro.cli(Arguments, args=words, prog="lumina scaling report", description=__doc__))
    return 0


def report(arguments: Arguments) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("figures need matplotlib; pip install 'lumina_jax[scaling]'") from None
    from lumina_jax.scaling.page import write_report
    from lumina_jax.scaling.table import read_runs

    runs, settings = read_runs(arguments.runs), arguments.settings
    if not settings.predict:
        largest = max(run.flops for run in runs)
        settings = dataclasses.replace(settings, predict=tuple(factor * largest for factor in FARTHER))
    print(write_report(runs, settings, arguments.out, arguments.title))
