"""lumina bench kernels: compare attention kernels by the schedule that the TPU compiler writes.

Compiles ours and every installed peer (jax flash, jax splash, tokamax) ahead of time for a TPU topology that need not
be attached, and prints the schedule: estimated cycles, their share of the matrix units' floor, the main
loop's bundles and slots, spills and VMEM. Estimates count no waits for memory: compare within one run
(docs/kernels.md).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lumina_jax.failures import reported

if TYPE_CHECKING:
    from lumina_jax.kernel_bench.contestants import Contestant
    from lumina_jax.kernel_bench.measurements import Measurement
    from lumina_jax.kernel_bench.problems import Problem

REFERENCE = "ours"


@dataclass(frozen=True)
class Kernels:
    topology: tuple[str, ...] = ("v6e:2x2",)
    """Topologies to compile for: v5e:2x2, v5p:2x2x1, v6e:2x2, tpu7x:2x2x1."""
    tokens: tuple[int, ...] = ()
    """Lengths of a row; default: 4224, or the length that --packed needs."""
    width: tuple[int, ...] = (128,)
    """Head widths."""
    heads: int = 32
    backward: bool = False
    """Compute the gradients too."""
    packed: str | None = None
    """Samples x tokens of a packed row, such as 16x256; default: one sample fills the row."""
    text: int = 0
    """Text tokens of each sample, attended to with a gate."""
    text_heads: int = 0
    """Heads that attend to the text in our kernel, as in a model of `lumina gates`; 0: all."""
    contestants: tuple[str, ...] = ()
    """Names as in the table; default: all that are installed."""
    tune: bool = False
    """Try the likely block sizes of each, and record the best; ours go into the table that the kernels read."""
    json: Path | None = None
    """Write all measurements into this file."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Kernels, args=list(words), prog="lumina bench kernels", description=__doc__)
    with reported():
        kernels(arguments)
    return 0


def kernels(arguments: Kernels) -> None:
    from lumina_jax.chips import parse_topology
    from lumina_jax.kernel_bench.cases import chosen
    from lumina_jax.libtpu import add_libtpu

    for topology in arguments.topology:
        parse_topology(topology)
    problems = problems_of(arguments)
    contestants = chosen(arguments.contestants)
    add_libtpu()
    measured = [
        measurement
        for topology in arguments.topology
        for measurement in _measured(arguments, contestants, problems, topology)
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps([one.to_json() for one in measured], indent=1) + "\n")
        print(f"\n{arguments.json} holds every number")


def problems_of(arguments: Kernels) -> "list[Problem]":
    """A problem for every length and width; ValueError for sizes that no row can have."""
    from lumina_jax.kernel_bench.problems import Problem

    samples, length = _packed(arguments.packed)
    tokens = arguments.tokens or (samples * length or 4224,)
    return [
        Problem(row, width, arguments.heads, samples, length, arguments.text, arguments.backward, arguments.text_heads)
        for width in arguments.width
        for row in tokens
    ]


def _packed(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 0
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--packed must be SAMPLESxTOKENS, such as 16x256, but is {text!r}")
    return int(parts[0]), int(parts[1])


def _measured(
    arguments: Kernels, contestants: "Sequence[Contestant]", problems: "Sequence[Problem]", topology: str
) -> "list[Measurement]":
    """Measures and prints, problem by problem."""
    from lumina_jax.kernel_bench.tuning import keep, tune, with_recorded

    if arguments.tune:
        print(f"\n{topology}: trying block sizes", flush=True)
        stream = iter(tune(contestants, problems, topology, _print_trial))
    else:
        stream = with_recorded(contestants, problems, topology)
    found: list[Measurement] = []
    for problem in problems:
        found += _printed(problem, topology, [one.note and f"{one.name}: {one.note}" for one in contestants], stream)
    if arguments.tune:
        keep(found, contestants)
    return found


def _printed(
    problem: "Problem", topology: str, remarks: Sequence[str], stream: "Iterator[Measurement]"
) -> "list[Measurement]":
    """One table, filled as measurements come."""
    from lumina_jax.kernel_bench.table import heading, lines, summary

    print(heading(problem, topology), flush=True)
    found = []
    for _ in remarks:
        found.append(next(stream))
        print("\n".join(lines(found[-1])), flush=True)
    for line in [*summary(found, REFERENCE), *filter(None, remarks)]:
        print(f"  {line}")
    return found


def _print_trial(measured: "Measurement") -> None:
    blocks = " ".join(f"{key}={size}" for key, size in measured.trial.blocks.items())
    result = measured.error[:80] if measured.error is not None else f"{measured.microseconds:.1f} us"
    print(f"  {measured.trial.contestant:<18}{measured.trial.problem.tokens:>7}  {blocks}: {result}", flush=True)
