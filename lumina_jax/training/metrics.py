"""What a run says about itself: curves on disk, progress on the terminal.

In: numbers of a step. Out: `metrics.jsonl` (one JSON object a line, readable with any tool), TensorBoard files beside
it, and a progress bar, or plain lines where the output is not a terminal. A run that resumes continues its curves: what
was written after the step it resumes from is dropped first, so no step appears twice.
"""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import UInt8

from lumina_jax.failures import written_to
from lumina_jax.training.logs import GrowingFile, record

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_PER_SECOND = "samples_per_second"
RENAMED = {"images_per_second": SAMPLES_PER_SECOND}
"""Names in the files of older runs, and what they are called now."""
LABELS = {"loss": "loss", "gradient_norm": "gradient"}
"""The metrics that the terminal shows beside the speed, and what it calls them."""
OF_MODALITY = "loss/"
"""What the name of a modality's loss begins with."""
SMOOTHING = 0.7
"""Weight of the past in the smoothed speed."""
ESTIMATE_AFTER, LONG = 5.0, 60.0
"""Seconds of training after which the length of a run is estimated, and the least that are worth it."""


class MetricWriter:
    """Appends the metrics of a run to `folder`. Once it is opened, nothing that a disk does stops it (`logs.py`).

    Args:
      folder: of the run; created if missing.
      resumed_step: the step that the run continues from; later lines of an earlier attempt are dropped.

    Raises:
      ValueError: a line of metrics.jsonl before the last is not JSON.
      OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, resumed_step: int = 0):
        from tensorboardX.proto.event_pb2 import SessionLog  # slow to import, and only training needs it

        folder = Path(folder)
        path = folder / METRICS_FILE
        with written_to(folder, "metrics", "run.root"):
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _drop_after(path, resumed_step)
        self._lines = GrowingFile(path, "metrics")
        attempt = f"{os.getpid()}.{resumed_step}"  # else a restart within the second would go on in the same file
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{attempt}"
        self._events = GrowingFile(folder / TENSORBOARD_FOLDER / name, "curves for TensorBoard")
        self._event(file_version="brain.Event:2")
        self._event(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))  # hides what came after

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """One line, and one TensorBoard scalar for each metric; a number that is not finite becomes null."""
        from tensorboardX import summary

        numbers = {name: float(value) for name, value in metrics.items()}
        line = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write((json.dumps({"step": step, **line}) + "\n").encode())
        for name, value in numbers.items():
            self._event(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard."""
        from tensorboardX import summary

        self._event(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def _event(self, step: int = 0, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write(record(Event(wall_time=time.time(), step=step, **content).SerializeToString()))


class Speed:
    """Samples a second, smoothed over measurements. The first count starts the clock: the first step compiles.

    Args:
      clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since: float | None = None
        self._samples = 0.0
        self._smoothed: float | None = None

    def count(self, samples: SupportsFloat) -> None:
        """So many more samples are done."""
        if self._since is None:
            self._since = self._clock()
        else:
            self._samples += float(samples)

    def restart(self) -> None:
        """Leave out what happened since the last measurement, such as the drawing of a sheet."""
        self._since, self._samples = self._clock(), 0.0

    def measure(self) -> float | None:
        """The smoothed speed up to now; None until a step after the first has been counted."""
        now = self._clock()
        if self._since is not None and self._samples and now > self._since:
            speed = self._samples / (now - self._since)
            self._smoothed = speed if self._smoothed is None else SMOOTHING * self._smoothed + (1 - SMOOTHING) * speed
            self._since, self._samples = now, 0.0
        return self._smoothed


class Progress:
    """A progress bar with the last metrics and the time left; where there is no terminal, a line for each report.

    After the first seconds of a long run a line says how long it will take. The last line of a bar stays as it is.

        with Progress(run.steps, start, run.name) as progress:
            progress.advance(number)            # after each step
            progress.advance(number, metrics)   # now and then

    Args:
      total: steps of the whole run.
      start: steps done before.
      description: stands before the bar.
      samples: what samples are called beside the speed.
      is_shown: False: say nothing, as all but one process of a job do.
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
        """`step` steps are done; metrics, when given, are shown with the time left."""
        if self._first is None:
            self._first = step, self._clock()
        self._estimate(step)
        shown = {} if metrics is None else {"shown": "  ".join(self._texts(step, metrics))}
        if self._bar is not None:
            self._bar.update(self._task, completed=step, **shown)
        elif metrics is not None and self._is_shown:
            print(f"{self._description} {step}/{self._total}  {shown['shown']}", flush=True)

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._is_shown:
            print(text, flush=True)

    def _texts(self, step: int, metrics: Mapping[str, SupportsFloat]) -> list[str]:
        texts = [f"{LABELS[name]} {float(value):.4g}" for name, value in metrics.items() if name in LABELS]
        texts += [
            f"{name.removeprefix(OF_MODALITY)} {float(value):.4g}"
            for name, value in metrics.items()
            if name.startswith(OF_MODALITY)
        ]
        if SAMPLES_PER_SECOND in metrics:
            texts.append(f"{float(metrics[SAMPLES_PER_SECOND]):.4g} {self._samples}/s")
        if step >= self._total:
            texts.append(f"in {_duration(self._clock() - self._begin)}")
        elif (seconds := self._seconds_per_step(step)) is not None:
            texts.append(f"{_duration(seconds * (self._total - step))} left")
        return texts

    def _seconds_per_step(self, step: int) -> float | None:
        first_step, first_time = self._first or (step, 0.0)
        return (self._clock() - first_time) / (step - first_step) if step > first_step else None

    def _estimate(self, step: int) -> None:
        """Say, once, how long the run will take: the first step, which compiles, is not counted."""
        time_per_step = None if self._is_estimated else self._seconds_per_step(step)
        if time_per_step is None or self._first is None or self._clock() - self._first[1] < ESTIMATE_AFTER:
            return
        self._is_estimated = True
        left = time_per_step * (self._total - step)
        if left >= LONG:
            self.note(f"{time_per_step:.2g} s a step: about {_duration(left)} to step {self._total}")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one dictionary a report, under the names that metrics have now."""
    lines = map(json.loads, (Path(folder) / METRICS_FILE).read_text().splitlines())
    return [{RENAMED.get(name, name): value for name, value in line.items()} for line in lines]


def _drop_after(path: Path, step: int) -> None:
    """Take lines of later steps and a torn last line from the file, at once or not at all; where they are its end, as
    usual, no space on the disk is needed."""
    text = path.read_text()
    lines = text.splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            line_step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):  # the process was killed while it wrote
                continue
            raise ValueError(
                f"each line of {path} must be a JSON object with a step, but line {number} is {line[:80]!r}; "
                "correct or delete that line"
            ) from error
        if line_step <= step:
            kept.append(line + "\n")
    if text.startswith("".join(kept)):
        os.truncate(path, len("".join(kept).encode()))
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


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


def _duration(seconds: float) -> str:
    """59 s, 12:34 or 1:23:45."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
