"""How long a step takes at least: the longest of arithmetic, memory and interconnect, each at its peak rate.

In: what the compiled program does (`aot/traffic.py`), model FLOPs (`aot/flops.py`), the topology, and where
each device is on its torus. Out: an `Estimate` in seconds and the utilisation that follows. Nothing here was
measured on a TPU; `ASSUMPTIONS` says what the numbers rest on, and is printed with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lumina_jax.aot.traffic import Collective, Work
from lumina_jax.chips import Topology

Coordinates = tuple[int, ...]
"""Of a device on the torus: one number for each axis."""

ASSUMPTIONS = (
    "arithmetic, memory and links each run at their peak, and overlap completely; 'one after another' adds them up",
    "arithmetic: every matrix product of the program, loops and recomputation included, and every kernel by its "
    "CostEstimate, divided by the samples of a row, which do not see each other; attention fills head width / (head "
    "width rounded up to the matrix unit) of the peak",
    "memory: each operand and result of each fusion in HBM moves once; what stays in VMEM is free",
    "links: collectives run one after another; on an axis that closes to a ring both directions carry half the bytes, "
    "on one that does not the middle link limits; a group over several axes uses the links of all",
    "all-to-all: n/8 of the operand over one link along a ring of n, n/4 along a line, one axis after another",
    "MFU: model FLOPs (matrix products of forward and backward, once) over peak FLOPs of all chips in that time",
)


class StepEstimate(NamedTuple):
    """Seconds a step, by what limits it, and utilisation."""

    arithmetic: float
    memory: float
    links: float
    busiest_axis: float
    """Seconds that the links of the busiest axis of the torus carry bytes, if collectives of other axes overlap."""
    compiled: float
    """The compiler's own cycles for its fusions, and kernels at the peak of their matrix units."""
    mfu: float
    mfu_one_after_another: float

    @property
    def step(self) -> float:
        return max(self.arithmetic, self.memory, self.links)

    @property
    def one_after_another(self) -> float:
        return self.arithmetic + self.memory + self.links

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max(("arithmetic", "memory", "links"), key=lambda name: getattr(self, name))


def attention_efficiency(head_width: int, topology: Topology) -> float:
    """Share of a matrix unit that a head of this width fills."""
    unit = topology.chip.matrix_unit
    return head_width / (-(-head_width // unit) * unit)


def estimate_step(
    done: Work,
    collectives: Sequence[Collective],
    coordinates: Sequence[Coordinates],
    topology: Topology,
    *,
    model_flops: float,
    head_width: int,
) -> StepEstimate:
    """The roofline of a program.

    Args:
      coordinates: coordinates of each device, in the order in which the program numbers them.
      model_flops: of a step of the whole batch, on all devices together.
    """
    chip, efficiency = topology.chip, attention_efficiency(head_width, topology)
    attention = (done.batched_flops + done.kernel_flops) / efficiency
    arithmetic = (done.product_flops + attention) / chip.flops
    memory = done.hbm_bytes / chip.hbm_bandwidth
    of_each = [[one.times * seconds for seconds in link_seconds(one, coordinates, topology)] for one in collectives]
    links = sum(max(seconds) for seconds in of_each)
    busiest = max((sum(axis) for axis in zip(*of_each)), default=0.0)
    compiled = done.cycles / chip.clock + done.kernel_flops / efficiency / chip.flops
    ideal = model_flops / (chip.flops * topology.devices)
    return StepEstimate(
        arithmetic,
        memory,
        links,
        busiest,
        compiled,
        mfu=ideal / max(arithmetic, memory, links),
        mfu_one_after_another=ideal / (arithmetic + memory + links),
    )


def link_seconds(one: Collective, coordinates: Sequence[Coordinates], topology: Topology) -> list[float]:
    """Seconds for which one run of a collective keeps the links of each axis of the torus busy."""
    axes, rate = range(len(topology.extent)), topology.chip.link_bandwidth
    if one.kind == "collective-permute":
        hops = [
            max((_distance(coordinates[a], coordinates[b], axis, topology) for a, b in one.groups), default=0)
            for axis in axes
        ]
        return [one.operand_bytes * count / rate for count in hops]
    group = one.groups[0] if one.groups else range(len(coordinates))
    lanes = [_lanes([coordinates[device][axis] for device in group], axis, topology) for axis in axes]
    if not any(lanes):  # the two devices of a chip
        return [0.0 for _ in axes]
    if one.kind == "all-to-all":
        along = [len({coordinates[device][axis] for device in group}) for axis in axes]
        return [one.operand_bytes * n / (4 * lane * rate) if lane else 0.0 for n, lane in zip(along, lanes)]
    busy = one.sent_bytes(len(coordinates)) / (sum(lanes) * rate)
    return [busy if lane else 0.0 for lane in lanes]


def _lanes(positions: Sequence[int], axis: int, topology: Topology) -> float:
    """Links that a chip can send over at once along an axis, for a group that stands at these positions of it: 2 on a
    ring, 1 on a line, less where groups interleave and share them; 0 if the group stands still."""
    along = sorted(set(positions))
    if len(along) == 1:
        return 0.0
    stride = along[1] - along[0]
    closes = topology.wraps(axis) and stride * len(along) == topology.extent[axis]
    return (2 if closes else 1) / stride


def _distance(start: Coordinates, end: Coordinates, axis: int, topology: Topology) -> int:
    apart = abs(start[axis] - end[axis])
    return min(apart, topology.extent[axis] - apart) if topology.wraps(axis) else apart
