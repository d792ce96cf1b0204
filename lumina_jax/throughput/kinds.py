"""Where the time of a program goes, by kind: a trace of the profiler against the text of the program.

In: a compiled program, and a function that runs it. Out: seconds by kind that devices were busy with, for each run. The
trace names instructions of the program; what an instruction does is read in the program (`aot/hlo.py`). Loops and calls
are not counted, because what they run is.

On a CPU several threads work at the same time, so that these seconds may add up to more than a run takes.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lumina_jax.aot.hlo import Computation, Instruction, Module, read_hlo
from lumina_jax.aot.traffic import COLLECTIVES, products

ATTENTION, PRODUCTS, LINKS, COPIES, OTHERS = (
    "attention",
    "matrix products",
    "collectives",
    "copies",
    "element by element, sums and random numbers",
)
KINDS_OF_WORK = (PRODUCTS, ATTENTION, LINKS, COPIES, OTHERS)
CONTAINERS = {"while", "call", "conditional", "tuple", "get-tuple-element", "parameter", "constant"}
MOVES = {
    *("copy", "copy-start", "copy-done", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate"),
    *("reshape", "bitcast", "broadcast", "pad", "gather", "reverse", "slice-start", "slice-done"),
}
"""Instructions that move values and compute none."""
FREE_IN_FUSIONS = {"parameter", "constant", "tuple", "get-tuple-element", "iota"}
KERNEL = re.compile(r"tpu_custom_call|fmha|flash|attention", re.IGNORECASE)
LIBRARY_PRODUCT = re.compile(r"gemm|matmul|cublas", re.IGNORECASE)


def seconds_by_kind(compiled: Any, once: Callable[[], None], runs: int, keep: Path | None = None) -> dict[str, float]:
    """Busy seconds of one run by kind, the mean over `runs` runs.

    Args:
      compiled: the program, which `once` runs.
      keep: a folder for the trace; None: it is not kept.

    Raises:
      RuntimeError: the trace names no instruction of the program.
    """
    module = read_hlo(compiled.as_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        with jax.profiler.trace(str(folder)):
            for _ in range(runs):
                once()
        newest = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
        found = kinds_of_events(module, events(newest))
    if not found:
        raise RuntimeError("the trace names no instruction of the program; leave out the breakdown with --no-trace")
    return {kind: found[kind] / runs for kind in KINDS_OF_WORK if kind in found}


def events(file: Path) -> Iterator[tuple[str, float]]:
    """The name and the seconds of each instruction that a device ran, in a trace."""
    from jax.profiler import ProfileData

    for plane in ProfileData.from_file(str(file)).planes:
        is_device = plane.name.startswith("/device:")
        for line in plane.lines:
            if is_device and "TPU" in plane.name and line.name != "XLA Ops":
                continue
            for event in line.events:
                name = _instruction_name(event, is_device)
                if name is not None:
                    yield name, event.duration_ns / 1e9


def kinds_of_events(module: Module, named: Iterator[tuple[str, float]]) -> dict[str, float]:
    """Seconds by kind of events that name instructions of a program; others do not count."""
    where = {
        name: (computation, one)
        for computation in module.computations.values()
        for name, one in computation.instructions.items()
    }
    total: dict[str, float] = {}
    for name, seconds in named:
        if name in where and (kind := kind_of(module, *where[name])) is not None:
            total[kind] = total.get(kind, 0.0) + seconds
    return total


def kind_of(module: Module, computation: Computation, one: Instruction) -> str | None:
    """What an instruction does; None: it runs others, or nothing."""
    if one.opcode in CONTAINERS:
        return None
    if one.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
        return LINKS
    if one.opcode == "custom-call":
        return ATTENTION if KERNEL.search(one.attributes) else _of_call(one)
    kinds = {kind for kind, _ in products(module, computation, one)}
    if kinds:
        return PRODUCTS if "product" in kinds else ATTENTION
    fused = module.fused(one)
    if fused is None:
        return COPIES if one.opcode in MOVES else OTHERS
    inner = {part.opcode for part in fused.instructions.values()} - FREE_IN_FUSIONS
    if inner & set(COLLECTIVES):
        return LINKS
    return COPIES if inner <= MOVES else OTHERS


def _of_call(one: Instruction) -> str:
    """What a call of a library does."""
    return PRODUCTS if LIBRARY_PRODUCT.search(one.attributes) else OTHERS


def _instruction_name(event: Any, is_device: bool) -> str | None:
    """The instruction of an event; None: it is no instruction."""
    for key, value in event.stats:
        if key == "hlo_op":
            return str(value)
    match = re.match(r"%?([\w.-]+)", event.name) if is_device else None
    return match[1] if match else None
