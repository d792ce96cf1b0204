"""TPU chips and how they are wired: the numbers on which every estimate and every choice of block sizes rests. Also the
peaks of GPUs.

In: the name of a chip, or of a topology as Cloud TPU writes it, such as "v5p:8x8x8". Out: a `Chip` with its peak rates
and its cores, or a `Topology` with the extent of its torus. Nothing here imports jax.

Sources: the specification table of each chip at docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (read in
November 2026). These tables give the bandwidth of a chip's interconnect, both directions together; the share of one
link in one direction is that number divided by twice the ports of a chip. `hbm_usable` is the limit that the compiler
(libtpu 0.0.42) reports when a program does not fit. Clocks follow from the published peaks: peak = 2 x matrix units x
width^2 x rows a cycle x cores x clock.

Of GPUs only the peak is needed: by jax's name of the kind, that of dense bfloat16 products whose sums are float32.
"""

import dataclasses
import math
import re
from typing import NamedTuple

MIB, GIB = 2**20, 2**30
LANES = 128
"""Values of four bytes in a row of a vector register, on every chip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as jax counts them: half a chip for v4 and tpu7x."""

    name: str
    flops: float
    """Multiplications and additions a second of bfloat16 matrix products."""
    clock: float
    """Cycles a second."""
    cores: int = 1
    """Cores that share a device's work: the compiler divides a kernel's grid between them."""
    matrix_units: int
    """Matrix units (MXU) of a core."""
    matrix_unit: int
    """Rows and columns of a matrix unit; shorter contractions and outputs leave part of it idle."""
    rows_a_cycle: int
    """Rows of a bfloat16 left operand that a matrix unit takes in a cycle."""
    vmem: int
    """Bytes of vector memory of a core."""
    hbm_bytes: int
    """Bytes of memory that the vendor states."""
    hbm_usable: int
    """Bytes of memory that a program may use."""
    hbm_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second over one link of the torus in one direction."""
    axes: int
    """Dimensions of the torus."""
    wraps_at: int
    """An axis of the torus closes to a ring when its extent is a multiple of this."""
    devices: int = 1
    """Devices of a chip."""
    sold_alone: bool = False
    """Whether a host with a single chip can be rented."""
    accelerator: str
    """TPU_ACCELERATOR_TYPE of a small host, under which libtpu compiles for the chip."""

    @property
    def source(self) -> str:
        """Where the numbers are published."""
        return f"docs.cloud.google.com/tpu/docs/{self.name}"

    def padded(self, size: int) -> int:
        """`size` rounded up to whole matrix units: a product costs as much as one of this size."""
        return -(-size // self.matrix_unit) * self.matrix_unit

    def product_cycles(self, multiplications: int) -> float:
        """Cycles that each core needs for these multiplications when no matrix unit ever waits."""
        return multiplications / (self.matrix_units * self.matrix_unit**2 * self.rows_a_cycle * self.cores)

    def microseconds(self, cycles: float) -> float:
        return cycles / self.clock * 1e6


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", flops=275e12 / 2, clock=1.05e9, matrix_units=4, matrix_unit=128, rows_a_cycle=1, vmem=16 * MIB,
            hbm_bytes=16 * GIB, hbm_usable=int(15.25 * GIB), hbm_bandwidth=1228e9 / 2, link_bandwidth=50e9,
            axes=3, wraps_at=4, devices=2, accelerator="v4-8",
        ),
        Chip(
            name="v5e", flops=197e12, clock=1.5e9, matrix_units=4, matrix_unit=128, rows_a_cycle=1, vmem=128 * MIB,
            hbm_bytes=16 * GIB, hbm_usable=int(15.75 * GIB), hbm_bandwidth=819e9, link_bandwidth=50e9,
            axes=2, wraps_at=16, sold_alone=True, accelerator="v5litepod-4",
        ),
        Chip(
            name="v5p", flops=459e12, clock=1.75e9, cores=2, matrix_units=4, matrix_unit=128, rows_a_cycle=1,
            vmem=64 * MIB, hbm_bytes=95 * GIB, hbm_usable=int(95.74 * GIB), hbm_bandwidth=2765e9, link_bandwidth=100e9,
            axes=3, wraps_at=4, accelerator="v5p-8",
        ),
        Chip(
            name="v6e", flops=918e12, clock=1.75e9, matrix_units=2, matrix_unit=256, rows_a_cycle=2, vmem=128 * MIB,
            hbm_bytes=32 * GIB, hbm_usable=int(31.25 * GIB), hbm_bandwidth=1638e9, link_bandwidth=100e9,
            axes=2, wraps_at=16, sold_alone=True, accelerator="v6e-4",
        ),
        Chip(
            name="tpu7x", flops=2307e12 / 2, clock=2.2e9, matrix_units=2, matrix_unit=256, rows_a_cycle=2,
            vmem=64 * MIB, hbm_bytes=96 * GIB, hbm_usable=int(94.75 * GIB), hbm_bandwidth=7380e9 / 2,
            link_bandwidth=100e9, axes=3, wraps_at=4, devices=2, accelerator="tpu7x-8",
        ),
    )
}  # fmt: skip
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""The names that jax gives to TPUs, and those of `CHIPS`."""


