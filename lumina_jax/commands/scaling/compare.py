"""lumina scaling compare RUNS.jsonl --of A --against B: by what factor recipe A needs less compute than recipe B.

The factor is C_A / C_B at equal held-out loss, or at an equal value of another column of RUNS.jsonl: 0.65 means that A
needs 65 % of the compute of B. It holds for the range that both recipes cover (docs/scaling-laws.md).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.failures import reported

if TYPE_CHECKING:
    from lumina_jax.scaling.comparison import ComputeFactor


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[Path, tyro.conf.Positional]
    """A file with one run a line."""
    of: str
    """The recipe whose compute is counted."""
    against: str
    """The recipe that it is compared with."""
    metric: str = "loss"
    """The column to compare at."""
    higher_is_better: bool = False
    """More of the metric is better, as of recall; default: less is."""
    bootstrap: int = 1000
    """Bootstrap draws."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: Path | None = None
    """Write all numbers into this file."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina scaling compare", description=__doc__)
    with reported():
        compare(arguments)
    return 0


def compare(arguments: Arguments) -> None:
    from lumina_jax.parts import check_writable, write_file
    from lumina_jax.scaling import comparison
    from lumina_jax.scaling.settings import FitSettings
    from lumina_jax.scaling.table import read_runs, runs_of_recipe

    settings = FitSettings(bootstrap=arguments.bootstrap, seed=arguments.seed)  # which checks them
    if arguments.of == arguments.against:
        raise ValueError(f"--of and --against must be different recipes, but both are {arguments.of!r}")
    runs = read_runs(arguments.runs)
    of, against = (
        runs_of_recipe(runs, name, flag) for name, flag in ((arguments.of, "--of"), (arguments.against, "--against"))
    )
    if arguments.json:
        check_writable(arguments.json.parent)
    better: comparison.Better = "higher" if arguments.higher_is_better else "lower"
    found = comparison.compare(of, against, arguments.metric, better, settings.bootstrap, settings.seed)
    print("\n".join(lines(found)))
    if arguments.json:
        write_file(arguments.json.parent, arguments.json.name, json.dumps(found.as_json(), indent=1).encode() + b"\n")
        print(f"\n{arguments.json} holds every number")


def lines(found: "ComputeFactor") -> Iterator[str]:
    """The comparison as text."""
    value, low, high = found.factor
    claim = "less" if high < 1 else "more" if low > 1 else "perhaps less or more"
    yield f"{found.of} needs {value:.3g} times the compute of {found.against} for the same {found.metric}"
    yield f"  90 % interval {low:.3g} to {high:.3g}: {claim} compute"
    yield f"  over {found.metric} from {found.losses[0]:.5g} to {found.losses[1]:.5g}, which both cover"
    yield f"  by {found.cells[0]} and {found.cells[1]} cells on their frontiers, exponent {found.exponent:.3g}"
    yield from (f"  at {found.metric} {loss:.5g}: {factor:.3g}" for loss, factor in found.at)
