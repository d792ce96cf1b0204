"""Configuration files: found by name or by path, and read.

In: `emoji`, one of the configurations that come with lumina_jax, or the path of a .py or .json file. Out: a `Config`.
"""

import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lumina_jax.config import Config
from lumina_jax.launch import runs_on_cpu

SUFFIXES = (".py", ".json")


def config_names() -> list[str]:
    """The names of the configurations that come with lumina_jax."""
    return sorted(file.stem for file in _shipped().glob("*.py"))


def config_file(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
      name: of a configuration that comes with lumina_jax, or a path that ends in .py or .json.

    Raises:
      ValueError: there is no such configuration.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        if path.is_file():
            return path
        wrong = f"there is no configuration file {path}"
    elif path.name == str(name) and path.stem in config_names():
        return _shipped() / f"{path.stem}.py"
    else:
        wrong = f"there is no configuration {str(name)!r}"
    meant = f"did you mean {path.stem}? " if path.stem in config_names() else ""
    raise ValueError(
        f"{wrong}; {meant}name a file that ends in .py or .json, or one of those that come with lumina_jax: "
        f"{', '.join(config_names())}"
    )


def load_config(name: str | Path, on_cpu: bool | None = None) -> Config:
    """The result of `get_config()` in a Python file, or a saved config.json.

    Args:
      name: as for `config_file`.
      on_cpu: given to a `get_config(on_cpu)`, which has settings for CPUs and others for GPUs and TPUs; None: whether
        jax will run on the CPU here.

    Raises:
      ValueError: there is no such file, it cannot be run, or it defines no `get_config` that returns a Config.
    """
    path = config_file(name)
    if path.suffix == ".json":
        return Config.from_json(path.read_bytes(), str(path))
    spec = importlib.util.spec_from_file_location(f"lumina_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
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


def recommended_flags(name: str | Path, topology: str) -> str | None:
    """The flags that the first lines of a configuration recommend for a topology: "Recommended on v5e:4x4: FLAGS"."""
    found = re.search(rf"^Recommended on {re.escape(topology)}: (.+)$", config_file(name).read_text(), re.MULTILINE)
    return found[1] if found else None


def depends_on_device(name: str | Path) -> bool:
    """Whether a configuration has other settings for CPUs than for GPUs and TPUs."""
    return config_file(name).suffix == ".py" and load_config(name, on_cpu=True) != load_config(name, on_cpu=False)


def _called(get_config: Callable[..., Any] | None, on_cpu: bool) -> Any:
    """What `get_config()` or `get_config(on_cpu)` returns."""
    if get_config is None:
        return None
    return get_config(on_cpu) if "on_cpu" in inspect.signature(get_config).parameters else get_config()


def _shipped() -> Path:
    """The folder of the configurations that come with lumina_jax: inside the installed package, or beside it in the
    repository."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
