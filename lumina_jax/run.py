"""A run folder, and the configuration that starts it.

In: `python train.py configs/emoji.py --optimizer.learning-rate 1e-4`. Out: one `Config`. A run lives in root/name:
config.json, checkpoints/, metrics.jsonl, TensorBoard files and samples/.
"""

import codecs
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina_jax.config import Config, ModelConfig
from lumina_jax.config.flags import with_flags
from lumina_jax.documents import read_json
from lumina_jax.launch import runs_on_cpu

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def run_folder(config: Config) -> Path:
    return Path(config.run.root) / config.run.name


def checkpoints_of(folder: str | Path) -> str:
    """Where the run in a folder has its checkpoints: what its configuration says, or in that folder."""
    file = Path(folder) / CONFIG_FILE
    settings = read_json(file, _WithRun).run if file.is_file() else _Place()
    return settings.checkpoints or str(Path(folder) / CHECKPOINTS)


@dataclass(frozen=True)
class _Place:
    checkpoints: str = ""


@dataclass(frozen=True)
class _WithRun:
    """Where the checkpoints of a run are; a converted folder has none."""

    run: _Place = _Place()


def parse_config(arguments: Sequence[str], description: str, *, on_cpu: bool | None = None) -> Config:
    """The configuration file named first, with the flags that follow it on top; --help and bad flags exit.

    A warmup that a short run has no room for is shortened, unless a flag asks for it. A file with settings for either
    device gives those of this one, or those with which the run in the folder was begun.

    Args:
      on_cpu: as for `load_config`; not None: whatever run there is.

    Raises:
      ValueError: there is no such file, or the settings cannot work together.
    """
    words = list(arguments)
    if not words or words[0].startswith("-"):
        if "-h" not in words and "--help" not in words:
            names = "configs/folder.py for pictures of your own, configs/emoji.py for the demo"
            print(f"{description}\nName a configuration file first: {names}", file=sys.stderr)
            raise SystemExit(2)
        return with_flags(Config(model=ModelConfig(layers=4, heads=8, width=768)), words, description)
    file, *words = words
    config = with_flags(load_config(file, on_cpu), words, description)
    if on_cpu is None and has_sizes(file):
        here, why = runs_on_cpu(), ""
        if _is_begun_otherwise(config, other := with_flags(load_config(file, not here), words, description)):
            config, here, why = other, not here, f", with which {run_folder(config)} was begun"
        print(f"{file}: the settings for {'CPUs' if here else 'GPUs and TPUs'}{why}", flush=True)
    return _with_fitting_warmup(config, words)


def _is_begun_otherwise(config: Config, other: Config) -> bool:
    """Whether the run of `config` was begun with the model of `other`."""
    file = run_folder(config) / CONFIG_FILE
    if config.model == other.model or not file.is_file():
        return False
    try:
        return read_model(file.parent) == other.model
    except ValueError:  # a damaged file tells nothing; it will be written anew
        return False


