"""The frozen autoencoders whose latents a model is trained on: one for each modality, or none."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Section):
    """The autoencoder of one modality."""

    called: ClassVar[str] = "vae."

    path: str = ""
    """A folder with AutoencoderKL as diffusers saves it (or a pipeline with one), or a repository of the Hugging Face
    hub that was downloaded, such as stabilityai/sdxl-vae. With data.media=sounds: a folder with the autoencoder of the
    released audio models. Nothing: the model is trained on pixels, or on mel spectrograms."""
    vocoder: str = ""
    """A folder, or a downloaded repository, with a BigVGAN that turns drawn spectrograms into sounds, such as the
    folder bigvnat of the released audio models. Nothing: Griffin and Lim's iteration does."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the autoencoder's parameters and activations."""
    tile: int | None = 1024
    """Pixels of a side above which pictures are encoded and decoded in overlapping tiles; None: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tile is None or self.tile >= 1, f"vae.tile={self.tile} must be at least 1, or None for no tiles")


@dataclass(frozen=True, kw_only=True)
class OtherAutoencoder(AutoencoderConfig):
    """The autoencoder of a modality of model.others."""

    modality: str
    """The name of the modality."""


@dataclass(frozen=True, kw_only=True)
class VaeConfig(AutoencoderConfig):
    """The autoencoder of the first modality, model.modality, and those of others."""

    cache: str = ".cache/latents"
    """Folder in which the latents of samples are kept."""
    others: tuple[OtherAutoencoder, ...] = ()
    """The autoencoders of further modalities; one that is not named here has none."""

    def of(self, modality: str) -> AutoencoderConfig:
        """The autoencoder of a modality that is not the first; a sound without one is made audible by vae.vocoder."""
        found = (one for one in self.others if one.modality == modality)
        return next(found, AutoencoderConfig(vocoder=self.vocoder))