def chip_of_kind(kind: str) -> Chip | None:
    """The chip of a device, by jax's name of its kind; None where it is no TPU of the table."""
    name = KINDS.get(kind)
    return None if name is None else CHIPS[name]


class GpuPeak(NamedTuple):
    """Multiplications and additions a second, half of what data sheets give for sparse matrices."""

    flops: float
    source: str


_HOPPER, _AMPERE = "data sheet of the NVIDIA H100 and H200", "data sheet of the NVIDIA A100"
_DENSE = "half of its number for sparse matrices"
GPU_PEAKS = {
    "NVIDIA H200": GpuPeak(1979e12 / 2, f"{_HOPPER}, {_DENSE}"),
    "NVIDIA H100 80GB HBM3": GpuPeak(1979e12 / 2, f"{_HOPPER}, {_DENSE}"),
    "NVIDIA H100 PCIe": GpuPeak(1513e12 / 2, f"{_HOPPER}, {_DENSE}"),
    "NVIDIA A100-SXM4-40GB": GpuPeak(312e12, _AMPERE),
    "NVIDIA A100-SXM4-80GB": GpuPeak(312e12, _AMPERE),
    "NVIDIA A100-PCIE-40GB": GpuPeak(312e12, _AMPERE),
    "NVIDIA A100 80GB PCIe": GpuPeak(312e12, _AMPERE),
    "NVIDIA L4": GpuPeak(242e12 / 2, f"data sheet of the NVIDIA L4, {_DENSE}"),
    "NVIDIA GeForce RTX 4090": GpuPeak(165.2e12, "NVIDIA Ada GPU architecture, appendix A"),
    "NVIDIA GeForce RTX 3090": GpuPeak(71e12, "NVIDIA Ampere GA102 GPU architecture, appendix A"),
}
"""By the names that jax gives to GPUs. A part of a GPU (MIG) has another name."""


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
        """Devices as jax counts them."""
        return self.chips * self.chip.devices

    def wraps(self, axis: int) -> bool:
        """Whether the two ends of an axis are linked, so that its chips form a ring."""
        return self.extent[axis] > 2 and self.extent[axis] % self.chip.wraps_at == 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables that must be set before jax is imported, for libtpu to compile for chips that are not attached."""
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
      ValueError: no such chip, or another number of axes than its torus has.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"a topology is CHIP:AxB or CHIP:AxBxC, such as v5e:16x16 or v5p:4x4x8, but got {name!r}; chips: "
            f"{', '.join(CHIPS)}"
        )
    chip, extent = CHIPS[match[1]], tuple(int(side) for side in match[2].split("x"))
    if len(extent) != chip.axes or 0 in extent:
        raise ValueError(
            f"the torus of {chip.name} has {chip.axes} axes, but got {name!r}; write "
            f"{chip.name}:{'x'.join('4' * chip.axes)}"
        )
    return Topology(name, chip, extent)
