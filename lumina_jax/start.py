"""The model of a run that starts from trained weights: theirs, whatever the configuration file describes.

In: a configuration with run.init_from, and the words of the command line. Out: the configuration with the model of that
folder, and with what its outputs mean (`MEANING`). How a model is computed (`EXECUTION_FIELDS`) stays as it is
configured; a flag that asks for another model is an error that names it. A flag that gives the outputs another meaning
is followed, as the weights can learn it.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from lumina_jax.config import Config, ModelConfig
from lumina_jax.config.model import EXECUTION_FIELDS
from lumina_jax.run import CHECKPOINTS, CONFIG_FILE, found_model, read_model, read_run, run_folder

LEARNED_WITH = (("text", "encoder"), ("vae", "path"), ("flow", "path"), ("flow", "prediction"))
MEANING = ("path", "prediction", "loss_weight")
"""Settings of the flow which say what the outputs of a network are, and which of their errors count."""
FLAG = re.compile(r"--model\.(no[-_])?([\w-]+)")


def with_started_model(config: Config, words: Sequence[str]) -> Config:
    """The configuration with the model that `run.init_from` names; a run that resumes keeps the one it has.

    Args:
      words: of the command line; those of `--model` must agree with the model of the folder.

    Raises:
      ValueError: the folder holds no model, or flags ask for another one.
    """
    folder = model_folder(config)
    if folder is None:
        return config
    model = read_model(folder)
    given = {match[2].replace("-", "_") for word in words if (match := FLAG.match(word))}
    differing = [
        f"--model.{name.replace('_', '-')} {getattr(config.model, name)!r} but the folder has {getattr(model, name)!r}"
        for name in sorted(_differing(config.model, model) & given)
    ]
    if differing:
        raise ValueError(
            f"the model of run.init_from={str(folder)!r} is what the run trains, so flags cannot change it: "
            f"{'; '.join(differing)}; leave them out, or start without run.init_from"
        )
    if names := sorted(_differing(config.model, model)):
        said = ", ".join(f"model.{name}={getattr(model, name)!r}" for name in names)
        print(f"the model is the one in {folder}, not that of the configuration: {said}", flush=True)
    config = _with_meaning(folder, config, words)
    if folder == Path(config.run.init_from):
        for line in _trained_otherwise(folder, config):
            print(line, flush=True)
    kept = {name: getattr(config.model, name) for name in EXECUTION_FIELDS}
    return dataclasses.replace(config, model=dataclasses.replace(model, **kept))


def model_folder(config: Config) -> Path | None:
    """The folder that says what model the run has: its own if it has begun from there, or the one it starts from. None:
    there is no start, or it is gone and the checkpoints of the run will tell."""
    start, own = config.run.init_from, run_folder(config)
    if not start:
        return None
    if (own / CONFIG_FILE).is_file() and read_run(own).run.init_from == start:
        return own
    has_begun = bool(config.run.checkpoints) or (own / CHECKPOINTS).is_dir()
    return None if has_begun and not found_model(start).exists() else Path(start)


def _with_meaning(folder: Path, config: Config, words: Sequence[str]) -> Config:
    """The configuration with the meaning of outputs that the folder tells of, unless flags say it."""
    flags = tuple(f"--flow.{name.replace('_', '-')}" for name in MEANING)
    if any(word.replace("_", "-").startswith(flags) for word in words) or not (before := _told(folder)):
        return config
    meaning = {name: getattr(before.flow, name) for name in MEANING}
    if names := [name for name in MEANING if getattr(config.flow, name) != meaning[name]]:
        said = ", ".join(f"flow.{name}={meaning[name]!r}" for name in names)
        print(f"the outputs of the model mean what they do in {folder}: {said}", flush=True)
    return config.replace(flow=meaning)


def _told(folder: Path) -> Config | None:
    """The settings of the run whose weights are in a folder; a converted folder does not tell."""
    try:
        return read_run(folder)
    except ValueError:
        return None


def _trained_otherwise(folder: Path, config: Config) -> list[str]:
    """What the weights are used to, and this run does otherwise."""
    before = _told(folder)
    return (
        []
        if before is None
        else [
            f"{folder} was trained with {section}.{name}={old!r}; this run has {new!r}"
            for section, name in LEARNED_WITH
            if (old := getattr(getattr(before, section), name)) != (new := getattr(getattr(config, section), name))
        ]
    )


def _differing(one: ModelConfig, other: ModelConfig) -> set[str]:
    names = {field.name for field in dataclasses.fields(ModelConfig)} - EXECUTION_FIELDS
    return {name for name in names if getattr(one, name) != getattr(other, name)}
