"""The network of an experiment: its settings, and the rules that they must follow."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between

EXECUTION_FIELDS = frozenset({"compute_dtype", "remat", "unroll", "attention"})
"""Fields of ModelConfig that say how a model is computed; a run may change them when it resumes."""


@dataclass(frozen=True, kw_only=True)
class ModalityConfig(Section):
    """A kind of data, with latents of its size and with projections into and out of the network."""

    called: ClassVar[str] = "model.others: "

    name: str
    """By which sources and prompts choose it."""
    patch_size: int
    """Values of the latent along each side of a patch; 1 for sound, whose latents have one row."""
    channels: int
    """Channels of the latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_plain = self.name.isprintable() and "/" not in self.name and self.name not in ("", ".", "..")
        require(is_plain, f"a modality needs a plain name, such as 'image', but got {self.name!r}")
        for field in ("patch_size", "channels"):
            value = getattr(self, field)
            require(value >= 1, f"{field}={value} of the modality {self.name!r} must be at least 1")

    @property
    def patch_values(self) -> int:
        return self.patch_size**2 * self.channels


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """A Flag-DiT (Lumina-T2X, arXiv 2405.05945, section 2), with block="next" a Next-DiT (Lumina-Next, arXiv
    2406.18583), or with block="dit" a DiT (arXiv 2212.09748). Named sizes: `models/presets.py`."""

    called: ClassVar[str] = "model."

    # Size
    layers: int
    """Transformer blocks."""
    heads: int
    """Query heads of attention."""
    width: int
    """Width of the residual stream."""
    kv_heads: int | None = None
    """Key/value heads shared by groups of query heads; None: one for each query head."""
    attention_width: int | None = None
    """Width of all query heads together; None: the width of the model."""
    mlp_multiple_of: int = 256
    """The width of the feed-forward is rounded up to a multiple of this."""
    mlp_multiplier: float | None = None
    """Factor on the width of the feed-forward, which is 8/3 of the width of the model, in DiT 4; None: 1."""

    # Parametrization
    parametrization: Literal["standard", "mup"] = "standard"
    """How initial values and learning rates depend on the width. mup: so that the best settings of a narrow model are
    those of a wide one (docs/mup.md)."""
    base_width: int | None = None
    """The width at which mup is the standard parametrization: that of the model whose settings were found."""
    base_heads: int | None = None
    """Query heads of the model of that width; None: its heads have the width of these."""

    # Layers
    block: Literal["flag", "next", "dit"] = "flag"
    """flag: adaLN with shift, scale and gate. next: scale and tanh gate, and a second norm after each branch. dit: as
    flag, with a GELU feed-forward, biases, and cross-attention to text after self-attention."""
    qk_norm: bool = True
    """Normalise queries and keys (the published DiT does not)."""
    norm: Literal["auto", "rms", "layer"] = "auto"
    """The norm before each branch: RMSNorm, or LayerNorm without parameters; auto: layer in DiT, else rms."""
    norm_weights: bool = True
    """A learned weight in the RMSNorm before each branch (the label-conditional Next-DiT has none)."""
    norm_eps: float = 1e-5
    """Added to the mean square in a norm."""
    final_shift: bool = True
    """A shift beside the scale before the output projection (the text-conditional Next-DiT has none)."""
    condition_limit: int | None = 1024
    """The largest width of the embedding that feeds adaLN; None: the width of the model (the audio models)."""
    time_scale: float = 1.0
    """Factor on t before the time embedding (the released audio models: 1000)."""

    # Positions
    positions: Literal["auto", "rope", "sine"] = "auto"
    """rope: rotary embeddings of queries and keys. sine: sines and cosines of row and column (and frame, with three
    axes) added to the tokens. auto: sine in DiT, else rope."""
    rope_axes: Literal[1, 2, 3] = 1
    """The positions that rotary embeddings use. 1: in the sequence. 2: row and column. 3: frame, row and column."""
    rope_theta: float = 10_000.0
    """Base of the wavelengths of rotary embeddings."""

    # Latents, and the tokens that they become
    patch_size: int = 2
    """Values of the latent along each side of a patch, which is one token."""
    channels: int = 4
    """Channels of the latent (3 when training on pixels)."""
    modality: str = "image"
    """Name of the modality that has model.patch_size and model.channels."""
    others: tuple[ModalityConfig, ...] = ()
    """Further modalities that the same network learns, each with its projections."""
    nextline: bool = True
    """A learned [nextline] token after every row of patches; the label-conditional models have none."""
    nextframe: bool = True
    """A learned [nextframe] token after every frame of a sample with several frames."""
    pad_token: bool = False
    """Keep the learned embedding of padding that released checkpoints have; no output depends on it."""
    predict_sigma: bool = False
    """Twice the output channels. With flow.path='ddpm' the second half says the variance of each step; otherwise it is
    thrown away (released checkpoints)."""

    # Text or labels
    conditioning: Literal["text", "label"] = "text"
    """What describes a sample: a caption, or the number of a label."""
    text_width: int = 4096
    """Width of the caption features (text-conditional models only)."""
    text_layers: int = 0
    """Layers of a text encoder between the caption features and the network, which is trained with it
    (text.encoder="phonemes")."""
    own_text_query: bool = False
    """A separate query projection for the attention to text, as in diffusers; released models share one."""
    text_heads: int | None = None
    """Query heads that attend to the text, the first ones of each layer; None: all. See `lumina gates`."""
    classes: int = 1000
    """Number of labels (label-conditional models only); one extra row means 'no label'."""

    # Computation; a run may change these settings when it resumes
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations, and of weights where they are used; parameters are float32."""
    remat: Literal["none", "full", "dots", "feed_forward", "attention", "offload"] = "full"
    """What the backward pass recomputes. none: nothing. full: each layer from its input. attention: all but the
    attention of a fused kernel. feed_forward: all but that and the last product of the feed-forward. dots: all but
    attention and matrix products. offload: as full, with the inputs in host memory (TPU)."""
    unroll: int = 1
    """Layers in one iteration of the scan over layers. All of them: no scan, a longer time to compile, and a slightly
    faster step on CPU. Where weights are divided over TPUs, 2 save copies of weights that are gathered in advance."""
    attention: Literal["auto", "reference", "xla", "pallas", "cudnn"] = "auto"
    """Implementation of attention. pallas, cudnn: the fused kernel of TPUs, of GPUs; auto: that if it runs, or XLA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads", "width", "patch_size", "channels", "unroll", "classes", "text_width"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}={value} must be at least 1")
        for name in ("kv_heads", "attention_width", "condition_limit", "mlp_multiple_of", "base_width", "base_heads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}={value} must be at least 1")
        require_between("model.time_scale", self.time_scale, 1e-3, 1e6, "1 reads t as it is")
        require_between("model.mlp_multiplier", self.mlp_multiplier, 1e-3, 1e3)
        require_between("model.norm_eps", self.norm_eps, 1e-12, 1)
        require_between("model.rope_theta", self.rope_theta, 1, 1e12, "10000 is usual")
        require(self.text_layers >= 0, f"model.text_layers={self.text_layers} must not be negative")
        names = [modality.name for modality in self.modalities]
        require(len(set(names)) == len(names), f"the modalities of a model need different names, but are {names}")
        require(
            not (self.others and self.predict_sigma),
            "model.predict_sigma is for models of one modality; leave model.others empty",
        )
        self._check_positions()
        self._check_base()
        require(
            self.heads % self.key_heads == 0,
            f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}",
        )
        self._check_text_heads()
        require(
            not (self.own_text_query and self.block == "dit"),
            "model.own_text_query is for attention to text beside self-attention; that of model.block='dit' always has "
            "a query projection, so leave it out",
        )

    def _check_text_heads(self) -> None:
        """Heads that attend to text have gates, and share no keys with others."""
        group, given = self.heads // self.key_heads, self.text_heads
        require(
            given is None or self.has_gates,
            f"model.text_heads={given} chooses among heads with gates for the text, but a model with "
            f"model.conditioning={self.conditioning!r} and model.block={self.block!r} has none; leave it out",
        )
        require(
            given is None or (1 <= given <= self.heads and given % group == 0),
            f"model.text_heads={given} must be a multiple of {group}, the heads that share keys, up to {self.heads}",
        )

    def _check_positions(self) -> None:
        """Heads hold whole pairs of rotary embeddings, or the width whole pairs of sines and cosines."""
        unit = 2 * self.rope_axes
        if self.position_kind == "sine":
            unit = 2 if self.text_layers else 1
            pairs = 2 * self.position_axes
            require(
                self.width % pairs == 0,
                f"model.width={self.width} must be a multiple of {pairs}, a sine and a cosine for each of "
                f"{self.position_axes} axes; change it, or set model.positions to 'rope'",
            )
            require(
                self.heads_width % (unit * self.heads) == 0,
                f"the width of a head must be a multiple of {unit}, but {self.heads_width} values are shared by "
                f"model.heads={self.heads}; change model.width or model.heads",
            )
            return
        require(
            self.heads_width % (unit * self.heads) == 0,
            f"the width of a head must be a multiple of {unit}, because rotary embeddings turn pairs along "
            f"{self.rope_axes} axes, but {self.heads_width} values are shared by model.heads={self.heads}; change "
            f"model.width or model.heads, or set model.attention_width to a multiple of {unit} times the heads",
        )

    def _check_base(self) -> None:
        if self.parametrization == "mup":
            require(
                self.base_width is not None,
                "model.parametrization='mup' needs model.base_width, the width of the model whose learning rate was "
                "found; at that width it is the standard parametrization",
            )
            require(
                (self.base_width or 0) * self.heads_width % (self.width * (self.base_heads or 1)) == 0,
                f"model.base_heads={self.base_heads} must divide the width of attention at "
                f"model.base_width={self.base_width}; leave it out if heads keep their width",
            )
        for name in ("base_width", "base_heads"):
            require(
                self.parametrization == "mup" or getattr(self, name) is None,
                f"model.{name}={getattr(self, name)} has a meaning with model.parametrization='mup' alone; set that, "
                f"or leave model.{name} out",
            )

    @property
    def heads_width(self) -> int:
        """Width of all query heads together."""
        return self.attention_width or self.width

    @property
    def head_width(self) -> int:
        return self.heads_width // self.heads

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def has_gates(self) -> bool:
        """Whether each head has a gate for its attention to the text."""
        return self.conditioning == "text" and self.block != "dit"

    @property
    def text_query_heads(self) -> int:
        """Query heads that attend to the text."""
        return self.heads if self.text_heads is None else self.text_heads

    @property
    def text_key_heads(self) -> int:
        """Key heads of the text that they attend to."""
        return self.text_query_heads * self.key_heads // self.heads

    @property
    def query_factor(self) -> float:
        """Factor on queries, 1 unless heads are wider than those of the base of mup: products of queries and keys are
        then divided by their width instead of its root (Tensor Programs V, arXiv 2203.03466, definition 4.1)."""
        if self.base_width is None or self.base_heads is None:
            return 1.0
        base = self.base_width * self.heads_width // (self.width * self.base_heads)
        return math.sqrt(base / self.head_width)

    @property
    def caption_width(self) -> int:
        """Width of the caption features where the network reads them."""
        return self.width if self.text_layers else self.text_width

    @property
    def caption_axis(self) -> str:
        """The logical axis of that width."""
        return "embed" if self.text_layers else "text"

    @property
    def condition_width(self) -> int:
        """Width of the time and caption embedding that feeds adaLN."""
        return self.condition_width_at(self.width)

    def condition_width_at(self, width: int) -> int:
        """`condition_width` of a model of another width."""
        return min(width, self.condition_limit or width)

    @property
    def norm_kind(self) -> Literal["rms", "layer"]:
        """The norm before each branch."""
        if self.norm == "auto":
            return "layer" if self.block == "dit" else "rms"
        return self.norm

    @property
    def position_kind(self) -> Literal["rope", "sine"]:
        """How tokens are told their positions."""
        if self.positions == "auto":
            return "sine" if self.block == "dit" else "rope"
        return self.positions

    @property
    def position_axes(self) -> int:
        """Coordinates of a position that the network is told."""
        return self.rope_axes if self.position_kind == "rope" else max(2, self.rope_axes)

    @property
    def biases(self) -> bool:
        """Whether attention has biases."""
        return self.block == "dit"

    @property
    def mlp_width(self) -> int:
        return self.mlp_width_at(self.width)

    def mlp_width_at(self, width: int) -> int:
        """`mlp_width` of a model of another width."""
        hidden = 4 * width if self.block == "dit" else int(2 * 4 * width / 3)
        if self.mlp_multiplier is not None:
            hidden = int(self.mlp_multiplier * hidden)
        return self.mlp_multiple_of * -(-hidden // self.mlp_multiple_of)

    @cached_property
    def modalities(self) -> tuple[ModalityConfig, ...]:
        """All of them, model.modality first."""
        return (ModalityConfig(name=self.modality, patch_size=self.patch_size, channels=self.channels), *self.others)

    @property
    def patch_values(self) -> int:
        """Values of the longest patch of any modality."""
        return max(modality.patch_values for modality in self.modalities)

    def modality_index(self, modality: str | None) -> int:
        """The index of a modality in `modalities`; None: 0.

        Raises:
          ValueError: the model has no modality of that name.
        """
        if modality is None:
            return 0
        names = [one.name for one in self.modalities]
        require(modality in names, f"modality={modality!r} must be one of those of the model: {', '.join(names)}")
        return names.index(modality)

    def modality_of(self, name: str | None) -> ModalityConfig:
        """The modality of that name; errors as `modality_index`."""
        return self.modalities[self.modality_index(name)]
