"""The probability path, and what the network learns to predict."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between

PathName = Literal["linear", "gvp", "vp", "ddpm"]
PredictionName = Literal["velocity", "score", "noise", "data"]
LossWeightName = Literal["none", "velocity", "likelihood"]
TimesName = Literal["uniform", "lognorm"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Section):
    """The probability path and what the network is trained to predict (`flow/`)."""

    called: ClassVar[str] = "flow."

    path: PathName = "linear"
    """How data and noise are mixed: along a line, with constant variance (gvp), as in diffusion models (vp), or in the
    1000 steps of DDPM with linear betas (ddpm), where model.predict_sigma learns the variance of each step as well."""
    prediction: PredictionName = "velocity"
    """What the network predicts."""
    loss_weight: LossWeightName = "none"
    """Weight of the times in the loss of a score, of noise or of data; velocity: the error of the velocity counts."""
    times: TimesName = "lognorm"
    """Distribution of the training times; lognorm is the sigmoid of a standard normal."""
    time_shift: float = 1.0
    """Training times t become t / (t + m - m t): m > 1 spends more of them near noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("flow.time_shift", self.time_shift, 1e-3, 1e3, "1 means no shift")
        require(
            self.prediction != "velocity" or self.loss_weight == "none",
            f"flow.loss_weight={self.loss_weight!r} needs flow.prediction 'score', 'noise' or 'data'; "
            "the velocity loss has no weighting",
        )
        require(
            self.path != "ddpm" or (self.prediction == "noise" and self.loss_weight == "none"),
            f"flow.path='ddpm' learns the noise with equal weights, but flow.prediction={self.prediction!r} and "
            f"flow.loss_weight={self.loss_weight!r}; set them to 'noise' and 'none', or choose flow.path='vp'",
        )
