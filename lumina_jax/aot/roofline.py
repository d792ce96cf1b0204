"""How long a step takes: as expected, and between which limits.

In: what the compiled program does (`aot/traffic.py`) and in which order (`aot/timeline.py`), model FLOPs
(`aot/flops.py`), and the topology. Out: a `StepEstimate` in seconds and the utilisation that follows. Arithmetic,
memory and interconnect at their peak rates are limits: the longest of them is the least time, and their sum that in
which nothing overlaps. Nothing here was measured on a TPU; `ASSUMPTIONS` says what the numbers rest on, and is printed
with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lumina_jax.aot.links import Coordinates, link_seconds
from lumina_jax.aot.traffic import Collective, Work
from lumina_jax.chips import Topology

ASSUMPTIONS = (
    "expected: the program's instructions in the compiler's order; each takes the cycles that the compiler notes "
    "beside it (relayouts in VMEM included), or without a note its bytes through HBM; kernels take the longer of "
    "products at the peak and bytes, and the transfer of their first and last blocks; collectives and copies with a "
    "start and an end overlap with what lies between, the others are waited for",
    "at least: arithmetic, memory and links each run at their peak, and overlap completely; 'one after another' adds "
    "them up; both know nothing of relayouts, and neither is a forecast",
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
    """Seconds a step: as expected, and by what limits it; and utilisation (MFU) of each."""

    expected: float
    """By the timeline of the program, but not less than `at_least`."""
    mfu: float
    """Of the expected time."""
    arithmetic: float
    memory: float
    links: float
    busiest_axis: float
    """Seconds that the links of the busiest axis of the torus carry bytes, if collectives of other axes overlap."""
    compiled: float
    """The part of the expected time that the compiler's cycles and the products of kernels at their peak are."""
    mfu_at_most: float
    mfu_one_after_another: float

    @property
    def at_least(self) -> float:
        return max(self.arithmetic, self.memory, self.links)

    @property
    def one_after_another(self) -> float:
        return self.arithmetic + self.memory + self.links

    @property
    def bound(self) -> str:
        """The limit that is reached first."""
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
    in_order: float,
    model_flops: float,
    head_width: int,
) -> StepEstimate:
    """The expected time of a program, and its limits.

    Args:
      in_order: seconds of the program's timeline.
      coordinates: coordinates of each device, in the order in which the program numbers them.
      model_flops: of a step of the whole batch, on all devices together.
    """
    chip, efficiency = topology.chip, attention_efficiency(head_width, topology)
    attention = (done.batched_flops + done.kernel_flops) / efficiency
    arithmetic = (done.product_flops + done.token_product_flops + attention) / chip.flops
    memory = done.hbm_bytes / chip.hbm_bandwidth
    of_each = [[one.times * seconds for seconds in link_seconds(one, coordinates, topology)] for one in collectives]
    links = sum(max(seconds) for seconds in of_each)
    busiest = max((sum(axis) for axis in zip(*of_each)), default=0.0)
    compiled = done.cycles / chip.clock + (done.kernel_flops / efficiency + done.token_product_flops) / chip.flops
    ideal = model_flops / (chip.flops * topology.devices)
    at_least = max(arithmetic, memory, links)
    expected = max(in_order, at_least)
    return StepEstimate(
        expected,
        ideal / expected,
        arithmetic,
        memory,
        links,
        busiest,
        compiled,
        mfu_at_most=ideal / at_least,
        mfu_one_after_another=ideal / (arithmetic + memory + links),
    )
