"""The length of a run, and the files that it writes."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require

LONGEST_NAME = 200
"""Bytes of a folder name, of which file systems allow 255."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """The length of the run, and the files that it writes."""

    called: ClassVar[str] = "run."

    name: str = "run"
    """Folder of the run in run.root."""
    root: str = "runs"
    """The run writes to root/name: config.json, checkpoints/, samples/, and what run.jsonl and run.trackers ask for."""
    checkpoints: str = ""
    """Another folder for the checkpoints, such as gs://bucket/name; nothing: in the run's folder."""
    init_from: str = ""
    """A run, or a folder made by `convert --to jax`: a new run starts from its (averaged) parameters, at step 0, with
    its model, even if the configuration file describes another one."""
    steps: int = 1000
    """Optimiser steps of the whole run; a run that is complete goes on with a larger number."""
    seed: int = 0
    """Seed of the first parameters, the noise and the order of the data; up to 2**64 - 1."""
    log_every: int = 20
    """Steps between reports."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_every: int | None = None
    """Besides the newest, keep every checkpoint whose step is a multiple of this."""
    sample_every: int | None = None
    """Steps between sheets of sample_prompts; None: no sheets."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sheets; nothing: captions, or labels, from all over the data."""
    evaluate_every: int | None = None
    """Steps between measurements of the held-out loss, which is also measured at the last step; None: never."""
    evaluate_samples: int = 256
    """Samples of each source at which it is measured, at most."""
    patience: int | None = None
    """Stop when the held-out loss was not lower than before at this number of measurements, one after another; the
    checkpoint of the lowest loss is kept, and what is drawn from the run comes from it. None: never."""
    jsonl: bool = True
    """Write metrics.jsonl, from which `lumina watch` reads its curves; a run resumes without it."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Programs that show the run besides its folder: tensorboard, wandb (Weights & Biases), or none of them."""
    profile: str = ""
    """First and last step of a trace, such as 10:15, which is written into profile/ of the run's folder
    (docs/checkpoints.md says how to look at it). Nothing: no trace."""

    wide: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_samples"):
            require(getattr(self, name) >= 1, f"run.{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_every", "sample_every", "evaluate_every"):
            every = getattr(self, name)
            require(every is None or every >= 1, f"run.{name}={every} must be at least 1, or None for never")
        require(
            self.patience is None or (self.patience >= 1 and self.evaluate_every is not None),
            f"run.patience={self.patience} must be at least 1 measurement, and run.evaluate_every, which is "
            f"{self.evaluate_every}, must say when the loss is measured; or None for never",
        )
        require(
            0 <= self.seed < 2**64,
            f"run.seed={self.seed} must lie between 0 and 2**64 - 1; other seeds would repeat these",
        )
        require(
            bool(self.name.strip()) and self.name not in (".", "..") and not set(self.name) & set("/\\\0\n"),
            f"run.name={self.name!r} must be a plain folder name; put the parent folder into run.root",
        )
        require(
            len(self.name.encode(errors="replace")) <= LONGEST_NAME,
            f"run.name={self.name[:20]!r}... must have at most {LONGEST_NAME} bytes, the limit of file systems",
        )
        require(
            "://" not in self.root and "\0" not in self.root,
            f"run.root={self.root!r} must be a local folder; only run.checkpoints may be a URL",
        )
        if self.profile:
            first, last = self.profiled
            require(
                1 <= first < last <= self.steps,
                f"run.profile={self.profile!r} must be two steps FIRST:LAST with 1 <= FIRST < LAST <= "
                f"run.steps={self.steps}, such as 10:15",
            )

    @property
    def profiled(self) -> tuple[int, int]:
        """The first and the last step of the trace; (0, 0): no trace, or text that is not two numbers."""
        found = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", self.profile)
        return (int(found[1]), int(found[2])) if found else (0, 0)
