"""Reading recorded runs of the released models, and comparing our results with them.

In: a .safetensors file with arrays `param/<name>`, `in/<case>/<name>` and `out/<case>/<name>` (`<name>.0`,
`<name>.1`, ... for a list) and JSON metadata `meta`: `cls`, `config`, and `calls`, the arguments of each case.
Out: dictionaries of numpy arrays, and a `Comparison` for each case.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

Pair = tuple[str, Any, Any, float, float]
"""The name of an array, our values, the recorded values, and the absolute and the relative tolerance."""


class Golden:
    """A recorded file: `name`, `meta` with `cls`, `config` and `calls`, `parameters` by published name, `raw` arrays.

    Raises:
      ValueError: the file does not have this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).name
        try:
            with safe_open(str(path), "np") as file:
                metadata = file.metadata() or {}
                self.raw: dict[str, np.ndarray] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.meta: dict[str, Any] = json.loads(metadata["meta"])
            self.cls: str = self.meta["cls"]
            self.calls: dict[str, Any] = self.meta["calls"]
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is not a golden file ({type(error).__name__}: {error}); it must be a .safetensors file with "
                "JSON metadata 'meta' that contains 'cls' and 'calls'"
            ) from error
        self.config: dict[str, Any] = self.meta.get("config", {})
        self.parameters = self._under("param/")

    def inputs(self, case: str) -> dict[str, Any]:
        """Return the arrays `in/<case>/...` by name; the arrays of a list argument are a list."""
        return _lists(self._under(f"in/{case}/"))

    def outputs(self, case: str) -> dict[str, Any]:
        """Return the arrays `out/<case>/...` by name; the arrays of a list are a list."""
        return _lists(self._under(f"out/{case}/"))

    def _under(self, prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in self.raw.items() if key.startswith(prefix)}


class Comparison(NamedTuple):
    """The difference between a case and its recording; `note` describes errors and special cases."""

    case: str
    difference: float
    """The difference at the number that is closest to its tolerance, or exceeds it most."""
    tolerance: float
    """The tolerance of that number."""
    passed: bool
    note: str = ""


def compare(case: str, pairs: Iterable[Pair]) -> Comparison:
    """Compare pairs of arrays, which pass if |ours - theirs| <= atol + rtol |theirs| everywhere."""
    worst, difference, tolerance, note = -1.0, math.inf, 0.0, "the case has no outputs to compare"
    for name, ours, theirs, atol, rtol in pairs:
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if ours.shape != theirs.shape:
            return Comparison(case, math.inf, atol, False, f"{name}: shape {ours.shape}, expected {theirs.shape}")
        if ours.size == 0 or not np.isfinite(ours - theirs).all():
            return Comparison(case, math.inf, atol, False, f"{name}: not finite" if ours.size else f"{name}: empty")
        error, allowed = np.abs(ours - theirs), np.maximum(atol + rtol * np.abs(theirs), 1e-30)
        index = np.argmax(error / allowed)
        used = float(error.flat[index] / allowed.flat[index])
        if used > worst:
            worst, difference, tolerance = used, float(error.flat[index]), float(allowed.flat[index])
            note = f"{name}: {worst:.3g} times its tolerance"
    passed = 0 <= worst <= 1
    return Comparison(case, difference, tolerance, passed, "" if passed else note)


def attempt(case: str, run: Callable[[], Comparison]) -> Comparison:
    """Return the comparison, or a failed one if the case raises."""
    try:
        return run()
    except Exception as error:  # the other cases must still run
        return Comparison(case, math.inf, 0.0, False, f"{type(error).__name__}: {error}")


def _lists(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Collect x.0, x.1, ... in a list under x."""
    found: dict[str, Any] = {name: value for name, value in arrays.items() if not re.search(r"\.\d+$", name)}
    members: Iterator[str] = (name for name in arrays if name not in found)
    for name in sorted(members, key=lambda name: int(name.rsplit(".", 1)[1])):
        found.setdefault(name.rsplit(".", 1)[0], []).append(arrays[name])
    return found