def _with_fitting_warmup(config: Config, words: Sequence[str]) -> Config:
    """The configuration with a warmup that leaves steps for a schedule that decays: a tenth of a run that is too short.

    Raises:
      ValueError: a flag asks for a warmup that does not.
    """
    warmup, steps = config.optimizer.warmup_steps, config.run.steps
    if config.optimizer.schedule == "constant" or warmup < steps:
        return config
    if any(re.match(r"--optimizer\.warmup[-_]steps(=|$)", word) for word in words):
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be less than run.steps={steps} when the schedule is "
            f"{config.optimizer.schedule!r}; shorten the warmup or lengthen the run"
        )
    print(f"optimizer.warmup_steps is {steps // 10} instead of {warmup}, because run.steps is {steps}", flush=True)
    return config.replace(optimizer={"warmup_steps": steps // 10})


def load_config(path: str | Path, on_cpu: bool | None = None) -> Config:
    """The result of `get_config()` in a Python file, or a saved config.json.

    Args:
      on_cpu: what a `get_config(on_cpu)`, which has settings for either device, is told; None: as on this machine.

    Raises:
      ValueError: the file is missing, cannot be run, or defines no `get_config` that returns a Config.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(str(file) for file in Path("configs").glob("*.py")))
        raise ValueError(f"there is no configuration file {path}; configurations here: {known or 'none'}")
    if path.suffix == ".json":
        return Config.from_json(path.read_bytes(), str(path))
    spec = importlib.util.spec_from_file_location(f"lumina_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the configuration {path} must be a .py or .json file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _called(getattr(module, "get_config", None), runs_on_cpu() if on_cpu is None else on_cpu)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # whatever code of the user raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" at line {lines[-1]}" if lines else ""
        raise ValueError(f"{path} cannot be run: {type(error).__name__}{line}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{path} must define get_config() -> Config")
    return config


def has_sizes(path: str | Path) -> bool:
    """Whether a configuration file has other settings for CPUs than for GPUs and TPUs."""
    return Path(path).suffix == ".py" and load_config(path, on_cpu=True) != load_config(path, on_cpu=False)


def _called(get_config: Callable[..., Any] | None, on_cpu: bool) -> Any:
    """What `get_config()` or `get_config(on_cpu)` returns."""
    if get_config is None:
        return None
    return get_config(on_cpu) if "on_cpu" in inspect.signature(get_config).parameters else get_config()


def read_run(folder: str | Path) -> Config:
    """The configuration of a run that was trained in `folder`.

    Raises:
      ValueError: the folder holds no run, or its configuration is damaged; the message names the file and the key.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG_FILE}; train one with train.py")
    if "run" not in read_json(file, dict[str, Any]):
        raise ValueError(f"{folder} holds converted weights, no run; name its configuration with --config FILE")
    return Config.from_json(file.read_bytes(), str(file))


def read_model(folder: str | Path) -> ModelConfig:
    """The section "model" of the folder's config.json, which a converted folder and a run have alike.

    Raises:
      ValueError: there is no such file, or it is not a configuration.
    """
    file = Path(folder) / CONFIG_FILE
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
    wanted = "the folder of a run of train.py, such as runs/emoji, or one that `python -m lumina_jax convert` wrote"
    if not folder.is_dir():
        return f"{folder} {'is a file' if folder.exists() else 'does not exist'}; name {wanted} with --to jax"
    for layout, signs in (("lumina", "consolidated*"), ("diffusers", "model_index.json"), ("diffusers", "transformer")):
        if any(folder.glob(signs)):
            command = f"python -m lumina_jax convert {folder} NEW --from {layout} --to jax"
            return f"{folder} holds weights of the {layout} layout; convert them first: {command}"
    return f"{folder} has no {CONFIG_FILE} of a model of ours; name {wanted} with --to jax"


def write_config(config: Config) -> None:
    """Save config.json in the run's folder, at once or not at all."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(config.to_json())
    os.replace(temporary, folder / CONFIG_FILE)


def flat_settings(config: Config) -> dict[str, Any]:
    """Each setting under the name of its flag, such as "optimizer.learning_rate"."""
    sections = {name: section.settings() for name, section in config.settings().items()}
    plain = json.loads(json.dumps(sections, default=dataclasses.asdict))
    return {f"{section}.{name}": value for section, fields in plain.items() for name, value in fields.items()}


def read_prompts(file: Path | None) -> list[str]:
    """The lines of a text file that are not empty, in UTF-8, or in UTF-16 with its mark; "-" is standard input.

    Raises:
      ValueError: there is no such file, or it is not text.
    """
    if file is None:
        return []
    if str(file) == "-":
        content = sys.stdin.buffer.read()
    elif file.is_dir() or not file.exists():
        raise ValueError(f"there is no file of prompts {file}; write one caption a line into it")
    else:
        content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"prompts must be UTF-8, but line {line} of {file} is not; save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"prompts must be text, but {file} holds zero bytes; save the file as UTF-8")
    lines = re.split("\r\n|\r|\n", text)  # splitlines() would cut captions at other characters, too
    return [line.strip() for line in lines if line.strip()]
