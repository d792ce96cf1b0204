"""metrics.jsonl in the folder of a run: one JSON object a line, with the step and the metrics reported at it.

In: the metrics of a step. Out: a line, or all lines as dictionaries. `lumina watch` and `lumina scaling` read the file;
training does not. A run that resumes continues its curves: lines of later steps than the one from which it resumes are
removed first, so that no step appears twice.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lumina_jax.config.section import require
from lumina_jax.failures import written_to
from lumina_jax.training.logs import GrowingFile

METRICS_FILE = "metrics.jsonl"
RENAMED = {"images_per_second": "samples_per_second"}
"""Names in the files of older runs, and the names that they have now."""


class Jsonl:
    """The tracker that appends to metrics.jsonl. Once the file is open, no error of the disk stops it (`logs.py`).

    Args:
      folder: the folder of the run.
      resumed_step: the step from which the run continues; lines of later steps are removed.

    Raises:
      ValueError: a line of metrics.jsonl before the last is not JSON.
      OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, resumed_step: int):
        path = folder / METRICS_FILE
        with written_to(folder, "metrics", "run.root"):
            if path.exists():
                _drop_after(path, resumed_step)
        self._lines = GrowingFile(path, "metrics")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write a line, in which a number that is not finite is null."""
        line = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write((json.dumps({"step": step, **line}) + "\n").encode())

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Nothing: pictures lie in the folder of the run as files."""

    def close(self) -> None:
        self._lines.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dictionaries, with the names that metrics have now.

    Raises:
      ValueError: the run has no such file.
    """
    file = Path(folder) / METRICS_FILE
    require(
        file.exists(),
        f"{folder} must have {METRICS_FILE}, which a run writes unless run.jsonl is off, but has none; train it again",
    )
    lines = map(json.loads, file.read_text().splitlines())
    return [{RENAMED.get(name, name): value for name, value in line.items()} for line in lines]


def _drop_after(path: Path, step: int) -> None:
    """Remove lines of later steps and an incomplete last line from the file, atomically. If they are its end, as usual,
    that needs no space on the disk."""
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
