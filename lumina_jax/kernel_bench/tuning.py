"""Block sizes: the recorded best ones, and the search for them by static schedule.

The record is a JSON file beside this one, a row for each contestant, generation and problem; `bench kernels --tune`
rewrites its rows. Without a row for a problem the nearest likely sizes are used.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lumina_jax.kernel_bench.compiler import measure
from lumina_jax.kernel_bench.contestants import Blocks, Contestant
from lumina_jax.kernel_bench.measurements import Measurement, Trial
from lumina_jax.kernel_bench.problems import Problem

RECORD = Path(__file__).parent / "blocks.json"
OnMeasured = Callable[[Measurement], None]


class TuningStage(NamedTuple):
    """A contestant's pass to tune, and the blocks to try."""

    contestant: Contestant
    problem: Problem
    blocks: Iterable[Blocks]


def with_recorded(
    contestants: Sequence[Contestant], problems: Sequence[Problem], topology: str, record: Path = RECORD
) -> Iterator[Measurement]:
    """A measurement of each problem and contestant with the best known blocks, else with the first that compile."""
    pairs = [(contestant, problem) for problem in problems for contestant in contestants]
    tried = [_known(contestant, problem, topology, record) for contestant, problem in pairs]
    first = [Trial(one.name, problem, blocks[0]) for (one, problem), blocks in zip(pairs, tried, strict=True)]
    for (contestant, problem), blocks, measured in zip(pairs, tried, measure(first, topology), strict=True):
        others = [Trial(contestant.name, problem, other) for other in blocks[1:]] if measured.error is not None else []
        yield next((one for one in measure(others, topology) if one.error is None), measured)


def _known(contestant: Contestant, problem: Problem, topology: str, record: Path) -> list[dict[str, int]]:
    """Block sizes for a problem, best first: the recorded ones, packed or not, else all that are likely."""
    rows = _rows(record)
    known: list[dict[str, int]] = [{}]
    for backward in (False, True) if problem.backward else (False,):
        stage = replace(problem, backward=backward)
        keys = [_key(contestant, one, topology) for one in (stage, replace(stage, samples=1, length=0))]
        likely = list((contestant.backward if backward else contestant.forward)(problem))
        of_stage = [rows[key] for key in keys if key in rows][:1] or likely
        known = [{**one, **other} for other in of_stage for one in known]
    return known


def tune(
    contestants: Sequence[Contestant], problems: Sequence[Problem], topology: str, report: OnMeasured
) -> list[Measurement]:
    """The best measurement of each problem and contestant; the forward pass is tuned first, the backward pass with it.

    `report` is called with every trial. A contestant that compiles with no blocks has a measurement with an error.
    """
    pairs = [(contestant, problem) for problem in problems for contestant in contestants]
    forward = [TuningStage(one, replace(problem, backward=False), one.forward(problem)) for one, problem in pairs]
    best = _best(forward, topology, report)
    indices = [index for index, (one, problem) in enumerate(pairs) if problem.backward and best[index].error is None]
    stages = []
    for index in indices:
        contestant, problem = pairs[index]
        of_forward = best[index].trial.blocks
        stages.append(
            TuningStage(contestant, problem, ({**of_forward, **blocks} for blocks in contestant.backward(problem)))
        )
    for index, measured in zip(indices, _best(stages, topology, report), strict=True):
        best[index] = measured
    return best


def _best(stages: Sequence[TuningStage], topology: str, report: OnMeasured) -> list[Measurement]:
    """For each stage the trial with the fewest cycles; an error only where every trial failed."""
    tried = [[Trial(stage.contestant.name, stage.problem, blocks) for blocks in stage.blocks] for stage in stages]
    results = _told(measure(list(itertools.chain(*tried)), topology), report)
    found = [[next(results) for _ in trials] for trials in tried]
    return [min(of_stage, key=lambda one: (one.error is not None, one.cycles)) for of_stage in found]


def _told(measurements: Iterable[Measurement], report: OnMeasured) -> Iterator[Measurement]:
    for measured in measurements:
        report(measured)
        yield measured


def keep(best: Sequence[Measurement], contestants: Sequence[Contestant], record: Path = RECORD) -> None:
    """Record the best blocks of each contestant, with its `keep` or in `record`; other rows stay."""
    rows = _rows(record)
    for contestant in contestants:
        measurements = [one for one in best if one.error is None and one.trial.contestant == contestant.name]
        if contestant.keep:
            contestant.keep(measurements)
            continue
        for measured in measurements:
            for backward in {False, measured.trial.problem.backward}:
                stage = replace(measured.trial.problem, backward=backward)
                rows[_key(contestant, stage, measured.topology)] = {
                    name: size for name, size in measured.trial.blocks.items() if _is_backward(name) == backward
                }
    fields = ("contestant", "generation", "tokens", "width", "samples", "length", "backward")
    entries = [json.dumps({**dict(zip(fields, key)), "blocks": rows[key]}) for key in sorted(rows)]
    record.write_text("[\n" + ",\n".join(entries) + "\n]\n")


def _is_backward(name: str) -> bool:
    return name.endswith("_backward") or name == "fused"


def _key(contestant: Contestant, problem: Problem, topology: str) -> tuple[Any, ...]:
    generation = topology.split(":")[0]
    length = problem.length if problem.is_packed else 0
    return contestant.name, generation, problem.tokens, problem.width, problem.samples, length, problem.backward


def _rows(record: Path) -> dict[tuple[Any, ...], dict[str, int]]:
    rows = json.loads(record.read_text()) if record.exists() else []
    return {tuple(value for name, value in row.items() if name != "blocks"): row["blocks"] for row in rows}
