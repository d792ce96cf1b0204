"""The optimiser, and the average of the parameters."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """AdamW or Muon with warmup, a schedule, clipping and an exponential moving average of the parameters."""

    called: ClassVar[str] = "optimizer."

    name: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonal updates for the matrices of attention and feed-forward, and AdamW for all other parameters."""
    learning_rate: float = 1e-4
    """The greatest learning rate, after the warmup."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate after the warmup: constant, or decaying to zero at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows to its full value."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of that mean."""
    momentum: float = 0.95
    """Decay of the mean of gradients in Muon."""
    weight_decay: float = 0.0
    """Share of each parameter, times the learning rate, that a step subtracts."""
    clip_norm: float | None = 2.0
    """Gradients of a larger global norm are scaled down to it; None: never."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged into one update."""
    sum_dtype: Literal["compute", "float32"] = "compute"
    """Type in which gradients of the layers' weights are summed over devices: compute (model.compute_dtype, which is
    their type), or float32, which doubles that traffic."""
    ema_decay: float = 0.9999
    """Decay of the average of the parameters, from which samples are drawn."""
    ema_warmup: bool = False
    """Shorten the average in the first steps: decay = min(ema_decay, (1 + step) / (10 + step))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must not be negative")
        require(self.accumulate >= 1, f"optimizer.accumulate={self.accumulate} must be at least 1")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm={self.clip_norm} must be positive, or None for no clipping",
        )
        require(self.eps > 0, f"optimizer.eps={self.eps} must be positive")
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must not be negative")
        for name in ("beta1", "beta2", "momentum", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}={value} must lie in [0, 1)")
