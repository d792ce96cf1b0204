"""What a run has written so far: its curves, its sheets and its settings, read again and again while it trains.

In: the folder of a run, local or a gs:// URL. Out: plain values for the page. Only what was appended since the last
reading is read. A run that resumes may have removed its last lines; its file is then read from the start. Nothing here
writes, and a line that cannot be read is left out and said.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lumina_jax.config import Config, RunConfig
from lumina_jax.documents import parse_json
from lumina_jax.run import CONFIG_FILE
from lumina_jax.training.jsonl import METRICS_FILE, RENAMED
from lumina_jax.watching.files import RunFiles

SAMPLES_FOLDER = "samples"
SHEET = re.compile(r"step_(\d+)\.png", re.ASCII)
MOST_POINTS = 4000
"""Points of a curve on the page; of a longer one, each point is the mean of several."""
MOST_PROBLEMS = 3
"""Lines that cannot be read of which the page says why."""
MOST_STEPS = 2**53
"""The largest whole number that the page reads without rounding."""
OVERLAP = 256
"""Bytes before the end of the last reading that must be the same at the next one."""


class Point(NamedTuple):
    """A line of metrics.jsonl."""

    step: int
    seen: float
    """Samples seen until this step."""
    values: dict[str, float | None]


@dataclass(frozen=True)
class Sheet:
    """A picture of samples that was drawn during training."""

    step: int
    name: str


class WatchedRun:
    """The folder of a run that is read while it trains.

    Raises:
      ValueError: the folder has neither config.json nor metrics.jsonl, or nothing reads such URLs.
      OSError: a bucket does not answer, or not without other credentials.
    """

    def __init__(self, folder: str):
        self._files = RunFiles(folder)
        if not any(self._files.has(name) for name in (CONFIG_FILE, METRICS_FILE)):
            raise ValueError(
                f"{folder} is not the folder of a run: it has neither {CONFIG_FILE} nor {METRICS_FILE}; name a run, "
                "such as runs/emoji"
            )
        self.points: list[Point] = []
        self._unread: list[str] = []
        self._offset, self._tail, self._lines = 0, b"", 0
        self._config: bytes | None = None
        self.sheets: list[Sheet] = []

    @property
    def folder(self) -> str:
        return self._files.folder

    @property
    def name(self) -> str:
        return self.folder.rpartition("/")[2]

    def read_metrics(self) -> None:
        """Read what was appended to metrics.jsonl; the last line only when it is whole."""
        content = self._files.end(METRICS_FILE, self._offset - len(self._tail))
        if content is not None and not content.startswith(self._tail):
            self.points, self._unread = [], []
            self._offset, self._tail, self._lines = 0, b"", 0
            content = self._files.end(METRICS_FILE, 0)
        if content is None:
            return
        added = content[len(self._tail) :]
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            self._take(line)
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-OVERLAP:]

    @property
    def problems(self) -> list[str]:
        """Why there are no curves; which lines could not be read, and why; of many, the first and how many more."""
        run = self._run()
        off = [f"run.jsonl is off: this run writes no {METRICS_FILE}, from which the curves are read"]
        more = len(self._unread) - MOST_PROBLEMS
        rest = [f"{more} more lines of {METRICS_FILE} cannot be read"] if more > 0 else []
        return (off if run is not None and not run.jsonl else []) + self._unread[:MOST_PROBLEMS] + rest

    def curves(self) -> dict[str, dict[str, Any]]:
        """For each metric its steps, the samples seen until then and its values, None where not finite.

        `every` is the number of values in the mean that each point is.
        """
        names = dict.fromkeys(name for point in self.points for name in point.values)
        return {name: _curve([point for point in self.points if name in point.values], name) for name in names}

    def read_sheets(self) -> None:
        """Find the sheets of samples, by step."""
        found = map(SHEET.fullmatch, self._files.names(SAMPLES_FOLDER))
        sheets = [Sheet(int(match[1]), match[0]) for match in found if match]
        self.sheets = sorted(sheets, key=lambda sheet: sheet.step)

    def sheet(self, name: str) -> bytes | None:
        """The PNG file of a sheet; None: there is none of this name."""
        if name not in {sheet.name for sheet in self.sheets}:
            self.read_sheets()
        if name not in {sheet.name for sheet in self.sheets}:
            return None
        return self._files.content(f"{SAMPLES_FOLDER}/{name}")

    def read_config(self) -> None:
        """Read config.json, if it is there."""
        self._config = self._files.content(CONFIG_FILE)

    def settings(self) -> dict[str, str]:
        """The settings of config.json by dotted names, as text. Raises ValueError: it is damaged."""
        if self._config is None:
            return {}
        return _flat(parse_json(self._config, dict[str, Any], f"{self.folder}/{CONFIG_FILE}"))

    def steps(self) -> int | None:
        """The steps after which the run ends; None: its configuration cannot be read."""
        run = self._run()
        return None if run is None else run.steps

    def _run(self) -> RunConfig | None:
        try:
            return Config.from_json(self._config or b"").run
        except ValueError:
            return None

    def _take(self, line: bytes) -> None:
        origin = f"line {self._lines} of {METRICS_FILE}"
        try:
            found = parse_json(line, dict[str, float | None], origin)
            step = _step_of(found.pop("step", None), origin)
        except ValueError as error:
            self._unread.append(str(error))
            return
        values = {RENAMED.get(name, name): _finite(value) for name, value in found.items()}
        last = self.points[-1] if self.points else Point(0, 0.0, {})
        seen = last.seen + max(values.get("samples") or 0.0, 0.0) * max(step - last.step, 0)
        self.points.append(Point(step, seen if math.isfinite(seen) else last.seen, values))


def _step_of(value: float | None, origin: str) -> int:
    """The step of a line. Raises ValueError: it is none."""
    if value is None:
        raise ValueError(f"{origin} has no step")
    if not 0 <= value <= MOST_STEPS or value != int(value):
        raise ValueError(f"{origin} has the step {value:g}, which must be a whole number and at least 0")
    return int(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _curve(points: list[Point], name: str) -> dict[str, Any]:
    every = math.ceil(len(points) / MOST_POINTS)
    values = [point.values[name] for point in points]
    return {
        "steps": [point.step for point in points[every - 1 :: every]],
        "seen": [point.seen for point in points[every - 1 :: every]],
        "values": [None if math.isnan(value) else value for value in _means(values, every).tolist()],
        "every": every,
    }


def _means(values: list[float | None], every: int) -> Float[np.ndarray, " points"]:
    """Means of `every` values; one that is not finite makes its mean NaN, and the rest at the end is left out."""
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    return numbers[: len(numbers) // every * every].reshape(-1, every).mean(1)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
