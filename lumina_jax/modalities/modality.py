"""What one kind of data is: the questions that the rest of the package asks, and that each modality answers.

A `Modality` is made from the settings of one source. It owns the geometry (pixels of a patch, size of the latents, what
was trained on), the way from media to arrays and to latents and back, the autoencoder if there is one, what a sample
looks like, its files, and how samples are judged. Nothing else asks whether a sample is a picture or a sound.

    media  --decode-->  pixels or spectrogram  --to_latents-->  latents [f h w c]                  without autoencoder
    media  --encoding-->  distribution of the latents, in a cache                                  with an autoencoder
    latents  --from_latents-->  values  --shown-->  sample  --preview, files-->  png, gif, mp4, wav
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, UInt8

from lumina_jax.config import AutoencoderConfig, DataConfig, ModalityConfig, ModelConfig, TextConfig
from lumina_jax.evaluation.finding import Finding
from lumina_jax.modalities.decoding.media import Media
from lumina_jax.modalities.encoding import Encoding

LONGEST_SECONDS = 86_400.0
TimeAxis = Literal["frames", "width"]


class Shape(NamedTuple):
    """Pixels of a picture, and the frames of a clip or the views of an object. A sound is 1 x frames of its
    spectrogram."""

    height: int
    width: int
    frames: int = 1


class Asked(NamedTuple):
    """The size of samples as a user asks for it; None: as in training."""

    size: int | None = None
    """Height and width in pixels."""
    height: int | None = None
    width: int | None = None
    video_frames: int | None = None
    views: int | None = None
    seconds: float | None = None

    def checked(self) -> "Asked":
        """The same, after numbers that no sample can have were refused.

        Raises:
          ValueError: one of them is such a number, or two of them contradict each other.
        """
        for name, value in self._replace(seconds=None)._asdict().items():
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.seconds is not None and not 0 < self.seconds <= LONGEST_SECONDS:
            raise ValueError(f"seconds={self.seconds} must be positive, and at most {LONGEST_SECONDS:.0f}")
        if self.video_frames is not None and self.views is not None:
            raise ValueError("--video-frames and --views both say how many frames there are; give one of them")
        return self

    def given(self, *names: str) -> list[str]:
        """The flags among these names that are given."""
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


class SourceFile(NamedTuple):
    """A file as a sample that is to be edited."""

    sample: np.ndarray
    """As `Modality.decode` gives it, or shorter in time than what is drawn."""
    mask: Bool[np.ndarray, "h w"] | None = None
    """True where it is drawn anew; None: the file of no mask was given."""
    notices: tuple[str, ...] = ()
    """What was changed about the files, as sentences."""


@runtime_checkable
class Files(Protocol):
    """How samples become files. It is made before weights are read, so that a missing package is refused then."""

    @property
    def rate(self) -> float:
        """Frames or samples a second."""
        ...

    def frames(self, sample: Any) -> UInt8[np.ndarray, "_ _ _ 3"]:
        """A sample as pictures: its frames, its views, or one picture of a sound."""
        ...

    def save(self, path: Path, sample: Any) -> None:
        """Write the files of a sample that come beside its PNG, which is at `path`."""
        ...

    def plural(self, *, is_moving: bool) -> str:
        """What samples are called, such as "pictures"; `is_moving`: one of them has several frames."""
        ...

    def about(self, asked: "Asked", shape: "Shape") -> dict[str, Any]:
        """What a PNG says of the size of samples, as JSON; `shape`: of the first."""
        ...


@runtime_checkable
class Judge(Protocol):
    """How well samples show what their prompts say."""

    def __call__(
        self,
        prompts: Sequence[str],
        drawn: Sequence[np.ndarray],
        true: Sequence[np.ndarray],
        is_held_out: Bool[np.ndarray, " n"],
    ) -> Iterator[str | Finding]:
        """Lines of a report on what was drawn from these prompts, with or without the numbers in them; `true` are
        samples of the data with these prompts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Modality(ABC):
    """One kind of data, with the settings of one source of it."""

    index: int
    """Its index in the modalities of the model."""
    config: ModalityConfig
    data: DataConfig
    vae: AutoencoderConfig
    """Its autoencoder; without a path it has none."""
    factor: int = 1
    """Pixels along a side of a value of the latents, or frames of a spectrogram; 1 without an autoencoder."""

    plural: ClassVar[str]
    """What samples are called, such as "pictures"."""
    values: ClassVar[tuple[str, int] | None] = None
    """What the model is trained on without an autoencoder, such as "pictures", and its channels; None: any number."""
    is_bytes: ClassVar[bool] = False
    """Whether samples are bytes 0..255, whose density bounds their bits."""
    time_axis: ClassVar[TimeAxis] = "frames"
    """The number of a shape that says how long a sample is in time."""
    one_sample_a_caption: ClassVar[bool] = False
    """Whether an evaluation draws each caption once, even where the data have several samples of it."""

    @classmethod
    def of_source(
        cls, data: DataConfig, model: ModelConfig, vae: AutoencoderConfig, factor: int | None = None
    ) -> "Modality":
        """The modality of a source; see `modality_of_source`.

        Raises:
          ValueError: the files of its autoencoder are missing, or its latents do not fit the model or the samples.
        """
        made = cls(
            index=model.modality_index(data.modality), config=model.modality_of(data.modality), data=data, vae=vae
        )
        if not vae.path:
            return made
        if factor is not None:
            return replace(made, factor=factor)
        factor, channels = made.read_autoencoder()
        if channels != made.config.channels:
            raise ValueError(
                f"model.channels={made.config.channels} must be the {channels} channels of the latents of {vae.path!r}"
                + (f", the autoencoder of the modality {made.config.name!r}" if model.others else "")
            )
        made = replace(made, factor=factor)
        made.check_factor()
        return made

    def check_values(self) -> None:
        """Refuse a model of other channels than the values that it is trained on without an autoencoder."""
        if self.values is None or self.vae.path:
            return
        name, channels = self.values
        if self.config.channels != channels:
            raise ValueError(
                f"{name} have {channels} channels, but model.channels={self.config.channels}; set it to {channels}, or "
                "name an autoencoder in vae.path"
            )

    # Geometry

    @property
    @abstractmethod
    def patch_extent(self) -> tuple[int, int]:
        """Height and width of a patch in pixels, or in rows and frames of a spectrogram."""

    @property
    @abstractmethod
    def trained_shape(self) -> Shape:
        """The shape of the samples trained on, or of the longest of them."""

    @property
    def latent_extents(self) -> list[tuple[int, int, int]]:
        """Frames, height and width of the latents of training, of every size that they may have or of the longest."""
        return [self.latent_size(self.trained_shape)[:3]]

    def latent_size(self, shape: Shape) -> tuple[int, int, int, int]:
        """The size of the latents [f h w c] of a sample."""
        return shape.frames, shape.height // self.factor, shape.width // self.factor, self.config.channels

    def shape_for(self, prompt: str, text: TextConfig) -> Shape:
        """The shape of a sample of this prompt where none is asked for."""
        return self.trained_shape

    def asked_shapes(self, asked: Asked, prompts: Sequence[str], text: TextConfig) -> list[Shape]:
        """The shape of a sample of each prompt.

        Raises:
          ValueError: what is asked for means nothing for this modality.
        """
        if given := asked.given(*Asked._fields):
            raise ValueError(f"{' and '.join(given)} cannot be asked for, because this draws {self.plural}")
        return [self.shape_for(prompt, text) for prompt in prompts]

    # Media to latents, and back

    @abstractmethod
    def decode(self, media: Media, draws: random.Random | None) -> np.ndarray:
        """What a record shows, cropped as for training.

        Args:
          draws: for random crops and moments; None: the middle.

        Raises:
          ValueError: it cannot be read, or is not of this modality.
        """

    @abstractmethod
    def to_latents(self, decoded: np.ndarray) -> Float[np.ndarray, "f h w c"]:
        """What a model without an autoencoder is trained on, about -1..1."""

    @abstractmethod
    def from_latents(self, latents: Float[np.ndarray, "b f h w c"], autoencoder: Any) -> Float[np.ndarray, "b ..."]:
        """The inverse of `to_latents` but for the range of values; `autoencoder` decodes them, None: there is none."""

    @abstractmethod
    def shown(self, values: Float[np.ndarray, "b ..."]) -> np.ndarray:
        """Samples [b ...], as `decode` gives them, of what `from_latents` returns."""

    # Samples that are edited

    def extent_of(self, sample: np.ndarray) -> Shape:
        """The shape of a sample that is to be edited.

        Raises:
          ValueError: it is none of this modality, or samples of this modality cannot be edited.
        """
        raise self._without_editing()

    def filled(self, sample: np.ndarray) -> np.ndarray:
        """A sample at a length that its autoencoder takes."""
        return sample

    def read_source(
        self, file: Path, mask: Path | None, shape: Shape, corner: tuple[int, int] | None = None
    ) -> SourceFile:
        """A file, and perhaps one of a mask, cropped to what is drawn.

        Args:
          corner: left and top pixel of a smaller source in what is drawn, which surrounds it; None: it is cropped.

        Raises:
          ValueError: a file cannot be read, or is not of this modality, or the mask has another size, or the source
            does not fit at `corner`.
        """
        raise self._without_editing()

    def _without_editing(self) -> ValueError:
        return ValueError(f"a source cannot be edited, because this draws {self.plural}; leave it out")

    # The autoencoder

    def read_autoencoder(self) -> tuple[int, int]:
        """Factor and channels of the autoencoder in `vae.path`; its weights are not read.

        Raises:
          ValueError: its files are missing or damaged, or this modality has no autoencoders.
        """
        raise self._without_autoencoder()

    def check_factor(self) -> None:
        """Refuse an autoencoder whose factor does not fit the samples."""
        for size, unit in zip(self.trained_shape, self.patch_extent):
            if size % unit:
                raise ValueError(f"samples of {self.trained_shape} must be multiples of the patch {self.patch_extent}")

    def load_autoencoder(self, mesh: Mesh | None) -> Any:
        """The autoencoder in `vae.path`, on the devices of a mesh; None: on the default device."""
        raise self._without_autoencoder()

    def encoding(self, autoencoder: Any) -> Encoding:
        """How samples of the source become latents."""
        raise self._without_autoencoder()

    def _without_autoencoder(self) -> ValueError:
        return ValueError(f"no autoencoder is known for {self.plural}, but vae.path={self.vae.path!r}; leave it out")

    # What a sample looks like, its files, and its score

    @abstractmethod
    def preview(self, sample: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """A sample on one picture."""

    def files(self, frame_rate: float) -> Files:
        """How samples become files, by default only the PNG of their preview.

        Args:
          frame_rate: frames a second of what moves.

        Raises:
          ValueError: a package or a file that it takes is missing.
        """
        return PreviewFiles(self)

    def judge(self, captions: Callable[[], Sequence[str]], files: Files) -> Judge:
        """How samples are judged.

        Args:
          captions: reads all captions of the data.

        Raises:
          ValueError: a package that it takes is missing, or nobody has said what good samples are.
        """
        raise ValueError(f"no score is known for {self.plural}; draw some with sample.py, and look at them")


class PreviewFiles(NamedTuple):
    """Samples as the PNG of their preview alone; see `Files`."""

    modality: Modality
    rate: float = 1.0

    def frames(self, sample: np.ndarray) -> UInt8[np.ndarray, "1 _ _ 3"]:
        return self.modality.preview(sample)[None]

    def save(self, path: Path, sample: np.ndarray) -> None:
        """There is nothing beside the PNG."""

    def plural(self, *, is_moving: bool) -> str:
        return self.modality.plural

    def about(self, asked: Asked, shape: Shape) -> dict[str, Any]:
        return shape._asdict()
