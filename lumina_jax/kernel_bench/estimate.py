"""From a schedule to estimated cycles.

In: a schedule and how often each bundle is issued. Bundles x times issued are the cycles of the issue. The time of the
matrix units is counted separately, because on some generations the schedule does not contain it: a bf16 product streams
16 rows, one or two a cycle, into one of the units. Each branch-free piece of the program costs the larger of the two.
Waits for transfers, bank conflicts and launches are not counted, so estimates compare kernels but are not wall times.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lumina_jax.chips import Chip
from lumina_jax.kernel_bench.schedule import Schedule

PRODUCT = re.compile(r"vmatmul((?:\.\w+)*?)\.(mxu\d|mrb)")
DELAY_SLOT = re.compile(r"vdelay (\d+)")


@dataclass(frozen=True)
class Estimate:
    """One kernel, per core.

    Attributes:
      issue_cycles: bundles issued.
      product_cycles: cycles that the matrix units need, evenly loaded.
      main_bundles, main_runs: the branch-free piece that takes most cycles, and how often it is issued.
      slot_use: the share of each slot that the piece fills; VSTORE:SPILL and VLOAD:FILL are parts of VSTORE and VLOAD.
      spills, fills: vector registers that the piece stores because there are too few, and loads again.
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


def estimate(schedule: Schedule, chip: Chip, issued: Float[np.ndarray, " n"]) -> Estimate:
    """The cycles of a kernel whose bundles are issued as often as `issued` says."""
    edges = [0, *(np.flatnonzero(np.diff(issued)) + 1).tolist(), len(issued)]
    pieces = list(itertools.pairwise(edges))
    length, busy, balanced = np.transpose([_piece(schedule, chip, *piece) for piece in pieces])
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
    )


def _piece(schedule: Schedule, chip: Chip, first: int, end: int) -> tuple[float, float, float]:
    """Cycles of a branch-free piece: to issue it, of its busiest matrix unit, and of its units evenly loaded."""
    text = "\n".join(bundle.text for bundle in schedule.bundles[first:end])
    delays = sum(int(cycles) - 1 for cycles in DELAY_SLOT.findall(text))
    busy: dict[str, float] = defaultdict(float)
    for kind, unit in PRODUCT.findall(text):
        cycles = _rows(kind) / chip.rows_a_cycle
        if unit == "mrb":
            for number in range(chip.matrix_units):
                busy[f"mxu{number}"] += cycles / chip.matrix_units
        else:
            busy[unit] += cycles
    return float(end - first + delays), max(busy.values(), default=0.0), sum(busy.values()) / chip.matrix_units


def _rows(kind: str) -> int:
    """Rows of the left operand that one instruction streams: a register holds 8 rows of 4 bytes, 16 of 2, 32 of 1."""
    if "bf16" in kind:
        return 16
    return 32 if any(name in kind for name in (".s8", ".u8", ".f8")) else 8
