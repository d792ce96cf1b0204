"""The folder of a run, root/name: config.json, checkpoints/, metrics.jsonl, TensorBoard files and samples/.

In: a configuration, or a folder, or the name of a model that the package carries. Out: where the files are, and what
config.json says. A model of the package has model.safetensors instead of checkpoints, and README.md, the model card.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina_jax.config import Config, ModelConfig
from lumina_jax.documents import read_json

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
SHIPPED = Path(__file__).parent / "shipped"
"""A folder for each model of the package."""


def run_folder(config: Config) -> Path:
    return Path(config.run.root) / config.run.name


def shipped_models() -> list[str]:
    """The names of the models in the package."""
    return sorted(file.parent.name for file in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def found_model(named: str | Path) -> Path:
    """The folder itself, or that of the model in the package if it has this name and the folder holds no model."""
    is_shipped = f"{named}" in shipped_models() and not (Path(named) / CONFIG_FILE).is_file()
    return SHIPPED / named if is_shipped else Path(named)


def is_shipped(named: str | Path) -> bool:
    """Whether this names a model of the package."""
    return found_model(named).is_relative_to(SHIPPED)


def samples_folder(named: str | Path, step: int | None = None) -> Path:
    """Where what a model draws goes: samples/STEP in the folder of a run; samples/NAME here for a model of the
    package. Without a step, what is above all steps."""
    folder = found_model(named)
    if is_shipped(named):
        return Path("samples") / folder.name
    return folder / "samples" / ("" if step is None else f"{step}")


def checkpoints_of(folder: str | Path) -> str:
    """Where the run in a folder has its checkpoints: what its configuration says, or in that folder."""
    folder = found_model(folder)
    file = folder / CONFIG_FILE
    settings = read_json(file, _WithRun).run if file.is_file() else _RunSection()
    return settings.checkpoints or str(folder / CHECKPOINTS)


@dataclass(frozen=True)
class _RunSection:
    checkpoints: str = ""


@dataclass(frozen=True)
class _WithRun:
    """The section "run" of config.json, which that of a converted folder lacks."""

    run: _RunSection = _RunSection()


def read_run(folder: str | Path) -> Config:
    """The configuration of a run that was trained in `folder`.

    Raises:
      ValueError: the folder holds no run, or its configuration is damaged; the message names the file and the key.
    """
    file = found_model(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} is not the folder of a run: it has no {CONFIG_FILE}; train one with `lumina train`, or name one "
            f"of the models in the package: {', '.join(shipped_models())}"
        )
    if "run" not in read_json(file, dict[str, Any]):
        raise ValueError(f"{folder} holds converted weights, no run; name its configuration with --config FILE")
    return Config.from_json(file.read_bytes(), str(file))


def read_model(folder: str | Path) -> ModelConfig:
    """The section "model" of the folder's config.json, which a converted folder and a run have alike.

    Raises:
      ValueError: there is no such file, or it is not a configuration.
    """
    file = found_model(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(_without_model(Path(folder)))
    try:
        return read_json(file, _WithModel).model
    except ValueError as error:
        if "model" not in read_json(file, dict[str, Any]):
            raise ValueError(_without_model(Path(folder))) from error
        raise ValueError(f"{file} is no configuration of a model ({error}); convert the weights again") from error


@dataclass(frozen=True)
class _WithModel:
    """What a converted folder and a run say alike; the rest is ignored."""

    model: ModelConfig


def _without_model(folder: Path) -> str:
    """What is wrong with a folder that should hold a model of ours."""
    wanted = "the folder of a run, such as runs/emoji, or one that `lumina convert` wrote"
    if not folder.is_dir():
        return f"{folder} {'is a file' if folder.exists() else 'does not exist'}; name {wanted} with --to jax"
    for layout, signs in (("lumina", "consolidated*"), ("diffusers", "model_index.json"), ("diffusers", "transformer")):
        if any(folder.glob(signs)):
            command = f"lumina convert {folder} NEW --from {layout} --to jax"
            return f"{folder} holds weights of the {layout} layout; convert them first: {command}"
    return f"{folder} has no {CONFIG_FILE} of a model of ours; name {wanted} with --to jax"


def write_config(config: Config) -> None:
    """Save config.json in the run's folder, at once or not at all."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(config.to_json())
    os.replace(temporary, folder / CONFIG_FILE)
