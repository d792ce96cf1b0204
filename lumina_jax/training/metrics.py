"""Metrics of a run: what its trackers get, and progress on the terminal.

In: the metrics of a step. Out: what the trackers record and show (`trackers.py`), and a progress bar, or plain lines if
the output is not a terminal.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import UInt8

from lumina_jax.progress import duration
from lumina_jax.training.trackers import Tracker

SAMPLES_PER_SECOND = "samples_per_second"
HELD_OUT_LOSS, TRAINED_ON_LOSS = "held_out_loss", "trained_on_loss"
"""The loss at fixed times and noise, of samples held out, or of samples trained on where none is held out."""
LABELS = {"loss": "loss", "gradient_norm": "gradient", HELD_OUT_LOSS: "held out", TRAINED_ON_LOSS: "trained on"}
"""The metrics shown on the terminal, and their labels there."""
MODALITY_LABELS = {"loss/": "", f"{HELD_OUT_LOSS}/": "held out ", f"{TRAINED_ON_LOSS}/": "trained on "}
"""The prefix of the name of a modality's metric, and what is shown before the modality."""
SMOOTHING = 0.7
"""Weight of the past in the smoothed speed."""
ESTIMATE_AFTER, LONG = 5.0, 60.0
"""Seconds of training after which the time left is estimated, and the least time left that is printed."""


class MetricWriter:
    """Tells the trackers of a run what it measures and draws."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        for tracker in self._trackers:
            tracker.image(step, name, pixels)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class Speed:
    """Samples per second, smoothed over measurements. The clock starts after the first step, which compiles.

    Args:
      clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since: float | None = None
        self._samples = 0.0
        self._smoothed: float | None = None

    def count(self, samples: SupportsFloat) -> None:
        """Count the samples of a step."""
        if self._since is None:
            self._since = self._clock()
        else:
            self._samples += float(samples)

    def restart(self) -> None:
        """Exclude the time since the last measurement, such as that for drawing a sheet."""
        self._since, self._samples = self._clock(), 0.0

    def measure(self) -> float | None:
        """The smoothed speed; None until a step after the first has been counted."""
        now = self._clock()
        if self._since is not None and self._samples and now > self._since:
            speed = self._samples / (now - self._since)
            self._smoothed = speed if self._smoothed is None else SMOOTHING * self._smoothed + (1 - SMOOTHING) * speed
            self._since, self._samples = now, 0.0
        return self._smoothed


class Progress:
    """A progress bar with the last metrics and the time left; if there is no terminal, a line for each report.

    After the first seconds of a long run a line gives the time that it will take.

        with Progress(run.steps, start, run.name) as progress:
            progress.advance(number)            # after each step
            progress.advance(number, metrics)   # every run.log_every steps

    Args:
      total: the number of steps of the whole run.
      start: the number of steps done before.
      description: the text before the bar.
      samples: the word for samples in the speed.
      is_shown: False: print nothing, as in all processes of a job but one.
      clock: gives seconds.
    """

    def __init__(
        self,
        total: int,
        start: int,
        description: str,
        *,
        samples: str = "samples",
        is_shown: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        from rich.console import Console

        self._total, self._description, self._clock = total, description, clock
        self._samples = samples
        self._console = Console(quiet=not is_shown)
        self._is_shown = is_shown
        self._bar = _bar(self._console) if is_shown and self._console.is_terminal else None
        self._task = self._bar and self._bar.add_task(description, total=total, completed=start, shown="")
        self._begin = clock()
        self._first: tuple[int, float] | None = None
        self._is_estimated = False

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Show that `step` steps are done, with metrics, if given, and the time left."""
        if self._first is None:
            self._first = step, self._clock()
        self._estimate(step)
        shown = {} if metrics is None else {"shown": "  ".join(self._texts(step, metrics))}
        if self._bar is not None:
            self._bar.update(self._task, completed=step, **shown)
        elif metrics is not None and self._is_shown:
            print(f"{self._description} {step}/{self._total}  {shown['shown']}", flush=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._is_shown:
            print(text, flush=True)

    def _texts(self, step: int, metrics: Mapping[str, SupportsFloat]) -> list[str]:
        texts = [f"{LABELS[name]} {float(value):.4g}" for name, value in metrics.items() if name in LABELS]
        texts += [
            f"{label}{name.removeprefix(prefix)} {float(value):.4g}"
            for prefix, label in MODALITY_LABELS.items()
            for name, value in metrics.items()
            if name.startswith(prefix)
        ]
        if SAMPLES_PER_SECOND in metrics:
            texts.append(f"{float(metrics[SAMPLES_PER_SECOND]):.4g} {self._samples}/s")
        if step >= self._total:
            texts.append(f"in {duration(self._clock() - self._begin)}")
        elif (seconds := self._seconds_per_step(step)) is not None:
            texts.append(f"{duration(seconds * (self._total - step))} left")
        return texts

    def _seconds_per_step(self, step: int) -> float | None:
        first_step, first_time = self._first or (step, 0.0)
        return (self._clock() - first_time) / (step - first_step) if step > first_step else None

    def _estimate(self, step: int) -> None:
        """Print once the time that the run will take, without the first step, which compiles."""
        time_per_step = None if self._is_estimated else self._seconds_per_step(step)
        if time_per_step is None or self._first is None or self._clock() - self._first[1] < ESTIMATE_AFTER:
            return
        self._is_estimated = True
        left = time_per_step * (self._total - step)
        if left >= LONG:
            self.note(f"{time_per_step:.2g} s a step: about {duration(left)} to step {self._total}")


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        console=console,
        expand=True,
    )
