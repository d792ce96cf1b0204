"""Measurements of one contestant on one problem, and their form as JSON, in which they pass through a pipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lumina_jax.chips import Chip, parse_topology
from lumina_jax.kernel_bench.estimate import Estimate
from lumina_jax.kernel_bench.problems import Problem


@dataclass(frozen=True)
class Trial:
    """A contestant, a problem and block sizes to compile for a topology."""

    contestant: str
    problem: Problem
    blocks: Mapping[str, int]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        return cls(values["contestant"], Problem(**values["problem"]), values["blocks"])


@dataclass(frozen=True)
class Measurement:
    """A trial and the schedules that it compiled to.

    Attributes:
      kernels: one estimate for each kernel of the program.
      around_bytes: bytes that the program writes outside its kernels: copies, transposes, sums.
      error: why there is no estimate; None where there is one.
    """

    topology: str
    trial: Trial
    kernels: tuple[Estimate, ...] = ()
    around_bytes: int = 0
    compile_seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def cycles(self) -> float:
        return sum((kernel.cycles for kernel in self.kernels), start=0.0)

    @property
    def chip(self) -> Chip:
        return parse_topology(self.topology).chip

    @property
    def microseconds(self) -> float:
        return self.chip.microseconds(self.cycles)

    @property
    def share_of_floor(self) -> float:
        """Floor over estimate: 1 when the matrix units never wait and compute nothing that is hidden."""
        return self.trial.problem.floor_cycles(self.chip) / self.cycles

    def to_json(self) -> dict[str, Any]:
        """Plain values, and the numbers that follow from them."""
        values = dataclasses.asdict(self)
        if self.error is None:
            values |= {
                "cycles": self.cycles,
                "microseconds": self.microseconds,
                "share_of_floor": self.share_of_floor,
            }
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Measurement":
        names = {entry.name for entry in dataclasses.fields(cls)}
        fields = {name: value for name, value in values.items() if name in names}
        fields["trial"] = Trial.from_json(fields["trial"])
        fields["kernels"] = tuple(
            Estimate(**{**kernel, "grid": tuple(kernel["grid"])}) for kernel in fields.get("kernels", ())
        )
        fields["notes"] = tuple(fields.get("notes", ()))
        return cls(**fields)
