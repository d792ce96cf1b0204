"""Which parameters of trained weights train further, and which of them through low-rank adapters."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("blocks.attention.[!t]*",),
    "text_attention": ("blocks.attention.text_*", "blocks.text.*", "blocks.text_attention.*"),
    "feed_forward": ("blocks.mlp.*",),
    "modulation": ("blocks.modulation.*", "final_layer.modulation.*"),
    "embeddings": (
        *("patch_embedding.*", "other_embeddings.*", "time_embedding.*"),
        *("caption_pooling.*", "label_embedding.*", "*_token"),
    ),
    "layers": ("blocks.*",),
    "biases": ("*.bias",),
    "all": ("*",),
}
"""The names that stand for patterns of parameter names."""
MATRIX = ".kernel"
"""The end of the name of a matrix, which can have an adapter."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Section):
    """Which parameters train; all others stay those of run.init_from, bit for bit, and have no moments and no average.

    Without any of these settings all parameters train.
    """

    called: ClassVar[str] = "finetune."

    parameters: tuple[str, ...] = ()
    """Groups (attention, text_attention, feed_forward, modulation, embeddings, layers, biases, all) or patterns of
    names, such as blocks.mlp.*; the first that fits a name counts. GROUP:RANK gives a group adapters of that rank.
    Nothing: the layers."""
    rank: int | None = None
    """Rank of the adapters (LoRA) of the matrices among these parameters; None: parameters train themselves."""
    alpha: float | None = None
    """Adapters are multiplied by alpha / rank; None: by 1."""
    scaling: Literal["standard", "rslora"] = "standard"
    """rslora: alpha / sqrt(rank), for which rank 64 needs no other learning rate than rank 8."""
    dora: bool = False
    """Adapters change the direction of the columns of a matrix, whose lengths train themselves (DoRA)."""
    dropout: float = 0.0
    """Share of the inputs of each adapter that a training step leaves out, others at each step."""
    last_layers: int | None = None
    """Of the layers, only the last ones train; None: all of them."""
    base: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """The type in which the matrices of the layers of the base are held, for adapters: bfloat16 takes half the memory,
    int8 a quarter, and nf4 (4 bits) an eighth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "last_layers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"finetune.{name}={value} must be at least 1, or None")
        require(
            self.base == "float32" or self.is_partial,
            f"finetune.base={self.base!r} is for a base that does not train, but all parameters do; set finetune.rank "
            "for adapters, or leave it out",
        )
        require(
            self.has_adapters or not self.dora,
            "finetune.dora is a kind of adapters, which need a rank: set finetune.rank",
        )
        require(
            not self.dora or self.base in ("float32", "bfloat16"),
            f"finetune.dora needs the lengths of the columns of the base, which finetune.base={self.base!r} does not "
            "hold; choose float32 or bfloat16, or leave finetune.dora out",
        )
        require(0 <= self.dropout < 1, f"finetune.dropout={self.dropout} must be at least 0 and below 1")
        require(
            self.has_adapters or not self.dropout,
            f"finetune.dropout={self.dropout} is for adapters, which need a rank: set finetune.rank",
        )
        require(self.alpha is None or self.alpha > 0, f"finetune.alpha={self.alpha} must be positive, or None")
        for entry in self.parameters:
            pattern, mark, rank = entry.partition(":")
            require(
                bool(pattern) and (not mark or (rank.isdecimal() and int(rank) >= 1)),
                f"finetune.parameters must name groups or patterns, perhaps with a rank such as attention:16, but has "
                f"{entry!r}",
            )

    @property
    def is_partial(self) -> bool:
        """Whether some parameters do not train."""
        return bool(self.parameters) or self.rank is not None or self.last_layers is not None

    @property
    def has_adapters(self) -> bool:
        """Whether any parameters train through adapters."""
        return self.rank is not None or any(":" in entry for entry in self.parameters)

    def scale(self, rank: int) -> float:
        """The factor of adapters of this rank."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def ranks(self, names: Sequence[str]) -> dict[str, int | None]:
        """The names of the parameters that train, with the rank of their adapters; None: the parameter trains itself.

        Raises:
          ValueError: a group or a pattern fits no name, or only names that have no adapter.
        """
        found: dict[str, int | None] = {}
        for entry in self.parameters or ("layers",):
            pattern, _, given = entry.partition(":")
            rank = int(given) if given else self.rank
            fitting = [name for name in names if any(fnmatch.fnmatchcase(name, one) for one in _patterns(pattern))]
            fitting = [name for name in fitting if rank is None or name.endswith(MATRIX)]
            kind = "parameter" if rank is None else "matrix"
            require(
                bool(fitting),
                f"finetune.parameters has {entry!r}, which fits no {kind} of this model; choose groups from "
                f"{', '.join(GROUPS)}, or patterns of names such as {', '.join(names[:3])}",
            )
            for name in fitting:
                found.setdefault(name, rank)
        return {name: found[name] for name in names if name in found}


def _patterns(pattern: str) -> tuple[str, ...]:
    return GROUPS.get(pattern, (pattern,))
