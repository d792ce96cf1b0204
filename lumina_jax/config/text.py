"""The text encoder: captions to features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section):
    """The frozen encoder that turns captions into features."""

    called: ClassVar[str] = "text."

    encoder: str = "minilm"
    """'minilm' (in the package), 'phonemes' (with model.text_layers), or a folder or downloaded repository: see
    docs/text-encoders.md."""
    max_tokens: int = 32
    """Longer captions are cut (the released text-to-image models use 128)."""
    see_padding: bool = False
    """Pad captions to max_tokens; encoder and model see the padding like words (the released audio models)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the encoder's parameters and activations; bfloat16 suits encoders of billions of parameters."""
    cache: str = ".cache/text"
    """Folder in which encoded caption sets are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_tokens >= 2, f"text.max_tokens={self.max_tokens} must be at least 2: [CLS] and [SEP]")
        require_between("text.max_tokens", self.max_tokens, 2, 65_536)
