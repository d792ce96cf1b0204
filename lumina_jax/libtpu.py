"""The TPU compiler: where it is looked for, and how it is installed.

It is installed in a separate folder, `aot` in the environment. Beside jax it would make every program that runs on CPU
look for TPUs and print warnings. This module imports no jax, which looks for the compiler when it is imported.
"""

import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import sys
from pathlib import Path
from typing import Any

FOLDER = "aot"


def add_libtpu() -> None:
    """Let this process, and those that it starts, import libtpu: as installed, or from its folder.

    Raises:
      ValueError: libtpu is in neither; the message says how to install it.
    """
    if importlib.util.find_spec("libtpu") is not None:
        return
    folder = Path(sys.prefix) / FOLDER
    if not (folder / "libtpu").is_dir():
        raise ValueError(f"compiling for TPUs that are not attached needs their compiler, libtpu; {remedy()}")
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))


def remedy() -> str:
    """How to install libtpu in the version that belongs to the installed jax."""
    wanted = [line.split(";")[0].strip() for line in importlib.metadata.requires("jax") or ()]
    version = next((name for name in wanted if name.startswith("libtpu")), "libtpu")
    words = ["pip", "install", "--no-deps", "--target", str(Path(sys.prefix) / FOLDER), version]
    return f"install it with `make aot-setup`, or in another environment than .venv with `{shlex.join(words)}`"


def device_of_kernels(device: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The names with which jax asks about the device when a kernel is built, and what they mean for this one."""
    from jax.experimental.pallas import tpu as pltpu

    names = inspect.unwrap(pltpu.get_tpu_info).__globals__  # of a module that is not the same in all versions of jax
    answers = {"get_device_kind": lambda: device.device_kind, "get_num_device_cores": lambda: device.num_cores}
    return names, answers
