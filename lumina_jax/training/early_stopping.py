"""The lowest held-out loss of a run, which decides when it stops early (`run.patience`).

In: the metrics of each measurement. Out: the step at which the loss was lowest, whose checkpoint is kept, and whether
the run has waited long enough for a lower one. The position in the data that a checkpoint holds has these numbers, too,
so that a run which continues stops where it would have stopped.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lumina_jax.training.metrics import HELD_OUT_LOSS

LOWEST = "lowest"
"""The name of these numbers in a checkpoint."""


class Lowest(NamedTuple):
    """The lowest held-out loss so far."""

    loss: float = math.inf
    """The mean over the modalities."""
    step: int = 0
    """0: it was not measured yet."""
    since: int = 0
    """Measurements after that step."""

    def after(self, step: int, metrics: Mapping[str, float]) -> "Lowest":
        """The lowest loss after a measurement; metrics without a held-out loss change nothing."""
        losses = [
            value for name, value in metrics.items() if name == HELD_OUT_LOSS or name.startswith(f"{HELD_OUT_LOSS}/")
        ]
        if not losses:
            return self
        loss = sum(losses) / len(losses)
        return Lowest(loss, step) if loss < self.loss else self._replace(since=self.since + 1)

    def has_run_out(self, patience: int | None) -> bool:
        """Whether a run with this `run.patience` ends."""
        return patience is not None and self.since >= patience

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {LOWEST: self._asdict()} if self.step else {}


def saved_lowest(data: Mapping[str, Any]) -> Lowest:
    """The numbers in the position in the data that a checkpoint holds."""
    return Lowest(**data[LOWEST]) if LOWEST in data else Lowest()
