"""What samples are, and what is taken of each: a class for each kind of media, with the settings of that kind alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.choice import Choice
from lumina_jax.config.model import ModalityConfig
from lumina_jax.config.section import require, require_between

Crop = Literal["square", "buckets"]


@dataclass(frozen=True, kw_only=True)
class MediaConfig(Choice):
    """What every kind of media has."""

    called: ClassVar[str] = "data."

    def check_patches(self, modality: ModalityConfig, named: str) -> None:
        """Refuse samples that the patches of a modality do not fill.

        Args:
          named: " of 'image'" for error messages, where the model has several modalities.
        """


@dataclass(frozen=True, kw_only=True)
class VisualConfig(MediaConfig):
    """What pictures, clips and views have in common: frames, all of one size."""

    image_size: int = 32
    """Pixels of a square image; with buckets, the side of a square of equal area."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("data.image_size", self.image_size, 1, 65_536)
        require_between("data.frames", self.frames, 1, 65_536)
        require(
            self.frame_rate is None or 1e-3 <= self.frame_rate <= 1e3,
            f"data.frame_rate={self.frame_rate} must be between 0.001 and 1000, or None for frames spread over the "
            "whole clip",
        )

    @property
    def frames(self) -> int:
        """The most frames of a sample."""
        return 1

    @property
    def frame_rate(self) -> float | None:
        return None

    @property
    def crop(self) -> Crop:
        return "square"

    @property
    def grid_columns(self) -> int | None:
        return None

    def extent(self, views: int | None = None) -> tuple[int, int, int]:
        """Frames, height and width in pixels of a sample of square pictures.

        Args:
          views: frames of the sample, or views of the grid; None: data.frames.
        """
        views, side = self.frames if views is None else views, self.image_size
        if self.grid_columns is None:
            return views, side, side
        return 1, views // self.grid_columns * side, self.grid_columns * side

    def check_patches(self, modality: ModalityConfig, named: str) -> None:
        require(
            self.image_size % modality.patch_size == 0,
            f"data.image_size={self.image_size} must be a multiple of model.patch_size={modality.patch_size}{named}",
        )


@dataclass(frozen=True, kw_only=True)
class PictureConfig(VisualConfig):
    """Pictures: of a clip its middle frame, of an object its first view."""

    kind: Literal["pictures"] = "pictures"
    """one picture a sample."""
    crop: Crop = "square"
    """square: shorter side resized, centre cropped. buckets: the authors' aspect-ratio buckets."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(VisualConfig):
    """Clips, a frame after another."""

    kind: Literal["clips"] = "clips"
    """several frames a sample, one after another in time."""
    crop: Crop = "square"
    """square: shorter side resized, centre cropped. buckets: the authors' aspect-ratio buckets."""
    frames: int = 16
    """The most frames of a clip."""
    frame_rate: float | None = None
    """Frames taken of each second of a clip, from a random moment on; None: evenly over all of it."""


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(VisualConfig):
    """Pictures of an object from all around it, each of them a frame."""

    kind: Literal["views"] = "views"
    """several views of an object, each of them a frame."""
    crop: Crop = "square"
    """square: shorter side resized, centre cropped. buckets: the authors' aspect-ratio buckets."""
    frames: int = 12
    """The most views of an object."""


@dataclass(frozen=True, kw_only=True)
class ViewGridConfig(VisualConfig):
    """Views of an object laid out as one picture (Lumina-T2MV: 12 views, 4 columns)."""

    kind: Literal["view-grid"] = "view-grid"
    """several views of an object, laid out as one picture."""
    frames: int = 12
    """The views of an object."""
    grid_columns: int = 4
    """Columns of the grid, each of image_size pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.grid_columns >= 1 and self.frames % self.grid_columns == 0,
            f"data.grid_columns={self.grid_columns} must divide the data.frames={self.frames} views of the grid",
        )


@dataclass(frozen=True, kw_only=True)
class SoundConfig(MediaConfig):
    """Sounds. Their channels are 80 mel bins, or those of an autoencoder of sounds, and their patch_size is 1."""

    kind: Literal["sounds"] = "sounds"
    """one recording a sample."""
    seconds: float = 10.0
    """Greatest length of a sound."""
    sample_rate: int = 22_050
    """Samples of a sound a second (the released audio models: 16000)."""
    pitch: bool = False
    """Put the pitch of each sound before its caption, "[180 Hz] seven", where the source knows it; so that it can be
    asked for."""
    seconds_per_phoneme: float | None = None
    """Length of a sound that is drawn without a given one, by the phonemes of its text; None: data.seconds."""
    pause: float = 0.0
    """Seconds added to that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seconds", "seconds_per_phoneme"):
            value = getattr(self, name)
            require(
                value is None or 1e-3 <= value <= 86_400,
                f"data.{name}={value} must be positive, from 0.001 to 86400",
            )
        require_between("data.sample_rate", self.sample_rate, 1000, 1_000_000, "it counts samples a second")
        require_between("data.pause", self.pause, 0, 86_400)

    def check_patches(self, modality: ModalityConfig, named: str) -> None:
        require(
            modality.patch_size == 1,
            f"sounds have one row, so their patch_size must be 1, but that of {modality.name!r} is "
            f"{modality.patch_size}; set it to 1, or choose other media than data.media='sounds'",
        )
