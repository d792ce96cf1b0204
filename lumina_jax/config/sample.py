"""How samples are drawn from a trained model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between

SolverName = Literal[
    "euler", "midpoint", "heun", "heun3", "rk4", "explicit_adams", "implicit_adams",
    "adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8",
    "dpmpp_2m", "euler_maruyama", "sde_heun", "ddpm", "ddim",
]  # fmt: skip
DiffusionName = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
LastStepName = Literal["none", "mean", "tweedie", "euler"]
WeightsName = Literal["auto", "bfloat16", "float32", "int8", "nf4"]
ANCESTRAL = ("ddpm", "ddim")
"""Solvers that take some of the steps of a model that was trained with flow.path='ddpm'."""
ONE_STEP = ("euler", "midpoint", "heun", "heun3", "rk4")
"""Solvers with given steps, each of which begins with nothing but the state."""
EVEN_GRID = ("explicit_adams", "implicit_adams")
"""Solvers whose steps must all have one length."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """How pictures are drawn from a trained model (`lumina sample`, and the sheets of a training run)."""

    called: ClassVar[str] = "sample."

    solver: SolverName = "midpoint"
    """euler to implicit_adams and dpmpp_2m take sample.steps steps; adaptive_heun to dopri8 choose their steps;
    euler_maruyama and sde_heun are stochastic; ddpm and ddim are for flow.path='ddpm'. docs/flow-matching.md compares
    them."""
    steps: int = 30
    """Intervals of the time grid; the adaptive solvers choose their steps and ignore it. Of ddpm and ddim, how many of
    the 1000 steps are taken."""
    guidance: float = 4.0
    """The scale s in v_null + s (v_text - v_null); 1: no guidance."""
    negative: str = ""
    """What samples must not show: a caption, or of a label-conditional model a label. Without sample.negative_scale it
    is v_null in the formula of guidance."""
    negative_scale: float | None = None
    """The scale n in v_null + s (v_text - v_null) - n (v_negative - v_null), for which the network is called with three
    captions for each sample instead of two; None: the negative is v_null."""
    guided_channels: int | None = None
    """The number of leading channels that are guided (the released code: 3); None: all."""
    time_shift: float = 1.0
    """The time grid t becomes t / (t + m - m t)."""
    rope_factor: float | None = None
    """Rotary scaling for pictures larger than those of training; 1: none; None: the ratio of the sizes."""
    rope_watershed: float = 0.0
    """Time up to which positions are squeezed by that factor; afterwards low frequencies are slowed by it (NTK). The
    released Next-DiT: 0.3. From 1 on they are squeezed at all times, by default by the ratio of the shorter sides."""
    rope_frequency_aware: bool = False
    """Slow all waves that are longer than the coordinates of training by the whole factor, and shorter ones less
    (Lumina-Next, docs/extrapolation.md); False: only the longest by the whole factor."""
    proportional_attention: bool = True
    """Scale the logits of pictures of other sizes than those of training by sqrt(log length / log trained length):
    more tokens, a sharper softmax."""
    merge_tokens: int = 1
    """Side of the squares of neighbouring patches that attention sees as one, which saves time in large pictures: token
    merging, or context drop; 1: each patch is seen."""
    merge_until: float = 0.5
    """Time up to which it does; afterwards, where details are drawn, each patch is seen."""
    rtol: float = 1e-3
    """Relative tolerance of the adaptive solvers."""
    atol: float = 1e-6
    """Absolute tolerance of the adaptive solvers."""
    resamplings: int = 1
    """How many times each step is taken where a source is edited: after each time but the last, noise leads back to the
    beginning of the step (RePaint). More of them fit what is drawn to what is kept, and take so many times as long."""
    loop: bool = False
    """Clips that end as they begin: positions of frames are shifted around the clip from step to step."""
    window_frames: int | None = None
    """Frames of latents that the network sees at once of a longer clip, in windows of which each overlaps half of the
    next; None: all."""
    diffusion: DiffusionName = "sigma"
    """How much noise the stochastic solvers add over time: the form of the diffusion coefficient."""
    diffusion_norm: float = 1.0
    """Factor of that coefficient."""
    last_step: LastStepName = "mean"
    """The last step of the stochastic solvers, from the last time of the grid to the data."""
    last_step_size: float = 0.04
    """Length of that last step in time."""
    eta: float = 0.0
    """Noise that ddim adds: 0 none, 1 as much as ddpm."""
    data_limit: float | None = None
    """The data that ddpm and ddim predict on their way are clipped to this magnitude (pixels: 1); None: not at all."""
    weights: WeightsName = "auto"
    """The type in which the matrices of the layers of a trained model are held; bfloat16 takes half the memory, int8 a
    quarter, and nf4 (4 bits) an eighth, with a change that docs/finetuning.md measures. auto: that of their products,
    model.compute_dtype, which draws the same as float32. Sheets are drawn from the weights of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("sample.steps", self.steps, 1, 10_000)
        require_between("sample.guidance", self.guidance, -1e3, 1e3, "1 means no guidance")
        require_between("sample.negative_scale", self.negative_scale, -1e3, 1e3, "None: the negative is v_null")
        require(
            self.negative_scale is None or self.negative != "",
            f"sample.negative_scale={self.negative_scale} is the scale of sample.negative, but that is empty; name "
            "what samples must not show",
        )
        require(
            not self.negative or self.negative_scale is not None or self.guidance != 1,
            f"sample.negative={self.negative!r} steers by guidance, but sample.guidance=1 is none; raise it, or set "
            "sample.negative_scale",
        )
        require(
            self.guided_channels is None or self.guided_channels >= 1,
            f"sample.guided_channels={self.guided_channels} must be at least 1, or None for all",
        )
        require_between("sample.time_shift", self.time_shift, 1e-3, 1e3, "1 means no shift")
        require(
            self.time_shift == 1 or self.solver not in EVEN_GRID,
            f"sample.solver={self.solver!r} needs even steps, but sample.time_shift={self.time_shift} makes them "
            "uneven; set it to 1, or choose another solver such as 'heun3'",
        )
        remedy = "1 means no scaling, None as the size needs"
        require_between("sample.rope_factor", self.rope_factor, 1e-3, 1e4, remedy)
        require_between("sample.rope_watershed", self.rope_watershed, 0, 2, "it is a time, and times end at 1")
        require_between("sample.merge_tokens", self.merge_tokens, 1, 64, "1 merges nothing")
        require_between("sample.merge_until", self.merge_until, 0, 2, "it is a time, and times end at 1")
        require_between("sample.rtol", self.rtol, 1e-7, 1, "float32 has 7 digits")
        require_between("sample.atol", self.atol, 1e-12, 1)
        require_between("sample.window_frames", self.window_frames, 2, 100_000, "None: the network sees whole clips")
        require(
            not self.loop or self.window_frames is None,
            f"sample.loop=True turns whole clips, but sample.window_frames={self.window_frames}; leave one of them out",
        )
        require_between("sample.resamplings", self.resamplings, 1, 100, "1 takes each step once")
        require(
            self.resamplings == 1 or self.solver in ONE_STEP,
            f"sample.resamplings={self.resamplings} takes single steps of the probability flow again, which "
            f"sample.solver={self.solver!r} cannot; choose one of {', '.join(ONE_STEP)}",
        )
        require_between("sample.diffusion_norm", self.diffusion_norm, 1e-6, 1e3)
        require_between("sample.last_step_size", self.last_step_size, 1e-6, 0.5, "the whole path has length 1")
        require_between("sample.eta", self.eta, 0, 1, "0 adds no noise, 1 as much as ddpm")
        require_between("sample.data_limit", self.data_limit, 1e-3, 1e6, "None clips nothing")
        require(
            self.solver not in ANCESTRAL or self.steps <= 1000,
            f"sample.solver={self.solver!r} takes some of the 1000 steps of training, but sample.steps={self.steps}; "
            "ask for at most 1000",
        )

    def check_path(self, path: str) -> None:
        """Refuse a solver that a model with this flow.path cannot follow."""
        require(
            self.solver not in ANCESTRAL or path == "ddpm",
            f"sample.solver={self.solver!r} is for models of flow.path='ddpm', but this one has flow.path={path!r}; "
            "choose an ODE solver such as midpoint",
        )
