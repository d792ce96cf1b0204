"""The autoencoder."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class VaeConfig(Section):
    """The frozen autoencoder whose latents the model is trained on."""

    called: ClassVar[str] = "vae."

    path: str = ""
    """A folder with AutoencoderKL as diffusers saves it (or a pipeline with one), or a repository of the Hugging Face
    hub that was downloaded, such as stabilityai/sdxl-vae. With data.media=sounds: a folder with the autoencoder of the
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
