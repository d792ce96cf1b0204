"""How well a run of a grid draws: a file in its folder, and columns of its line.

In: what `lumina evaluate --json` found. Out: `pictures.json` of the run, with the flags under which it was drawn, and
the columns `drawn`, `frechet` and `kernel` for `lumina scaling compare --metric`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from lumina_jax.config.section import require
from lumina_jax.documents import read_json
from lumina_jax.scaling.grid import write_whole

PICTURES_FILE = "pictures.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """What is drawn, so that runs can be compared."""

    split: str | None
    """The part of the data whose captions are drawn; None: all."""
    limit: int
    """Captions that are drawn, at most."""
    seed: int
    """Seed of the noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPictures:
    """How near the pictures that a run draws are to the true ones of the same captions."""

    settings: DrawingSettings
    drawn: int
    """Pictures that were drawn."""
    frechet: float
    """The Frechet distance by features of EfficientNet-lite0."""
    kernel: float
    """The kernel distance by these features."""

    def columns(self) -> dict[str, Any]:
        """The columns of the line of the run."""
        return {"drawn": self.drawn, "frechet": self.frechet, "kernel": self.kernel}


def read_pictures(run_folder: Path) -> RunPictures | None:
    """What is known of the pictures of a run; None: it has drawn none."""
    file = run_folder / PICTURES_FILE
    found: RunPictures | None = read_json(file, RunPictures) if file.is_file() else None
    return found


def note_pictures(run_folder: Path, settings: DrawingSettings, evaluation: Path) -> None:
    """Note in the folder of a run what `lumina evaluate --json` has written into the file `evaluation`.

    Raises:
      ValueError: the pictures were not compared as sets.
    """
    samples = json.loads(evaluation.read_text())["samples"]
    require(
        {"frechet", "kernel"} <= samples.keys(),
        f"a run needs the distances of its pictures from the true ones, but {evaluation} has none, because there are "
        f"too few pictures ({samples['drawn']}) or no network; raise --limit, and pip install 'lumina_jax[eval]'",
    )
    found = RunPictures(settings=settings, drawn=samples["drawn"], frechet=samples["frechet"], kernel=samples["kernel"])
    write_whole(run_folder / PICTURES_FILE, json.dumps(dataclasses.asdict(found), indent=1) + "\n")
