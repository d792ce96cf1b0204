"""Every setting of an experiment, as frozen dataclasses that refuse what cannot work.

In: a Python file under `configs/` with `get_config() -> Config`, and command-line flags on top of it.
Out: one `Config`, saved as JSON beside each checkpoint and read back with `Config.from_json`.

Nothing here imports jax, so `--help` is instant. Derived quantities are properties, never fields.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lumina_jax.config.data import DataConfig as DataConfig
from lumina_jax.config.data import Part as Part
from lumina_jax.config.data import SourceConfig as SourceConfig
from lumina_jax.config.hosts import HostsConfig as HostsConfig
from lumina_jax.config.mesh import MeshConfig as MeshConfig
from lumina_jax.config.model import Modality as Modality
from lumina_jax.config.model import ModelConfig as ModelConfig
from lumina_jax.config.section import Section, require, require_between
from lumina_jax.documents import parse_json

PathName = Literal["linear", "gvp", "vp"]
PredictionName = Literal["velocity", "score", "noise"]
LONGEST_NAME = 200
"""Bytes of a folder name, of which file systems allow 255."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Section):
    """The probability path and what the network is trained to predict (`flow/`)."""

    called: ClassVar[str] = "flow."

    path: PathName = "linear"
    """How data and noise are mixed: along a line, with constant variance (gvp), or as diffusion does it (vp)."""
    prediction: PredictionName = "velocity"
    """What the network predicts."""
    loss_weight: Literal["none", "velocity", "likelihood"] = "none"
    """Weight of the times in the loss of score and noise."""
    times: Literal["uniform", "lognorm"] = "lognorm"
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


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section):
    """The frozen encoder that turns captions into features."""

    called: ClassVar[str] = "text."

    encoder: str = "minilm"
    """'minilm' (which `make setup` installs), 'phonemes' (with model.text_layers), or a folder or downloaded
    repository: see docs/text-encoders.md."""
    max_tokens: int = 32
    """Longer captions are cut (the released text-to-image models use 128)."""
    see_padding: bool = False
    """Fill captions up to max_tokens with padding that encoder and model see like words (the released audio models)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the encoder's parameters and activations; bfloat16 for those of billions of parameters."""
    cache: str = ".cache/text"
    """Folder in which encoded caption sets are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_tokens >= 2, f"text.max_tokens={self.max_tokens} must be at least 2: [CLS] and [SEP]")
        require_between("text.max_tokens", self.max_tokens, 2, 65_536)


@dataclass(frozen=True, kw_only=True)
class VaeConfig(Section):
    """The frozen autoencoder whose latents the model is trained on."""

    called: ClassVar[str] = "vae."

    path: str = ""
    """A folder with AutoencoderKL as diffusers saves it (or a pipeline with one), or a repository of the Hugging Face
    hub that was downloaded, such as stabilityai/sdxl-vae. With data.seconds: a folder with the autoencoder of the
    released audio models. Nothing: the model is trained on pixels, or on mel spectrograms."""
    vocoder: str = ""
    """A folder, or downloaded repository, with a BigVGAN that makes sounds of spectrograms when sampling, such as the
    folder bigvnat of the released audio models. Nothing: Griffin and Lim's iteration makes them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the autoencoder\'s parameters and activations."""
    tile: int | None = 1024
    """Pixels of a side above which pictures are encoded and decoded in overlapping tiles; None: never."""
    cache: str = ".cache/latents"
    """Folder in which the latents of the pictures are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tile is None or self.tile >= 1, f"vae.tile={self.tile} must be at least 1, or None for no tiles")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """AdamW with warmup, a schedule, clipping and an exponential moving average of the parameters."""

    called: ClassVar[str] = "optimizer."

    learning_rate: float = 1e-4
    """The greatest learning rate, after the warmup."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the warmup: constant, or decay to zero at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows to its full value."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of that mean."""
    weight_decay: float = 0.0
    """Share of each parameter, times the learning rate, that a step takes away."""
    clip_norm: float | None = 2.0
    """Gradients of a larger global norm are scaled down to it; None: never."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged into one update."""
    sum_dtype: Literal["compute", "float32"] = "compute"
    """In which type gradients of the layers' weights are added up over devices: model.compute_dtype, in which they are
    made, or float32, which doubles that traffic."""
    ema_decay: float = 0.9999
    """Decay of the average of the parameters, from which samples are drawn."""
    ema_warmup: bool = False
    """Start the average quickly: decay = min(ema_decay, (1 + step) / (10 + step))."""

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
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}={value} must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """How pictures are drawn from a trained model (`lumina sample`, and the sheets of a training run)."""

    called: ClassVar[str] = "sample."

    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5", "dopri8", "tsit5", "euler_maruyama", "sde_heun"] = (
        "midpoint"
    )
    """dopri5, dopri8 and tsit5 choose their steps themselves; the last two are stochastic."""
    steps: int = 30
    """Intervals of the time grid; the adaptive solvers choose their own steps and ignore it."""
    guidance: float = 4.0
    """Scale s of v_null + s (v_text - v_null); 1: no guidance."""
    guided_channels: int | None = None
    """The number of leading channels that are guided (the released code: 3); None: all."""
    time_shift: float = 1.0
    """The time grid t becomes t / (t + m - m t)."""
    rope_factor: float | None = None
    """Rotary scaling for pictures larger than those of training; 1: none; None: as many times as they are larger."""
    rope_watershed: float = 0.0
    """Time up to which positions are squeezed by that factor; afterwards low frequencies are slowed by it (NTK). The
    released Next-DiT: 0.3."""
    proportional_attention: bool = True
    """Scale the logits of pictures of other sizes than those of training by sqrt(log length / log trained length):
    more tokens, a sharper softmax."""
    rtol: float = 1e-3
    """Relative tolerance of the adaptive solvers."""
    atol: float = 1e-6
    """Absolute tolerance of the adaptive solvers."""
    diffusion: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma"
    """Form of the noise that the stochastic solvers add over time."""
    diffusion_norm: float = 1.0
    """Diffusion coefficient of the stochastic solvers."""
    last_step: Literal["none", "mean", "tweedie", "euler"] = "mean"
    """How the stochastic solvers end."""
    last_step_size: float = 0.04
    """Length of that last step in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("sample.steps", self.steps, 1, 10_000)
        require_between("sample.guidance", self.guidance, -1e3, 1e3, "1 means no guidance")
        require(
            self.guided_channels is None or self.guided_channels >= 1,
            f"sample.guided_channels={self.guided_channels} must be at least 1, or None for all",
        )
        require_between("sample.time_shift", self.time_shift, 1e-3, 1e3, "1 means no shift")
        remedy = "1 means no scaling, None as the size needs"
        require_between("sample.rope_factor", self.rope_factor, 1e-3, 1e4, remedy)
        require_between("sample.rope_watershed", self.rope_watershed, 0, 2, "it is a time, and times end at 1")
        require_between("sample.rtol", self.rtol, 1e-7, 1, "float32 has 7 digits")
        require_between("sample.atol", self.atol, 1e-12, 1)
        require_between("sample.diffusion_norm", self.diffusion_norm, 1e-6, 1e3)
        require_between("sample.last_step_size", self.last_step_size, 1e-6, 0.5, "the whole path has length 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Length of the run, and what it writes where."""

    called: ClassVar[str] = "run."

    name: str = "run"
    """Folder of the run in run.root."""
    root: str = "runs"
    """The run lives in root/name: config.json, checkpoints/, metrics.jsonl, TensorBoard files, samples/."""
    checkpoints: str = ""
    """Another place for the checkpoints, such as gs://bucket/name; nothing: in the run's folder."""
    init_from: str = ""
    """A run, or a folder made by `convert --to jax`: a new run starts from its (averaged) parameters, at step 0, and
    has its model, whatever the configuration file describes."""
    steps: int = 1000
    """Optimiser steps of the whole run; a run that is complete goes on with a larger number."""
    seed: int = 0
    """Of the first parameters, the noise and the order of the data; up to 2**64 - 1."""
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
    """What the sheets show; nothing: captions, or labels, from all over the data."""
    profile: str = ""
    """Steps to record a trace of, first and last, such as 10:15; it is written into profile/ of the run's folder
    (docs/checkpoints.md says how to look at it). Nothing: none."""

    wide: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"run.{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_every", "sample_every"):
            every = getattr(self, name)
            require(every is None or every >= 1, f"run.{name}={every} must be at least 1, or None for never")
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
            f"run.name={self.name[:20]!r}... must have at most {LONGEST_NAME} bytes, as file systems want it",
        )
        require(
            "://" not in self.root and "\0" not in self.root,
            f"run.root={self.root!r} must be a local folder; of a run, only run.checkpoints may be a URL",
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


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One experiment."""

    model: ModelConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.data.parts:
            modality = self.model.modality_of(part.modality)
            if part.seconds is not None:
                require(
                    modality.patch_size == 1,
                    f"sounds have one row, so their patch_size must be 1, but that of {modality.name!r} is "
                    f"{modality.patch_size}; set it to 1, or leave data.seconds out",
                )
                continue
            require(
                part.image_size % modality.patch_size == 0,
                f"data.image_size={part.image_size} must be a multiple of model.patch_size={modality.patch_size}"
                + (f" of {modality.name!r}" if self.model.others else ""),
            )
        require(
            self.data.batch_rows % self.optimizer.accumulate == 0,
            f"data.batch_rows={self.data.batch_rows} must be a multiple of "
            f"optimizer.accumulate={self.optimizer.accumulate}",
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes, origin: str = "the configuration") -> "Config":
        """The configuration that `to_json` wrote; a wrong or unknown field is a ValueError that names it."""
        return parse_json(text, Config, origin)

    def data_of(self, modality: str | None) -> DataConfig:
        """The settings of the first source of a modality of the model; None is the model's own.

        Raises:
          ValueError: the model has no such modality, or no source is of it.
        """
        place = self.model.place(modality)
        for part in self.data.parts:
            if self.model.place(part.modality) == place:
                return part
        raise ValueError(f"no source of data.mixture is of the modality {self.model.modalities[place].name!r}")

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """A copy with fields changed: `config.replace(run={"steps": 10})`."""
        changed = {name: dataclasses.replace(getattr(self, name), **new) for name, new in sections.items()}
        return dataclasses.replace(self, **changed)
