"""A grid of runs, and its file: sizes x budgets x seeds x recipes.

In: a file that `lumina scaling plan` wrote. Out: a `ScalingGrid`, whose cells are runs, and the configuration of each
run. All decisions are in the file as numbers, so that a grid is the same whoever trains it.

    {"version": 1, "source": "emoji", "machine": {...}, "rules": {...}, "recipes": {"flag": {a configuration}},
     "cells": [{"name": "flag-4x128-1e13-s0", "recipe": "flag", "size": {"layers": 4, "width": 128, "heads": 4},
                "budget": 1e13, "seed": 0, "steps": 451, "batch": 32, "rate": 0.0015, "warmup": 45,
                "parameters": 1743040, "samples": 14432, "flops": 9.98e12, "hours": 0.1, "memory": 2e8}]}
"""

import collections
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from lumina_jax.config import Config, MeshConfig
from lumina_jax.config.migration import migrated
from lumina_jax.config.section import require
from lumina_jax.documents import parse_json
from lumina_jax.scaling.sizes import ModelSize, with_size

VERSION = 1
RUNS_FOLDER, RUNS_FILE = "runs", "RUNS.jsonl"
REPORTS, CHECKPOINTS_OF_A_RUN = 50, 20
"""How often a run reports its loss, and how often it saves a checkpoint, at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices on which the runs of a grid are to be trained, and their speed."""

    name: str
    flops: float
    """Multiplications and additions a second of all devices of a run together."""
    utilisation: float
    """The share of it that training is assumed to reach, where no step was measured or estimated."""
    memory: float | None = None
    """Bytes of a device; None: not known."""
    source: str = ""
    """Where the numbers are from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridCell:
    """One run of a grid."""

    name: str
    """The folder of the run."""
    recipe: str
    size: ModelSize
    budget: float
    """Floating point operations that the run may take."""
    seed: int
    steps: int
    batch: int
    """Samples of a step."""
    rate: float
    """The greatest learning rate."""
    warmup: int
    """Steps over which the learning rate grows."""
    parameters: int
    """Values of the model that are trained."""
    samples: int
    """Samples that the run sees, repetitions included."""
    flops: float
    """Floating point operations of the whole run (`aot/flops.py`)."""
    hours: float
    """The time that it is expected to take on the machine of the grid."""
    memory: float
    """Bytes of a device that it is expected to need."""
    mesh: MeshConfig | None = None
    """None: that of the configuration."""
    remat: str | None = None
    """None: that of the configuration."""
    accumulate: int | None = None
    """Micro-batches of a step; None: those of the configuration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingGrid:
    """Runs, and what they have in common."""

    version: int = VERSION
    source: str
    """The configuration that was named."""
    machine: Machine
    rules: dict[str, Any]
    """The rules by which the cells were made, to be read by people."""
    curve: int
    """How often the held-out loss is measured within a run."""
    cores: int | None = None
    """Cores of each run on CPUs, whose number decides how sums are rounded; None: what the machine has for it."""
    recipes: dict[str, Config]
    cells: tuple[GridCell, ...]

    def __post_init__(self) -> None:
        require(
            self.version == VERSION, f"the grid has the version {self.version}, but this is {VERSION}; plan it again"
        )
        counts = collections.Counter(cell.name for cell in self.cells)
        twice = [name for name, count in counts.items() if count > 1]
        require(not twice, f"each run of a grid needs its own name, but {', '.join(twice)} comes twice")
        unknown = sorted({cell.recipe for cell in self.cells} - self.recipes.keys())
        require(not unknown, f"the recipes of the cells must be among {list(self.recipes)}, but there is {unknown}")

    def config(self, cell: GridCell, folder: Path) -> Config:
        """The configuration of a run whose grid lies in `folder`."""
        config = with_size(self.recipes[cell.recipe], cell.size)
        if cell.mesh is not None:
            config = config.replace(mesh=dataclasses.asdict(cell.mesh))
        if cell.remat is not None:
            config = config.replace(model={"remat": cell.remat})
        accumulate = cell.accumulate or config.optimizer.accumulate
        run: dict[str, Any] = {
            "name": cell.name, "root": str(folder / RUNS_FOLDER), "steps": cell.steps, "seed": cell.seed,
            "log_every": -(-cell.steps // REPORTS), "checkpoint_every": -(-cell.steps // CHECKPOINTS_OF_A_RUN),
            "keep_checkpoints": 1, "keep_every": None, "checkpoints": "", "sample_every": None, "profile": "",
            "jsonl": True,  # from which the results are read
            "evaluate_every": -(-cell.steps // max(1, self.curve)),
        }  # fmt: skip
        return config.replace(
            data={"batch_rows": cell.batch},
            optimizer={"learning_rate": cell.rate, "warmup_steps": cell.warmup, "accumulate": accumulate},
            run=run,
        )

    def to_json(self) -> str:
        """The text of the file, with one line for each cell."""
        whole = dataclasses.asdict(self)
        cells = whole.pop("cells")
        head = json.dumps(whole, indent=1)[:-2]
        return f'{head},\n "cells": [\n  ' + ",\n  ".join(map(json.dumps, cells)) + "\n ]\n}\n"


def read_grid(file: Path) -> ScalingGrid:
    """The grid in a file.

    Raises:
      ValueError: there is no such file, or it is no grid; the message names the file and the key.
    """
    if not file.is_file():
        raise ValueError(f"there is no grid {file}; write one with `lumina scaling plan CONFIG --out {file}`")
    try:
        return parse_json(file.read_bytes(), ScalingGrid, str(file), _migrated)
    except ValueError as error:
        raise ValueError(f"{error}; write the grid again with `lumina scaling plan`") from None


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def _migrated(content: Any) -> Any:
    """The content with the configurations of recipes as they are written now."""
    if isinstance(content, dict) and isinstance(content.get("recipes"), dict):
        return content | {"recipes": {name: migrated(config) for name, config in content["recipes"].items()}}
    return content
