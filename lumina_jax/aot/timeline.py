"""How long a step is expected to take: the program's instructions one after another, in the compiler's order.

In: a `Module`, and a `CompileTarget`, the topology with what is known of the kernels. Out: a `StepTimeline`, one entry
for each instruction that takes time, whose seconds add up to the step.

* A fusion, copy or transpose takes the cycles that the compiler noted beside it, relayouts within VMEM included; where
  it noted none, its bytes through HBM at full bandwidth.
* A kernel takes the longer of its products at the peak and its bytes, and before that the transfer of its first blocks
  and afterwards of its last, which nothing overlaps.
* A collective that the program waits for takes the time of its links. One with a start and an end, and a copy or slice
  with both, runs meanwhile, after those that started earlier; its end waits for what is left.
* The body of a loop takes as long each time as the first time.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lumina_jax.aot.hlo import STARTS_OF_SEQUENCES, Computation, Instruction, Module, counted
from lumina_jax.aot.links import Coordinates, link_seconds
from lumina_jax.aot.traffic import (
    COLLECTIVES,
    FREE,
    collective_of,
    hbm_bytes,
    is_of_attention,
    noted_number,
    products,
    samples_seen,
)
from lumina_jax.chips import Topology
from lumina_jax.kernels.edges import KernelEdges

COPIES = {"copy", "pad", "transpose", "slice", "reshape", "concatenate", "reverse", "copy-done", "slice-done"}
"""Instructions that move values and compute nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileTarget:
    """What instructions run on, and what the program text does not say of them."""

    topology: Topology
    coordinates: Sequence[Coordinates]
    """Of each device, in the order in which the program numbers them."""
    attention_efficiency: float = 1.0
    """The share of a matrix unit that a head fills."""
    samples: int = 1
    """Samples of a row, as in `traffic.work`."""
    edges: Mapping[str, KernelEdges] = dataclasses.field(default_factory=dict)
    """Of kernels, by name."""


class TimelineEntry(NamedTuple):
    """An instruction, and what all its runs in a step take."""

    name: str
    kind: str
    """products, kernels, elementwise, copies or collectives."""
    source: str
    """The line of Python it comes from."""
    times: int
    seconds: float
    hbm_bytes: float
    flops: float


class StepTimeline(NamedTuple):
    """All instructions that take time."""

    entries: tuple[TimelineEntry, ...]

    @property
    def seconds(self) -> float:
        return sum((entry.seconds for entry in self.entries), start=0.0)

    def by_kind(self) -> dict[str, float]:
        """Seconds of each kind, the longest first."""
        totals: dict[str, float] = {}
        for entry in self.entries:
            totals[entry.kind] = totals.get(entry.kind, 0.0) + entry.seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def by_instruction(self) -> list[TimelineEntry]:
        """Dearest first."""
        return sorted(self.entries, key=lambda entry: -entry.seconds)

    def by_source(self) -> list[TimelineEntry]:
        """Entries of one kind from one line of Python as one, which has the name of the dearest; dearest first."""
        groups: dict[tuple[str, str], list[TimelineEntry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.source, entry.kind), []).append(entry)
        return sorted(map(_together, groups.values()), key=lambda entry: -entry.seconds)


def timeline(module: Module, target: CompileTarget, assumed_trips: Sequence[int] = ()) -> StepTimeline:
    """The expected course of one call of the program; `assumed_trips` as in `Module.runs`."""
    trips = {loop.instruction.name: loop.trips for loop in module.loops()}
    entries: list[TimelineEntry] = []

    def run(computation: Computation, times: int, assumed: Sequence[int]) -> float:
        """Seconds of one run of a computation, whose instructions are entered with all `times`."""
        now, clock = 0.0, _Transfers()
        for one in computation.instructions.values():
            callees = module.callees(one)
            if callees and one.opcode not in STARTS_OF_SEQUENCES:
                count, inner = counted(trips.get(one.name, 1), assumed)
                now += count * sum(run(module.computations[name], times * count, inner) for name in callees)
                continue
            seconds = clock.step(now, one, _cost(module, computation, one, target))
            now += seconds
            if seconds > 0:
                entries.append(_entry(module, computation, one, target, times, seconds))
        return now

    run(module.entry, 1, assumed_trips)
    return StepTimeline(tuple(entries))


class _Cost(NamedTuple):
    """Seconds of one run: in which the core is busy, and of a transfer that runs beside it."""

    core: float = 0.0
    transfer: float = 0.0
    engine: str = ""
    """What transfers: "links" or "memory", of which each does one after another."""
    starts: str = ""
    """The name under which a transfer starts."""
    ends: str = ""
    """The name of the transfer that must have ended."""


class _Transfers:
    """Transfers under way in one computation."""

    def __init__(self) -> None:
        self.free: dict[str, float] = {}
        self.ends: dict[str, float] = {}

    def step(self, now: float, one: Instruction, cost: _Cost) -> float:
        """Seconds by which an instruction moves the clock on."""
        if cost.starts:
            end = max(now, self.free.get(cost.engine, 0.0)) + cost.transfer
            self.free[cost.engine] = self.ends[cost.starts] = end
        waited = max(0.0, self.ends.get(cost.ends, 0.0) - now) if cost.ends else 0.0
        return waited + cost.core


