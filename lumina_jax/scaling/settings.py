"""The settings of a fit, as flags of commands and as plain values."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


def budgets(text: str) -> tuple[float, ...]:
    """FLOPs from text such as 1e21,1e22."""
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < one < float("inf") for one in found):
        raise ValueError(f"budgets must be positive numbers of FLOPs with commas, such as 1e21,1e22, but are {text!r}")
    return found


LIST = tyro.constructors.PrimitiveConstructorSpec[tuple[float, ...]](
    nargs=1,
    metavar="FLOPS,FLOPS",
    instance_from_str=lambda words: budgets(words[0]),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(f"{one:g}" for one in value) or "none"],
)
"""A flag with budgets of compute."""


@dataclass(frozen=True)
class FitSettings:
    predict: Annotated[tuple[float, ...], LIST] = ()
    """Budgets of compute (FLOPs) to predict, such as 1e21,1e22."""
    hold_out: Literal["none", "largest"] = "none"
    """largest: fit without the runs of the largest budget, then predict them."""
    noise: Literal["auto", "relative", "absolute"] = "auto"
    """relative: noise is a share of the loss; absolute: it is the same for all runs; auto: the likelier."""
    huber: float | None = None
    """Residuals of log losses beyond this count linearly, against outliers; Hoffmann et al. (2203.15556) use 1e-3."""
    bootstrap: int = 1000
    """Bootstrap draws."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        if self.bootstrap < 100:
            raise ValueError(
                f"bootstrap={self.bootstrap} must be at least 100, so that 90 % of its draws mean something"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        if self.huber is not None and not 0 < self.huber < float("inf"):
            raise ValueError(f"huber={self.huber} must be a positive number, such as 0.001")
