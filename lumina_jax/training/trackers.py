"""What records and shows a run besides its samples: metrics.jsonl, TensorBoard, Weights & Biases, each or none of them.

In: the metrics of a step, or a picture. A new one is a class with the methods of `Tracker` and a line in
`new_trackers`.
"""

import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lumina_jax.config import Config
from lumina_jax.training.jsonl import Jsonl
from lumina_jax.training.logs import GrowingFile, record

TENSORBOARD_FOLDER = "tensorboard"


@runtime_checkable
class Tracker(Protocol):
    """What records or shows a run. No error of the disk or the network in these methods stops the training."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics of a step; numbers may be NaN or infinite."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None: ...

    def close(self) -> None: ...


def check_trackers(config: Config) -> None:
    """Raises ValueError unless the packages of `run.trackers` are installed."""
    if "wandb" in config.run.trackers and importlib.util.find_spec("wandb") is None:
        raise ValueError("run.trackers has wandb, which needs its package; pip install 'lumina_jax[wandb]'")


def new_trackers(config: Config, folder: Path, resumed_step: int) -> list[Tracker]:
    """The trackers for which `run.jsonl` and `run.trackers` ask.

    Args:
      folder: the folder of the run.
      resumed_step: the step from which the run continues.
    """
    made: dict[str, Any] = {
        "jsonl": lambda: Jsonl(folder, resumed_step=resumed_step),
        "tensorboard": lambda: TensorBoard(folder, resumed_step=resumed_step),
        "wandb": lambda: WeightsAndBiases(config, folder),
    }
    jsonl = ("jsonl",) if config.run.jsonl else ()
    return [made[name]() for name in dict.fromkeys((*jsonl, *config.run.trackers))]


class TensorBoard:
    """A TensorBoard file in a folder of the run. Later steps of an earlier attempt than `resumed_step` are hidden."""

    def __init__(self, folder: Path, *, resumed_step: int):
        from tensorboardX.proto.event_pb2 import SessionLog  # slow to import, and only training needs it

        attempt = f"{os.getpid()}.{resumed_step}"  # so that a restart within the same second has another file
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{attempt}"
        self._events = GrowingFile(folder / TENSORBOARD_FOLDER / name, "curves for TensorBoard")
        self._event(file_version="brain.Event:2")
        self._event(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX import summary

        for name, value in numbers.items():
            self._event(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        from tensorboardX import summary

        self._event(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._events.close()

    def _event(self, step: int = 0, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write(record(Event(wall_time=time.time(), step=step, **content).SerializeToString()))


class WeightsAndBiases:
    """A run of Weights & Biases of this run's name and settings, which continues when the run does.

    Curves are over `step`, so that a run that resumes may repeat steps. WANDB_PROJECT, WANDB_MODE=offline and the other
    variables of that program are its own. An error after the first step is printed once.
    """

    def __init__(self, config: Config, folder: Path):
        import wandb

        self._wandb, self._has_failed = wandb, False
        project = os.environ.get("WANDB_PROJECT", "lumina_jax")
        self._run = wandb.init(
            project=project, name=config.run.name, id=_identity(folder), resume="allow", dir=folder,
            config=json.loads(config.to_json()),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._log({"step": step, **{name: value for name, value in numbers.items() if math.isfinite(value)}})

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        self._log({"step": step, name: self._wandb.Image(pixels)})

    def close(self) -> None:
        try:
            self._run.finish()
        except Exception as error:
            self._warn(error)

    def _log(self, values: dict[str, Any]) -> None:
        try:
            self._run.log(values)
        except Exception as error:  # a tracker must not end a training
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            print(
                f"warning: Weights & Biases got no metrics ({error}); training continues", file=sys.stderr, flush=True
            )


def _identity(folder: Path) -> str:
    """What tells this run from others there; kept in the run's folder, so that it continues."""
    file = folder / "wandb-id"
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_text(os.urandom(6).hex())
        os.replace(temporary, file)
    return file.read_text().strip()
