"""A training step that reports when it compiles, and records a trace of some of its calls.

In: a jitted step and `run.profile`. Out: the same step. `jax.profiler` writes the trace to profile/ in the folder of
the run, where TensorBoard's profiler and https://ui.perfetto.dev can show it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lumina_jax.config import Config
from lumina_jax.parallel.multihost import is_first
from lumina_jax.run import run_folder
from lumina_jax.training.step import Step

PROFILE_FOLDER = "profile"
Note = Callable[[str], None]


@contextlib.contextmanager
def watched(
    step: Step, config: Config, start: int, note: Note, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Step]:
    """The step, with reports and traces within the block.

    Args:
      start: the number of steps before its first call.
      note: shows a line of text.
      clock: gives seconds.
    """
    trace = Trace(run_folder(config) / PROFILE_FOLDER, config.run.profiled, note)
    if 0 < trace.last <= start:
        note(f"no trace is recorded: steps {config.run.profile} are done")
    number = start

    def call(state: Any, batch: Any) -> tuple[Any, Any]:
        nonlocal number
        number += 1
        trace.before(number)
        if number > start + 1:
            done = step(state, batch)
        else:
            note("compiling the training step")
            began = clock()
            done = step(state, batch)
            note(f"compiled in {clock() - began:.0f} s; training")
        trace.after(number, done)
        return done

    try:
        yield call
    finally:
        trace.stop()


class Trace:
    """A trace from the start of one step to the end of another, in process 0. Its errors never stop training.

    Args:
      steps: the first and the last step; (0, 0): no trace.
    """

    def __init__(self, folder: Path, steps: tuple[int, int], note: Note):
        self.first, self.last = steps
        self._folder, self._note = folder, note
        self._is_running = False

    def before(self, number: int) -> None:
        """Start the trace before its first step, or before the step at which a resumed run begins."""
        if self.first <= number <= self.last and not self._is_running and is_first():
            try:
                jax.profiler.start_trace(self._folder)
            except (OSError, RuntimeError, ValueError) as error:
                self._failed(error)
            else:
                self._is_running = True

    def after(self, number: int, done: Any) -> None:
        """Stop after the last step of the trace, when the devices have finished it."""
        if self._is_running and number == self.last:
            jax.block_until_ready(done)
            self.stop()

    def stop(self) -> None:
        """Write the trace, if one was started."""
        if self._is_running:
            self._is_running = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError, ValueError) as error:
                self._failed(error)
            else:
                self._note(f"the trace of steps {self.first} to {self.last} is in {self._folder}")

    def _failed(self, error: Exception) -> None:
        self.last = 0
        self._note(f"no trace can be written into {self._folder} ({error}); training continues without it")