def _cost(module: Module, computation: Computation, one: Instruction, target: CompileTarget) -> _Cost:
    chip = target.topology.chip
    cycles, fused = noted_number(one, "estimated_cycles"), module.fused(one)
    core = (cycles or 0) / chip.clock
    collective = collective_of(module, computation, one)
    if fused is not None and "AsyncCollectiveDone" in fused.root.attributes:
        return _Cost(core, ends=_channel(fused))
    if collective is not None:
        seconds = max(link_seconds(collective, target.coordinates, target.topology), default=0.0)
        if fused is not None and "AsyncCollectiveStart" in fused.root.attributes:
            return _Cost(core, seconds, "links", starts=_channel(fused))
        if one.opcode.endswith("-start"):
            return _Cost(core, seconds, "links", starts=one.name)
        return _Cost(max(core, seconds))
    moved = hbm_bytes(module, computation, one, target.samples) / chip.hbm_bandwidth
    if one.opcode in STARTS_OF_SEQUENCES:
        inner = [_cost(module, within, part, target) for within, part in _inside(module, one)]
        limit = "links" if _sends(module, one) else "memory"
        return _Cost(0.0, sum(part.core for part in inner), limit, starts=one.name)
    if one.opcode in ("copy-start", "slice-start"):
        return _Cost(core, moved, "memory", starts=one.name)
    if one.opcode.endswith("-done") and one.operands:
        return _Cost(core, ends=one.operands[0])
    if "tpu_custom_call" in one.attributes:
        return _Cost(_kernel_seconds(one, target, moved))
    return _Cost(core if cycles is not None or one.opcode in FREE else moved)


def _inside(module: Module, one: Instruction) -> list[tuple[Computation, Instruction]]:
    """The instructions that an asynchronous one runs."""
    within = [module.computations[name] for name in module.callees(one)]
    return [(computation, part) for computation in within for part in computation.instructions.values()]


def _sends(module: Module, one: Instruction) -> bool:
    """Whether there is a collective among these."""
    return any(part.opcode.removesuffix("-start") in COLLECTIVES for _, part in _inside(module, one))


def _kernel_seconds(one: Instruction, target: CompileTarget, moved: float) -> float:
    """Seconds of a kernel, of which each core waits for its own first and last blocks."""
    chip = target.topology.chip
    efficiency = target.attention_efficiency if is_of_attention(one) else 1.0
    flops = (noted_number(one, "flops") or 0) / samples_seen(one, target.samples) / efficiency
    edges = next((edges for name, edges in target.edges.items() if is_call_of(one.name, name)), KernelEdges(0.0, 0.0))
    return max(flops / chip.flops, moved) + chip.cores * (edges.first + edges.last) / chip.hbm_bandwidth


def is_call_of(instruction: str, kernel: str) -> bool:
    """Whether an instruction is a call of the kernel of this name, which differentiation may wrap: jvp_NAME_.8."""
    return re.fullmatch(rf"(?:\w+_)?{re.escape(kernel)}_*(?:\.\d+)*", instruction) is not None


def _channel(fused: Computation) -> str:
    """What the fusions that start and end a collective have in common: the number of its channel."""
    found = [part.integer("channel_id") for part in fused.instructions.values() if part.opcode in COLLECTIVES]
    return f"channel {found[0]}" if found else fused.name


def _entry(
    module: Module, computation: Computation, one: Instruction, target: CompileTarget, times: int, seconds: float
) -> TimelineEntry:
    start = computation.instructions.get(one.operands[0], one) if one.opcode.endswith("-done") else one
    flops = sum((count for _, count in products(module, computation, one)), start=0.0)
    kind = "collectives" if start is not one and _sends(module, start) else _kind(module, computation, one, flops)
    if kind == "kernels":
        flops = float(noted_number(one, "flops") or 0) / samples_seen(one, target.samples)
    moved = hbm_bytes(module, computation, start, target.samples)
    source = module.source(one) or module.source(start)
    return TimelineEntry(one.name, kind, source, times, times * seconds, times * moved, times * flops)


def _kind(module: Module, computation: Computation, one: Instruction, flops: float) -> str:
    fused = module.fused(one)
    if "tpu_custom_call" in one.attributes:
        return "kernels"
    if collective_of(module, computation, one) is not None or one.opcode.removesuffix("-done") in COLLECTIVES:
        return "collectives"
    if fused is not None and "AsyncCollectiveDone" in fused.root.attributes:
        return "collectives"
    if flops:
        return "products"
    moves_only = one.opcode in COPIES or (fused is not None and _moves_only(fused))
    return "copies" if moves_only else "elementwise"


def _moves_only(fused: Computation) -> bool:
    """Whether a fusion only moves values, or sets them to a constant."""
    moves = COPIES | FREE | {"dynamic-slice", "dynamic-update-slice", "broadcast", "iota", "select", "convert"}
    return all(part.opcode in moves for part in fused.instructions.values())


def _together(entries: Sequence[TimelineEntry]) -> TimelineEntry:
    dearest = max(entries, key=lambda entry: entry.seconds)
    return TimelineEntry(
        *dearest[:3],
        times=sum(entry.times for entry in entries),
        seconds=sum(entry.seconds for entry in entries),
        hbm_bytes=sum(entry.hbm_bytes for entry in entries),
        flops=sum(entry.flops for entry in entries),
    )
