"""The matrix units of each TPU generation, per device as JAX sees it.

Clocks follow from the vendor's bf16 peaks: peak = 2 x units x width^2 x rows a cycle x cores x clock. A v5p device is
two cores, between which the compiler divides a kernel's grid; the schedule it writes is that of one core.
"""

from typing import NamedTuple


class Core(NamedTuple):
    """One generation."""

    clock_ghz: float
    units: int
    """Matrix units (MXU) of a core."""
    width: int
    """Rows and columns of a matrix unit: contraction depth and output width of one pass."""
    rows_a_cycle: int
    """Rows of a bf16 left operand that a unit takes in a cycle."""
    cores: int
    """Cores that share a device's work."""
    accelerator: str
    """TPU_ACCELERATOR_TYPE of a small host, which libtpu wants to know."""

    def padded(self, size: int) -> int:
        """The size that a matrix unit works as hard for."""
        return -(-size // self.width) * self.width

    def cycles(self, multiplications: int) -> float:
        """Cycles of each core when no matrix unit ever waits."""
        return multiplications / (self.units * self.width**2 * self.rows_a_cycle * self.cores)

    def microseconds(self, cycles: float) -> float:
        return cycles / self.clock_ghz / 1e3


CORES = {
    "v5e": Core(1.5, 4, 128, 1, 1, "v5litepod-4"),
    "v5p": Core(1.75, 4, 128, 1, 2, "v5p-8"),
    "v6e": Core(1.75, 2, 256, 2, 1, "v6e-4"),
    "tpu7x": Core(2.2, 2, 256, 2, 1, "tpu7x-8"),
}


def core_of(topology: str) -> Core:
    """The core of a topology's chips; ValueError for a generation whose figures are not known."""
    generation = topology.split(":")[0]
    if generation not in CORES or ":" not in topology:
        raise ValueError(
            f"{topology=} must be GENERATION:SHAPE, such as v6e:2x2 or v5p:2x2x1; generations are {', '.join(CORES)}"
        )
    return CORES[generation]
