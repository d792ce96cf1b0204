"""The runs and the adapters of a page: which they are, and what each run draws.

In: folders as a user names them, or none. Out: for each run its configuration, its checkpoints and the fields that a
request for its samples has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lumina_jax.config import Config
from lumina_jax.interop.kohya import kohya_file
from lumina_jax.interop.peft import is_peft
from lumina_jax.modalities import Asked, Modality, Shape, modality_of
from lumina_jax.run import CONFIG_FILE, checkpoints_of, is_shipped, read_run, shipped_models
from lumina_jax.trained import strength_of
from lumina_jax.training.checkpoint import Checkpoints, located

RUNS_FOLDER = Path("runs")


@dataclass(frozen=True)
class ShownRun:
    """A run that the page draws with, and which of its modalities is drawn."""

    name: str
    """What the page calls it, which differs from those of its other runs."""
    folder: Path
    config: Config = field(repr=False)
    """Its settings when the page was started."""
    modality_name: str

    @cached_property
    def modality(self) -> Modality:
        """What is drawn."""
        return modality_of(self.config, self.modality_name)

    @property
    def modalities(self) -> list[str]:
        """The names of all that it draws, in the order of the model."""
        return names_of_modalities(self.config)

    def drawing(self, modality: str | None) -> "ShownRun":
        """The run where another of its modalities is drawn; None: the first.

        Raises:
          ValueError: it has no such modality.
        """
        name = modality or self.modalities[0]
        if name not in self.modalities:
            raise ValueError(f"choose one of the modalities {', '.join(self.modalities)} of the run {self.name}")
        return self if name == self.modality_name else replace(self, modality_name=name)

    @property
    def trained_shape(self) -> Shape:
        return self.modality.trained_shape

    def steps(self) -> list[int]:
        """Its checkpoints, the newest first; a model of the package has 0 alone. Raises ValueError: there is none."""
        if is_shipped(self.folder):
            return [0]
        checkpoints = Checkpoints(checkpoints_of(self.folder), read_only=True)
        checkpoints.chosen(None)
        return checkpoints.steps()[::-1]

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields of `Asked` by which the size of its samples can be asked for."""
        height, width, _ = self.trained_shape
        tried: dict[str, Any] = {"height": height, "width": width, "seconds": 1.0}
        if self.frames > 1:
            tried |= {"views" if self.is_of_views else "video_frames": self.frames}
        return frozenset(name for name, value in tried.items() if self._takes(Asked(**{name: value})))

    @property
    def frames(self) -> int:
        """Frames of a clip or views of an object as in training; 1 of what has none."""
        return int(getattr(self.modality.data.media, "frames", 1))

    @property
    def is_sound(self) -> bool:
        return self.modality.time_axis == "width"

    @property
    def is_of_views(self) -> bool:
        return "views" in self.modality.plural

    def views_of(self, width: int, height: int) -> int:
        """The views in a grid of these pixels."""
        size = int(getattr(self.modality.data.media, "image_size", width))
        return (width // size) * (height // size)

    def _takes(self, asked: Asked) -> bool:
        try:
            self.modality.asked_shapes(asked, [""], self.config.text)
        except ValueError:
            return False
        return True


def shown_runs(folders: Sequence[str]) -> list[ShownRun]:
    """The runs of these folders; without any, the one below ./runs that was written to last, or else the models of the
    package.

    Raises:
      ValueError: a folder is no run with a checkpoint.
    """
    chosen = [Path(folder) for folder in folders] or _latest() or [Path(name) for name in shipped_models()]
    names: dict[Path, str] = {}
    for folder in dict.fromkeys(chosen):
        name = folder.resolve().name
        names[folder] = name if name not in names.values() else str(folder)
    runs = [_shown_run(name, folder) for folder, name in names.items()]
    for run in runs:
        _ = run.steps(), [run.drawing(name).modality for name in run.modalities]
    return runs


def shown_adapters(words: Sequence[str]) -> dict[str, float]:
    """The strengths with which adapters begin, by their folders, of FOLDER or FOLDER:STRENGTH.

    Raises:
      ValueError: a folder holds no adapter.
    """
    found = dict(map(strength_of, words))
    for folder in found:
        if not holds_adapter(folder):
            raise ValueError(
                f"--adapter {folder} holds no adapter; name a run that trained one, a folder with adapter_config.json, "
                "or a .safetensors file with kohya's names"
            )
    return found


def holds_adapter(folder: str) -> bool:
    """Whether there is something that may be an adapter; whether it fits a model is known when both are opened."""
    file = Path(folder)
    return is_peft(file) or kohya_file(file) is not None or located(checkpoints_of(folder)).is_dir()


def _shown_run(name: str, folder: Path) -> ShownRun:
    config = read_run(folder)
    return ShownRun(name, folder, config, names_of_modalities(config)[0])


def names_of_modalities(config: Config) -> list[str]:
    """The names of those modalities of the model that a source of its data has, in the order of the model."""
    model = config.model
    indices = {model.modality_index(part.modality) for part in config.data.parts}
    return [model.modalities[index].name for index in sorted(indices)]


def _latest() -> list[Path]:
    """The run below ./runs that was written to last, if there is one."""
    configured = [file for file in RUNS_FOLDER.glob(f"*/{CONFIG_FILE}") if checkpoints_exist(file.parent)]
    latest = max(configured, key=lambda file: (file.stat().st_mtime, str(file)), default=None)
    return [] if latest is None else [latest.parent]


def checkpoints_exist(folder: Path) -> bool:
    """Whether a run has saved something to draw with."""
    try:
        return bool(Checkpoints(checkpoints_of(folder), read_only=True).steps())
    except (ValueError, OSError):
        return False
