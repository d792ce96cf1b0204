"""The probability path, and what the network learns to predict."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between

PathName = Literal["linear", "gvp", "vp"]
PredictionName = Literal["velocity", "score", "noise"]
LossWeightName = Literal["none", "velocity", "likelihood"]
TimesName = Literal["uniform", "lognorm"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Section):
    """The probability path and what the network is trained to predict (`flow/`)."""

    called: ClassVar[str] = "flow."

    path: PathName = "linear"
    """How data and noise are mixed: along a line, with constant variance (gvp), or as in diffusion models (vp)."""
    prediction: PredictionName = "velocity"
    """What the network predicts."""
    loss_weight: LossWeightName = "none"
    """Weight of the times in the loss of a score or of noise."""
    times: TimesName = "lognorm"
    """Distribution of the training times; lognorm is the sigmoid of a standard normal."""
    time_shift: float = 1.0
    """Training times t become t / (t + m - m t): m > 1 spends more of them near noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("flow.time_shift", self.time_shift, 1e-3, 1e3, "1 means no shift")
        require(
            self.prediction != "velocity" or self.loss_weight == "none",
            f"flow.loss_weight={self.loss_weight!r} needs flow.prediction 'score' or 'noise'; "
            "the velocity loss has no weighting",
        )
