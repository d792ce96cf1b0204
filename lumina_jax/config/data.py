"""The data of an experiment: where samples come from, and how they become rows of tokens."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.section import Section, require, require_between


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Section):
    """Where samples come from, and what is taken of each."""

    called: ClassVar[str] = "data."

    source: Literal["emoji", "folder", "lumina", "tfds", "prepared"] = "emoji"
    """emoji: embedded. folder: images, clips, views or sounds, with a captions .jsonl, texts beside them, or one folder
    for each class. lumina: the authors' YAML. tfds: a builder. prepared: what `data prepare` made."""
    path: str = ""
    """emoji: nothing, or a folder that tools/build_emoji.py filled. folder: the folder, or its .jsonl file. lumina: the
    .yaml file. tfds: a builder, such as cifar10:3.*.*. prepared: the folder"""
    split: str = "train"
    """emoji: train, held_out or all. tfds: any split expression. folder: which of its folders train, test, ..."""
    limit: int | None = None
    """How many samples of the source are used, the first ones; None: all."""
    modality: str | None = None
    """Which of the model's modalities the samples are of; None: its own, model.modality."""
    image_size: int = 32
    """Pixels of a square image; with buckets, the side of a square of equal area."""
    frames: int = 1
    """Frames of a clip, or views of an object, at most."""
    grid_columns: int | None = None
    """Lay the data.frames views of an object out as one picture with this number of columns of image_size pixels
    (Lumina-T2MV: 12 views, 4 columns); None: each view is a frame."""
    frame_rate: float | None = None
    """Frames taken of each second of a clip, from a random moment on; None: evenly over all of it."""
    seconds: float | None = None
    """Greatest length of a sound, which makes the source one of sounds; None: one of pictures. A sound's channels are
    80 mel bins, or those of an autoencoder of sounds, and its patch_size is 1."""
    sample_rate: int = 22_050
    """Samples of a sound a second (the released audio models: 16000)."""
    pitch: bool = False
    """Put the pitch of each sound before its caption, "[180 Hz] seven", where the source knows it; so that it can be
    asked for."""
    seconds_per_phoneme: float | None = None
    """Length of a sound that is drawn without a given one, by the phonemes of its text; None: data.seconds."""
    pause: float = 0.0
    """Seconds added to that."""
    crop: Literal["square", "buckets"] = "square"
    """square: shorter side resized, centre cropped. buckets: the authors' aspect-ratio buckets."""
    emoji_names: int = 48
    """Number of emoji names in the embedded set; each name is drawn in two styles."""
    image_key: str = "image"
    """Feature of a tfds builder that holds the picture."""
    caption_key: str = "caption"
    """Feature that holds the caption, or a class label whose name is the caption."""
    label_key: str = "label"
    """Feature that holds the label of a label-conditional model."""
    data_dir: str | None = None
    """Folder of prepared tfds data; None: the default of tensorflow-datasets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "frames", "emoji_names"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)} must be at least 1")
        require(
            self.limit is None or self.limit >= 1, f"data.limit={self.limit} must be at least 1, or None for no limit"
        )
        require(
            self.frame_rate is None or 1e-3 <= self.frame_rate <= 1e3,
            f"data.frame_rate={self.frame_rate} must be between 0.001 and 1000, or None for frames spread over the "
            "whole clip",
        )
        for name in ("image_size", "frames"):
            require_between(f"data.{name}", getattr(self, name), 1, 65_536)
        require(
            self.grid_columns is None or (self.grid_columns >= 1 and self.frames % self.grid_columns == 0),
            f"data.grid_columns={self.grid_columns} must divide the data.frames={self.frames} views of the grid",
        )
        require(
            self.grid_columns is None or self.crop == "square",
            "the views of a grid are square; leave data.crop at 'square', or data.grid_columns out",
        )
        for name in ("seconds", "seconds_per_phoneme"):
            value = getattr(self, name)
            require(
                value is None or 1e-3 <= value <= 86_400,
                f"data.{name}={value} must be positive, from 0.001 to 86400, or None",
            )
        require_between("data.sample_rate", self.sample_rate, 1000, 1_000_000, "it counts samples a second")
        require_between("data.pause", self.pause, 0, 86_400)
        require(
            self.source == "emoji" or bool(self.path),
            f"data.source={self.source!r} needs data.path; see --help for what it names",
        )

    def extent(self, views: int | None = None) -> tuple[int, int, int]:
        """Frames, height and width in pixels of a sample of square pictures.

        Args:
          views: frames of the sample, or views of the grid; None: data.frames.
        """
        views, side = self.frames if views is None else views, self.image_size
        if self.grid_columns is None:
            return views, side, side
        return 1, views // self.grid_columns * side, self.grid_columns * side


@dataclass(frozen=True, kw_only=True)
class Part(SourceConfig):
    """One source of a mixture."""

    weight: float = 1.0
    """Its share of the samples, relative to those of the other parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1e-9 <= self.weight <= 1e9,
            f"the weight {self.weight} of a part of data.mixture must be positive, from 1e-9 to 1e9",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """Where the examples come from, and how they become rows of tokens."""

    mixture: tuple[Part, ...] = ()
    """Several sources whose samples share the rows; the settings of one source above are then those of each part."""
    batch_rows: int = 32
    """Rows of tokens in a batch, over all devices."""
    row_tokens: int | None = None
    """Tokens in a row; None: as many as one sample of image_size needs. More packs several samples into a row."""
    samples_per_row: int = 1
    """The most samples that share a row."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    workers: int = 0
    """Processes that read and decode; 0: threads of this process."""
    prefetch: int = 16
    """Examples (or batches) held ready."""
    bad_samples: int = 100
    """Unreadable samples that are skipped, each reported by name, before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_rows", "samples_per_row", "prefetch"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)} must be at least 1")
        require_between("data.workers", self.workers, 0, 1024, "each is a process")
        require_between("data.prefetch", self.prefetch, 1, 65_536, "each is kept in memory")
        require(
            self.row_tokens is None or self.row_tokens >= 1,
            f"data.row_tokens={self.row_tokens} must be at least 1, or None for as many as a sample needs",
        )
        require(self.bad_samples >= 0, f"data.bad_samples={self.bad_samples} must not be negative")
        require(
            0 <= self.caption_dropout < 1,
            f"data.caption_dropout={self.caption_dropout} must lie in [0, 1); 0.1 is usual",
        )
        require(
            self.samples_per_row == 1 or self.row_tokens is not None,
            f"data.samples_per_row={self.samples_per_row} needs data.row_tokens, the length of a packed row",
        )

    @property
    def parts(self) -> "tuple[DataConfig, ...]":
        """These settings with each source of the mixture in turn; without a mixture, these alone."""
        own = [field.name for field in dataclasses.fields(SourceConfig)]
        return tuple(
            dataclasses.replace(self, mixture=(), **{name: getattr(part, name) for name in own})
            for part in self.mixture
        ) or (self,)
