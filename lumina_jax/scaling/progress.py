"""The progress of a grid in lines: runs done, FLOPs done, and the time left."""

import time
from collections.abc import Callable, Sequence

from lumina_jax.progress import duration
from lumina_jax.scaling.grid import GridCell


class GridProgress:
    """Prints a line when a run ends, and now and then.

    Args:
      cells: those to train.
      clock: gives seconds.
    """

    def __init__(self, cells: Sequence[GridCell], clock: Callable[[], float] = time.monotonic):
        self._cells, self._clock, self._began = cells, clock, clock()
        self._done: list[GridCell] = []
        self._failed = 0

    def ended(self, cell: GridCell, is_over: bool) -> None:
        """Count a run whose process has ended."""
        self._done.append(cell)
        self._failed += not is_over
        print(f"{cell.name} {'is over' if is_over else 'FAILED'}; {self.line({})}", flush=True)

    def shown(self, steps: dict[GridCell, int]) -> None:
        """Print the steps that running cells have done."""
        print(self.line(steps), flush=True)

    def line(self, steps: dict[GridCell, int]) -> str:
        """One line: runs, FLOPs, time left, and the running cells."""
        parts = [(cell, 1.0) for cell in self._done] + [(cell, done / cell.steps) for cell, done in steps.items()]
        total = sum(cell.flops for cell in self._cells)
        flops = sum(share * cell.flops for cell, share in parts)
        hours = sum(share * cell.hours for cell, share in parts)
        planned = sum(cell.hours for cell in self._cells)
        words = [f"{len(self._done)} of {len(self._cells)} runs", f"{flops:.3g} of {total:.3g} FLOPs"]
        if self._failed:
            words.append(f"{self._failed} failed")
        if 0 < hours < planned:
            words.append(f"{duration((self._clock() - self._began) * (planned / hours - 1))} left")
        running = [f"{cell.name} {done}/{cell.steps}" for cell, done in steps.items()]
        return ", ".join(words) + (f" | {', '.join(running)}" if running else "")
