"""How long collectives keep the links of the torus busy.

In: a `Collective` of `aot/traffic.py`, the topology, and the coordinates of each device. Out: seconds by axis.
`roofline.ASSUMPTIONS` says how bytes are divided over links.
"""

from collections.abc import Sequence

from lumina_jax.aot.traffic import Collective
from lumina_jax.chips import Topology

Coordinates = tuple[int, ...]
"""Of a device on the torus: one number for each axis."""


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
