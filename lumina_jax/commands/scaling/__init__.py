"""lumina scaling COMMAND: from a grid of small runs to what a larger one will do

plan CONFIG               a grid of sizes, budgets, seeds and recipes, and what it costs
run GRID                  train every run of a grid; the same command goes on after a stop
fit RUNS.jsonl            the law of a grid of runs, and what it predicts
compare RUNS.jsonl        by what factor one recipe needs less compute than another
report RUNS.jsonl         a page with the figures and tables of a study
coordinate-check CONFIG   whether activations and updates have one size at every width

Each command explains its flags with --help.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS: tuple[str, ...] = ("plan", "run", "fit", "compare", "report", "coordinate-check")


def main(words: Sequence[str]) -> int:
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in COMMANDS:
        print(f"error: {command!r} is no command of lumina scaling\n\n{__doc__}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"lumina_jax.commands.scaling.{command.replace('-', '_')}")
    status: int = module.main(words[1:])
    return status
