"""How the devices of a run are divided: see docs/parallelism.md."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from lumina_jax.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """Devices along each mesh axis; the axis `data` has the remaining ones."""

    called: ClassVar[str] = "mesh."

    fsdp: int | None = 1
    """Devices that share the parameters and the optimiser's moments, and gather the weights of a layer for its use;
    None: all devices (of a slice) that sequence and tensor leave."""
    sequence: int = 1
    """Devices that share the tokens of a row, for long sequences; they keep shares of the parameters as well."""
    ring: int = 1
    """How many of those pass keys and values round a ring. Groups of sequence / ring devices exchange heads for tokens,
    which is faster, and needs at least that number of heads."""
    tensor: int = 1
    """Devices that divide attention heads and the width of the feed-forward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fsdp", "sequence", "ring", "tensor"):
            size = getattr(self, name)
            require(size is None or size >= 1, f"mesh.{name}={size} must be at least 1")
        require(
            self.sequence % self.ring == 0,
            f"mesh.ring={self.ring} must divide mesh.sequence={self.sequence}: it is part of it",
        )

    def over(self, devices: int) -> "MeshConfig":
        """These sizes with fsdp as a number, for a slice with this number of devices."""
        if self.fsdp is not None:
            return self
        return dataclasses.replace(self, fsdp=max(1, devices // (self.sequence * self.tensor)))
