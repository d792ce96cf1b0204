"""What a run has written so far: its curves, its sheets and its settings, read again and again while it trains.

In: the folder of a run, local or a gs:// URL. Out: plain values for the page. Only what was appended since the last
reading is read. A run that resumes may have removed its last lines; its file is then read from the start. Nothing here
writes, and a line that cannot be read is left out and said.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lumina_jax.config import Config
from lumina_jax.documents import parse_json
from lumina_jax.run import CONFIG_FILE
from lumina_jax.training.checkpoint import located
from lumina_jax.training.metrics import METRICS_FILE, RENAMED

SAMPLES_FOLDER = "samples"
SHEETS = "step_*.png"
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
      ValueError: the folder has neither config.json nor metrics.jsonl, or its URL cannot be read.
    """

    def __init__(self, folder: str):
        self.folder = located(folder)
        if not any((self.folder / name).exists() for name in (CONFIG_FILE, METRICS_FILE)):
            raise ValueError(
                f"{folder} is not the folder of a run: it has neither {CONFIG_FILE} nor {METRICS_FILE}; name a run, "
                "such as runs/emoji"
            )
        self.points: list[Point] = []
        self._unread: list[str] = []
        self._offset, self._tail, self._lines = 0, b"", 0

    @property
    def name(self) -> str:
        return self.folder.name

    def read(self) -> None:
        """Read what was appended to metrics.jsonl; the last line only when it is whole."""
        file = self.folder / METRICS_FILE
        if not file.exists():
            return
        start = self._offset - len(self._tail)
        with file.open("rb") as opened:
            opened.seek(start)
            content = opened.read()
            if not content.startswith(self._tail):
                self.points, self._unread = [], []
                self._offset, self._tail, self._lines, start = 0, b"", 0, 0
                opened.seek(0)
                content = opened.read()
        added = content[len(self._tail) :]
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            self._take(line)
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-OVERLAP:]

    @property
    def problems(self) -> list[str]:
        """Which lines could not be read, and why; of many, the first ones and how many more."""
        more = len(self._unread) - MOST_PROBLEMS
        rest = [f"{more} more lines of {METRICS_FILE} cannot be read"] if more > 0 else []
        return self._unread[:MOST_PROBLEMS] + rest

    def curves(self) -> dict[str, dict[str, Any]]:
        """For each metric its steps, the samples seen until then and its values, None where not finite.

        `every` is the number of values in the mean that each point is.
        """
        names = dict.fromkeys(name for point in self.points for name in point.values)
        return {name: _curve([point for point in self.points if name in point.values], name) for name in names}

    def sheets(self) -> list[Sheet]:
        """The sheets of samples by step."""
        names = [file.name for file in (self.folder / SAMPLES_FOLDER).glob(SHEETS)]
        numbered = [(name.removeprefix("step_").removesuffix(".png"), name) for name in names]
        sheets = [Sheet(int(number), name) for number, name in numbered if number.isdecimal()]
        return sorted(sheets, key=lambda sheet: sheet.step)

    def sheet(self, name: str) -> bytes | None:
        """The PNG file of a sheet; None: there is none of this name."""
        if name not in {sheet.name for sheet in self.sheets()}:
            return None
        content: bytes = (self.folder / SAMPLES_FOLDER / name).read_bytes()
        return content

    def settings(self) -> dict[str, str]:
        """The settings of config.json by dotted names, as text."""
        file = self.folder / CONFIG_FILE
        return _flat(parse_json(file.read_bytes(), dict[str, Any], str(file))) if file.exists() else {}

    def steps(self) -> int | None:
        """The steps after which the run ends; None: its configuration cannot be read."""
        file = self.folder / CONFIG_FILE
        try:
            return Config.from_json(file.read_bytes(), str(file)).run.steps
        except (ValueError, OSError):
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
