"""TPU chips and how they are wired: the numbers that every estimate of this package rests on.

In: a topology by the name that Cloud TPU gives it, such as "v5p:8x8x8". Out: a `Topology`, with the peak rates of its
chips and the extent of its torus. Nothing here imports jax.

Sources: the specification table of each chip at docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (read in
November 2026). These give the interconnect of a chip, both directions together; a link's share in one direction is that
divided by twice the ports of a chip. `hbm_usable` is what the compiler (libtpu 0.0.42) says is available when a program
does not fit; the width of the matrix units is that of the same pages.
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one device as jax counts them (half a chip for v4 and tpu7x)."""

    name: str
    flops: float
    """Multiplications and additions a second of bfloat16 matrix products."""
    hbm_bytes: int
    """Memory that is sold."""
    hbm_usable: int
    """Memory that a program may use."""
    hbm_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second over one link of the torus in one direction."""
    matrix_unit: int
    """Rows and columns of a matrix unit; shorter contractions and outputs leave part of it idle."""
    clock: float
    """Cycles a second: the peak divided by the multiplications and additions of all matrix units in a cycle."""
    wraps_at: int
    """An axis of the torus closes to a ring when its extent is a multiple of this."""
    accelerator: str
    """TPU_ACCELERATOR_TYPE under which libtpu compiles for it."""
    devices: int = 1
    """Devices of a chip."""
    source: str = ""


DOCS = "docs.cloud.google.com/tpu/docs"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", 275e12 / 2, 16 * GIB, int(15.25 * GIB), 1228e9 / 2, 50e9, 128, 1.05e9, 4, "v4-8",
            devices=2, source=f"{DOCS}/v4",
        ),
        Chip(
            "v5e", 197e12, 16 * GIB, int(15.75 * GIB), 819e9, 50e9, 128, 1.5e9, 16, "v5litepod-4", source=f"{DOCS}/v5e"
        ),
        Chip("v5p", 459e12, 95 * GIB, int(95.74 * GIB), 2765e9, 100e9, 128, 1.75e9, 4, "v5p-8", source=f"{DOCS}/v5p"),
        Chip("v6e", 918e12, 32 * GIB, int(31.25 * GIB), 1638e9, 100e9, 256, 1.75e9, 16, "v6e-4", source=f"{DOCS}/v6e"),
        Chip(
            "tpu7x", 2307e12 / 2, 96 * GIB, int(94.75 * GIB), 7380e9 / 2, 100e9, 256, 2.2e9, 4, "tpu7x-8",
            devices=2, source=f"{DOCS}/tpu7x",
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind on a torus."""

    name: str
    chip: Chip
    extent: tuple[int, ...]
    """Chips along each axis."""

    @property
    def chips(self) -> int:
        return math.prod(self.extent)

    @property
    def devices(self) -> int:
        """What jax counts."""
        return self.chips * self.chip.devices

    def wraps(self, axis: int) -> bool:
        """Whether the two ends of an axis are linked, so that its chips form a ring."""
        return self.extent[axis] > 2 and self.extent[axis] % self.chip.wraps_at == 0

    @property
    def environment(self) -> dict[str, str]:
        """What must be set before jax is imported for libtpu to compile for these chips where there are none."""
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": self.chip.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_MIN_LOG_LEVEL": "3",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }


def parse_topology(name: str) -> Topology:
    """The topology of a name such as v5e:16x16 or v5p:4x4x8.

    Raises:
      ValueError: no such chip, or not so many axes as its torus has.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"a topology is CHIP:AxB or CHIP:AxBxC, such as v5e:16x16 or v5p:4x4x8, but got {name!r}; chips: "
            f"{', '.join(CHIPS)}"
        )
    chip, extent = CHIPS[match[1]], tuple(int(side) for side in match[2].split("x"))
    axes = 2 if chip.name in ("v5e", "v6e") else 3
    if len(extent) != axes or 0 in extent:
        raise ValueError(
            f"the torus of {chip.name} has {axes} axes, but got {name!r}; write {chip.name}:{'x'.join('4' * axes)}"
        )
    return Topology(name, chip, extent)
