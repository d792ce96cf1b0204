"""Where samples come from: a class for each kind of source, with the settings of that kind alone."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from lumina_jax.config.choice import Choice
from lumina_jax.config.section import require


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Choice):
    """What every kind of source has."""

    called: ClassVar[str] = "data."
    needs_path: ClassVar[bool] = True
    """Whether the path must be given."""

    path: str = ""
    """Where the source is."""
    limit: int | None = None
    """Use only the first samples of the source, at most this number of them; None: all."""
    held_out: float = 0.0
    """Share of the samples that are never trained on, so that the loss can be measured on them. The name of a sample
    decides whether it is one of them (docs/training.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.limit is None or self.limit >= 1, f"data.limit={self.limit} must be at least 1, or None for no limit"
        )
        require(
            0 <= self.held_out < 1,
            f"data.held_out={self.held_out} must be a share of the samples, at least 0 and below 1; 0.02 is usual",
        )
        require(
            bool(self.path) or not self.needs_path,
            f"data.source={self.kind!r} needs data.path; see --help for what it names",
        )


@dataclass(frozen=True, kw_only=True)
class EmojiConfig(SourceConfig):
    """The emoji that come with the package, or larger ones."""

    needs_path: ClassVar[bool] = False

    kind: Literal["emoji"] = "emoji"
    """emoji of two styles, embedded in the package."""
    path: str = ""
    """A folder that tools/build_emoji.py filled with pictures of another size; nothing: the embedded ones."""
    split: str = "train"
    """Which pairs of name and style are used: train, held_out or all."""
    emoji_names: int = 48
    """Number of emoji names; each name is drawn in two styles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.emoji_names >= 1, f"data.emoji_names={self.emoji_names} must be at least 1")
        require(
            not self.held_out or self.split == "all",
            f"data.split={self.split!r} of the emoji holds out one picture in eight already; leave out "
            f"data.held_out={self.held_out}, or set data.split='all'",
        )


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """A folder of pictures, clips, views or sounds."""

    kind: Literal["folder"] = "folder"
    """files with a .jsonl of captions, with texts beside them, or in one folder for each class."""
    path: str = ""
    """The folder, or its .jsonl file."""
    split: str = "train"
    """Which of the folders train, test, ... is used, where there are such."""
    caption: str = ""
    """The caption of every sample, such as "a photo of zbx dog" or "{name}, sketch style": {name} is the name of its
    file, with spaces for _ and -, and {caption} the caption that the folder gives. Nothing: that caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(re.findall(r"{([^{}]*)}", self.caption)) - {"name", "caption"})
        require(
            not unknown,
            f"data.caption={self.caption!r} may contain {{name}} and {{caption}}, but not {{{'}, {'.join(unknown)}}}",
        )


@dataclass(frozen=True, kw_only=True)
class LuminaYamlConfig(SourceConfig):
    """The lists of samples that the authors' code reads."""

    kind: Literal["lumina"] = "lumina"
    """the authors' YAML file, which names lists of samples."""
    path: str = ""
    """The .yaml file."""


@dataclass(frozen=True, kw_only=True)
class TfdsConfig(SourceConfig):
    """A data set of tensorflow-datasets."""

    kind: Literal["tfds"] = "tfds"
    """a builder of tensorflow-datasets, prepared as array_record."""
    path: str = ""
    """The builder, such as cifar10:3.*.*."""
    split: str = "train"
    """Any split expression, such as train[:10%]."""
    image_key: str = "image"
    """Feature that holds the picture."""
    caption_key: str = "caption"
    """Feature that holds the caption, or a class label whose name is the caption."""
    label_key: str = "label"
    """Feature that holds the label of a label-conditional model."""
    data_dir: str | None = None
    """Folder of prepared data; None: the default of tensorflow-datasets."""


@dataclass(frozen=True, kw_only=True)
class PreparedConfig(SourceConfig):
    """A data set that `data prepare` made."""

    kind: Literal["prepared"] = "prepared"
    """a folder that `data prepare` made."""
    path: str = ""
    """The folder."""
    split: str = "train"
    """Which part of the samples is used, where some are held out: train, held_out, unknown or all."""
    captions: tuple[str, ...] = ()
    """Further kinds of captions that the folder has, such as tags or de. At each visit of a sample one kind is drawn,
    the first caption counting as a kind, and a caption of that kind."""
