"""From a schedule to estimated cycles: how often each bundle is issued, and what holds it up.

In: a Schedule and, for what it cannot say because the kernel decides while it runs, a `Course`. Out: an Estimate.

Bundles x times issued are the cycles of the issue; the matrix units' own time is counted apart, because on some
generations the schedule does not hold it: a bf16 product streams 16 rows, one or two a cycle, into one of the units.
Each straight piece of the program costs the larger of the two. Waits for transfers, bank conflicts and launches are
not counted, so estimates compare kernels and are no wall times.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lumina_jax.scaling.cores import Core
from lumina_jax.scaling.schedule import Loop, Region, Schedule

PRODUCT = re.compile(r"vmatmul((?:\.\w+)*?)\.(mxu\d|mrb)")
DELAY = re.compile(r"vdelay (\d+)")
PIPELINE_STEPS = 4
"""A pipelined grid runs up to this many steps more than it has blocks, to fill and drain."""


class Course(NamedTuple):
    """What is decided while a kernel runs.

    Attributes:
      trips: mean number of trips of each loop whose bound is no constant, in the order of the program; one number too
        few repeats the last.
      shares: the share of grid steps in which each region that feeds the matrix units runs, outermost regions only, in
        the order of the program; likewise.
    """

    trips: tuple[float, ...] = ()
    shares: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Estimate:
    """One kernel, per core.

    Attributes:
      issue_cycles: bundles issued.
      product_cycles: what the matrix units need, evenly loaded.
      main_bundles, main_runs: the straight piece that most cycles go to, and how often it is issued.
      slot_use: the share of each slot that the piece fills; VSTORE:SPILL and VLOAD:FILL are parts of VSTORE and VLOAD.
      spills, fills: vector registers that the piece stores for want of registers, and loads again.
      unknown: loops whose trips nobody gave; they were counted once.
    """

    kernel: str
    grid: tuple[int, ...]
    cycles: float
    issue_cycles: float
    product_cycles: float
    main_bundles: int
    main_runs: float
    slot_use: Mapping[str, float]
    spills: int
    fills: int
    vmem_bytes: int
    unknown: int = 0


def estimate(schedule: Schedule, core: Core, course: Course) -> Estimate:
    """The cycles of one kernel of one core."""
    issued, unknown = times_issued(schedule, course)
    edges = [0, *(np.flatnonzero(np.diff(issued)) + 1).tolist(), len(issued)]
    pieces = list(itertools.pairwise(edges))
    length, busy, balanced = np.transpose([_piece(schedule, core, *piece) for piece in pieces])
    times = issued[edges[:-1]]
    cycles = times * np.maximum(length, busy)
    main = int(np.argmax(cycles))
    first, end = pieces[main]
    used = schedule.slot_use[first:end].sum(0)
    names = list(schedule.capacity)
    counts = dict(zip(names, used.tolist()))
    return Estimate(
        kernel=schedule.name,
        grid=schedule.grid,
        cycles=float(cycles.sum()),
        issue_cycles=float((times * length).sum()),
        product_cycles=float((times * balanced).sum()),
        main_bundles=end - first,
        main_runs=float(times[main]),
        slot_use={name: counts[name] / (end - first) / schedule.capacity[name] for name in names},
        spills=counts.get("VSTORE:SPILL", 0),
        fills=counts.get("VLOAD:FILL", 0),
        vmem_bytes=schedule.vmem_bytes,
        unknown=unknown,
    )


def times_issued(schedule: Schedule, course: Course) -> tuple[Float[np.ndarray, " n"], int]:
    """How often each bundle is issued, and how many loops had to be guessed.

    The region that fills and drains the pipeline runs in every step of the grid, but not in every trip of its loop; a
    region inside it with products in the share that `course` gives; one without, such as the set-up and the write-back
    of an output block, once for each turn of the grid's last axis.
    """
    issued = np.ones(len(schedule.bundles))
    steps = math.prod(schedule.grid)
    grid_loop = next((loop for loop in schedule.loops if _is_grid(loop, steps)), None)
    given, unknown = list(course.trips), 0
    for loop in sorted(schedule.loops):
        trips: float | None = loop.trips
        if trips is None:
            unknown += not given
            trips = _next(given)
        issued[loop.first : loop.last + 1] *= trips
    wrapper = next((region for region in schedule.regions if _is_wrapper(region, grid_loop, steps)), None)
    if wrapper and grid_loop and grid_loop.trips:
        issued[wrapper.first : wrapper.end] *= steps / grid_loop.trips
    shares, covered = list(course.shares), 0
    for region in schedule.regions:
        if region == wrapper:
            continue
        if not region.has_products:
            inside = grid_loop and grid_loop.first <= region.first <= grid_loop.last
            issued[region.first : region.end] /= schedule.grid[-1] if inside and schedule.grid else 1
        elif region.first >= covered:
            issued[region.first : region.end] *= _next(shares)
            covered = region.end
    return issued, unknown


def _is_grid(loop: Loop, steps: int) -> bool:
    return loop.trips is not None and 1 < steps <= loop.trips <= steps + PIPELINE_STEPS


def _is_wrapper(region: Region, grid_loop: Loop | None, steps: int) -> bool:
    """Whether a region is the body of the grid's loop, skipped while the pipeline fills and drains."""
    if grid_loop is None or grid_loop.trips == steps or not region.has_products:
        return False
    return grid_loop.first <= region.first and region.end <= grid_loop.last


def _next(given: list[float]) -> float:
    """The next of the numbers, the last of them for ever; 1 without any."""
    return given.pop(0) if len(given) > 1 else (given or [1.0])[0]


def _piece(schedule: Schedule, core: Core, first: int, end: int) -> tuple[float, float, float]:
    """Cycles of a straight piece: to issue it, of its busiest matrix unit, and of its units evenly loaded."""
    text = "\n".join(bundle.text for bundle in schedule.bundles[first:end])
    delays = sum(int(cycles) - 1 for cycles in DELAY.findall(text))
    busy: dict[str, float] = defaultdict(float)
    for kind, unit in PRODUCT.findall(text):
        cycles = _rows(kind) / core.rows_a_cycle
        if unit == "mrb":
            for number in range(core.units):
                busy[f"mxu{number}"] += cycles / core.units
        else:
            busy[unit] += cycles
    return float(end - first + delays), max(busy.values(), default=0.0), sum(busy.values()) / core.units


def _rows(kind: str) -> int:
    """Rows of the left operand that one instruction streams: a register holds 8 rows of 4 bytes, 16 of 2, 32 of 1."""
    if "bf16" in kind:
        return 16
    return 32 if any(name in kind for name in (".s8", ".u8", ".f8")) else 8
