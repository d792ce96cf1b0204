"""The process that compiles: `python -m lumina_jax.kernel_bench.worker JOB.json`, started by `compiler`.

Reads the job's trials, compiles each for one chip of the topology, reads the schedules that the compiler dumped,
deletes them, and prints a line of JSON for each trial.
"""

import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lumina_jax.chips import parse_topology
from lumina_jax.kernel_bench.cases import contestant_of
from lumina_jax.kernel_bench.compiler import MARK
from lumina_jax.kernel_bench.estimate import Estimate, estimate
from lumina_jax.kernel_bench.measurements import Measurement, Trial
from lumina_jax.kernel_bench.problems import Problem
from lumina_jax.kernel_bench.scalars import Call, issued_by, kernel_calls
from lumina_jax.kernel_bench.schedule import kernel_name, read_schedule
from lumina_jax.kernels.flash.blocks import least_heads
from lumina_jax.libtpu import device_of_kernels

BUNDLES = re.compile(r"(.+)-\d+-final_bundles\.txt")
WRITTEN = re.compile(r"^\s+(?:ROOT )?%\S+ = (\([^)]*\)|\S+) ([a-z][\w-]*)\(")
ARRAY = re.compile(r"(pred|[a-z]+?)(\d*)\[([\d,]*)\]")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "custom-call"}
"""Instructions that write nothing; custom calls are the kernels."""
ERROR_LENGTH = 200
HEADS = 4
"""The most heads of a grid step of our kernels, where no more must be taken together."""


def main(job: Path) -> None:
    values = json.loads(job.read_text())
    topology, dump = values["topology"], Path(values["dump"])
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    device = described.devices[0]
    _answer_for(device)
    sharding = NamedSharding(Mesh(np.array([device]), ("chip",)), PartitionSpec())
    for trial in map(Trial.from_json, values["trials"]):
        try:
            measured = _measure(trial, topology, sharding, dump)
        except Exception as error:  # whatever a contestant or the compiler raises is that trial's result
            measured = Measurement(topology, trial, error=_short(error))
        for file in dump.iterdir():
            file.unlink()
        print(MARK + json.dumps(measured.to_json()), flush=True)


def _short(error: Exception) -> str:
    """The error in one line; for kernels that need too much VMEM, how much they need."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    needed = re.search(r"Scoped allocation with size (\S+) and limit (\S+)", text)
    return f"needs {needed[1]} of VMEM, the limit is {needed[2]}" if needed else text[:ERROR_LENGTH]


def _answer_for(device: Any) -> None:
    """Answer kernels that ask which chip they are traced for with the topology's chip, not with this machine's."""
    names, answers = device_of_kernels(device)
    names.update(answers)
    jax.default_backend = lambda: "tpu"


def _measure(trial: Trial, topology: str, sharding: NamedSharding, dump: Path) -> Measurement:
    build = contestant_of(trial.contestant).case
    case = build(trial.problem, trial.blocks)
    on_chip = [jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding) for of in case.arguments]
    start = time.perf_counter()
    compiled = jax.jit(case.function).trace(*on_chip).lower(lowering_platforms=("tpu",)).compile()
    seconds = time.perf_counter() - start
    program = compiled.as_text() or ""
    fewer = build(replace(trial.problem, heads=_few_heads(trial.problem)), trial.blocks)
    recorded = kernel_calls(fewer.function, fewer.example())
    calls = program.count('custom_call_target="tpu_custom_call"')
    kernels = _kernels(dump, topology, recorded, repeated=" while(" in program or len(recorded) == calls)
    notes = () if calls == len(kernels) else (f"{len(kernels)} schedules for {calls} kernel calls",)
    if not kernels:
        raise RuntimeError("the compiler dumped no schedule of a kernel; is this libtpu's dump format another one?")
    return Measurement(topology, trial, tuple(kernels), around_bytes(program), seconds, notes=notes)


def _few_heads(problem: Problem) -> int:
    """The fewest heads with which kernels cut their work as with all: scalars are the same for every head, unless some
    have no text."""
    if problem.text_heads:
        return problem.heads
    fewest = math.lcm(HEADS, least_heads(problem.heads, problem.width))
    return fewest if problem.heads % fewest == 0 else problem.heads


def _kernels(dump: Path, topology: str, calls: list[Call], *, repeated: bool) -> list[Estimate]:
    """Estimates of every custom kernel whose schedule was dumped, in the order of their files; `repeated` as in
    `issued_by`."""
    schedules = []
    for file in sorted(dump.glob("*-final_bundles.txt")):
        stem = BUNDLES.fullmatch(file.name)
        if not stem or "schedule-analysis" in file.name:
            continue
        text = file.read_text(errors="replace")
        if kernel_name(text) is None:
            continue
        others = [
            next(path for path in dump.iterdir() if path.name.startswith(f"{stem[1]}-") and path.name.endswith(ending))
            for ending in ("-final_hlo-static-per-bundle-utilization.txt", "-post-delay-converter.txt")
        ]
        schedules.append(read_schedule(text, *(path.read_text(errors="replace") for path in others)))
    chip = parse_topology(topology).chip
    issued = issued_by(schedules, calls, repeated=repeated)
    return [estimate(schedule, chip, times) for schedule, times in zip(schedules, issued)]


def around_bytes(program: str) -> int:
    """Bytes that the entry computation of a compiled program writes outside its kernels."""
    entry = program[program.find("\nENTRY") :]
    total = 0
    for line in entry.splitlines():
        written = WRITTEN.match(line)
        if written and written[2] not in FREE:
            total += sum(_size(*array) for array in ARRAY.findall(written[1]))
    return total


def _size(kind: str, bits: str, shape: str) -> int:
    elements = math.prod(int(size) for size in shape.split(",") if size)
    return elements * (int(bits) if bits else 8) // 8


if __name__ == "__main__":
    main(Path(sys.argv[1]))
