"""A run folder, and the configuration that starts it.

In: `python train.py configs/emoji.py --optimizer.learning-rate 1e-4`. Out: one `Config`. A run lives in root/name:
config.json, checkpoints/, metrics.jsonl, TensorBoard files and samples/.
"""

import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lumina_jax.config import Config, ModelConfig
from lumina_jax.launch import runs_on_cpu

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def run_folder(config: Config) -> Path:
    return Path(config.run.root) / config.run.name


def checkpoints_of(folder: str | Path) -> str:
    """Where the run in a folder has its checkpoints: what its configuration says, or in that folder."""
    file = Path(folder) / CONFIG_FILE
    settings = json.loads(file.read_text()).get("run", {}) if file.is_file() else {}
    return settings.get("checkpoints") or str(Path(folder) / CHECKPOINTS)


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
        return _with_flags(Config(model=ModelConfig(layers=4, heads=8, width=768)), words, description)
    file, *words = words
    config = _with_flags(load_config(file, on_cpu), words, description)
    if on_cpu is None and has_sizes(file):
        here, why = runs_on_cpu(), ""
        if _is_begun_otherwise(config, other := _with_flags(load_config(file, not here), words, description)):
            config, here, why = other, not here, f", with which {run_folder(config)} was begun"
        print(f"{file}: the settings for {'CPUs' if here else 'GPUs and TPUs'}{why}", flush=True)
    return _with_fitting_warmup(config, words)


def _with_flags(default: Config, words: Sequence[str], description: str) -> Config:
    import tyro

    return tyro.cli(Config, default=default, args=list(words), description=description, prog="train.py CONFIG")


def _is_begun_otherwise(config: Config, other: Config) -> bool:
    """Whether the run of `config` was begun with the model of `other`."""
    file = run_folder(config) / CONFIG_FILE
    if config.model == other.model or not file.is_file():
        return False
    return read_model(file.parent) == other.model


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
      ValueError: the file is missing, or defines no `get_config`.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(str(file) for file in Path("configs").glob("*.py")))
        raise ValueError(f"there is no configuration file {path}; configurations here: {known or 'none'}")
    if path.suffix == ".json":
        return Config.from_json(path.read_text())
    get_config = _defined_in(path)
    if not inspect.signature(get_config).parameters:
        return get_config()
    return get_config(runs_on_cpu() if on_cpu is None else on_cpu)


def has_sizes(path: str | Path) -> bool:
    """Whether a configuration file has settings for either device."""
    return Path(path).suffix == ".py" and bool(inspect.signature(_defined_in(Path(path))).parameters)


def _defined_in(path: Path) -> Callable[..., Config]:
    """The function `get_config` of a Python file."""
    spec = importlib.util.spec_from_file_location(f"lumina_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the configuration {path} must be a .py or .json file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} must define get_config() -> Config")
    return module.get_config


def read_run(folder: str | Path) -> Config:
    """The configuration of a run that was trained in `folder`.

    Raises:
      ValueError: the folder holds no run.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG_FILE}; train one with train.py")
    text = file.read_text()
    if "run" not in json.loads(text):
        raise ValueError(f"{folder} holds converted weights, no run; name its configuration with --config FILE")
    return Config.from_json(text)


def read_model(folder: str | Path) -> ModelConfig:
    """The section "model" of the folder's config.json, which a converted folder and a run have alike.

    Raises:
      ValueError: there is no such file, or it is not a configuration.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} must hold {CONFIG_FILE}, which `convert --to jax` writes, but it has none")
    try:
        model = json.loads(file.read_text())["model"]
        return Config.from_json(json.dumps({"model": model, "data": {"image_size": model.get("patch_size", 2)}})).model
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no configuration of a model ({reason}); convert the weights again") from error


def write_config(config: Config) -> None:
    """Save config.json in the run's folder, at once or not at all."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(config.to_json())
    os.replace(temporary, folder / CONFIG_FILE)


def flat_settings(config: Config) -> dict[str, Any]:
    """Each setting under the name of its flag, such as "optimizer.learning_rate"."""
    sections = json.loads(config.to_json())
    return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def read_prompts(file: Path | None) -> list[str]:
    """The lines of a text file that are not empty."""
    if file is None:
        return []
    if not file.is_file():
        raise ValueError(f"there is no file of prompts {file}; write one caption a line into it")
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def sample_name(index: int, prompt: str) -> str:
    """A file name that sorts by index and can be read: 003-red-heart-noto-style.png."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    return f"{index:03}-{words}.png" if words else f"{index:03}.png"
