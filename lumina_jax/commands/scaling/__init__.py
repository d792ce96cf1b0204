"""lumina scaling COMMAND: from a grid of small runs to what a larger one will do

plan CONFIG               a grid of sizes, budgets, seeds and recipes, and what it costs
run GRID                  train every run of a grid; the same command goes on after a stop
evaluate GRID             draw held-out captions with every run, and note how well
fit RUNS.jsonl            the law of a grid of runs, and what it predicts
compare RUNS.jsonl        by what factor one recipe needs less compute than another
report RUNS.jsonl         a page with the figures and tables of a study
coordinate-check CONFIG   whether activations and updates have one size at every width

Each command explains its flags with --help.
"""

from collections.abc import Sequence

from lumina_jax.commands import run_command

COMMANDS: tuple[str, ...] = ("plan", "run", "evaluate", "fit", "compare", "report", "coordinate-check")


def main(words: Sequence[str]) -> int:
    return run_command(words, "lumina scaling", COMMANDS, str(__doc__))
