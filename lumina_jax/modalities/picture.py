"""Pictures: pixels, cropped to a square or to one of the authors' buckets, or their latents; saved as PNG.

All that consists of frames has this in common; clips, views and grids of views differ from it in little.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from lumina_jax.config import TextConfig, VisualConfig
from lumina_jax.encoders.image_vae import ImageVae, load_image_vae
from lumina_jax.encoders.vae_files import read_vae_config, vae_folder
from lumina_jax.evaluation.retrieval import pixel_report
from lumina_jax.modalities.decoding.buckets import Size, best_crop, bucket_crop, center_square, crop_sizes
from lumina_jax.modalities.decoding.edited import is_still, read_mask, read_moving, read_still, surrounded
from lumina_jax.modalities.decoding.frames import moments, read_pictures
from lumina_jax.modalities.decoding.media import LatentDistribution, Media, Sound
from lumina_jax.modalities.decoding.pictures import check_resizable
from lumina_jax.modalities.encoding import PART_SAMPLES, LatentScale
from lumina_jax.modalities.files.movies import FrameFiles, frame_sheet
from lumina_jax.modalities.modality import Asked, Files, Judge, Modality, Shape, SourceFile
from lumina_jax.tokens import pixels_to_unit, unit_to_pixels

PART_PIXELS = 2**26
"""A file of the cache holds fewer samples than usual if they have more pixels than these."""
BATCH_PIXELS = 2**20
"""Pixels that each device encodes at once, or those of one frame if it has more."""


@dataclass(frozen=True, kw_only=True)
class PictureModality(Modality):
    """Pictures."""

    plural: ClassVar[str] = "pictures"
    values: ClassVar[tuple[str, int] | None] = ("pictures", 3)
    is_bytes: ClassVar[bool] = True

    @property
    def media(self) -> VisualConfig:
        """What is taken of each sample."""
        assert isinstance(self.data.media, VisualConfig)
        return self.data.media

    @property
    def patch_extent(self) -> tuple[int, int]:
        return self._unit, self._unit

    @property
    def trained_shape(self) -> Shape:
        frames, height, width = self.media.extent()
        return Shape(height, width, frames)

    @property
    def latent_extents(self) -> list[tuple[int, int, int]]:
        frames = self.trained_shape.frames
        return [(frames, height // self.factor, width // self.factor) for width, height in self.sizes]

    @functools.cached_property
    def sizes(self) -> tuple[Size, ...]:
        """All (width, height) in pixels that a sample of training may have after cropping."""
        if self.media.crop == "square":
            return ((self.trained_shape.width, self.trained_shape.height),)
        return tuple(crop_sizes((self.media.image_size // self._unit) ** 2, self._unit))

    def asked_shapes(self, asked: Asked, prompts: Sequence[str], text: TextConfig) -> list[Shape]:
        if asked.seconds is not None:
            raise ValueError("--seconds says how long a sound is, but this draws pictures; use --video-frames")
        return [self._asked_shape(asked)] * len(prompts)

    def decode(self, media: Media, draws: random.Random | None) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames that are trained on, all cropped alike."""
        if isinstance(media, Sound):
            raise ValueError(f"the sample is a sound, but data.media is {self.media.kind!r}; set it to 'sounds'")
        if isinstance(media, LatentDistribution):
            raise ValueError("the record holds latents already")
        state: list[object] = []

        def cropped(picture: Image.Image) -> Image.Image:
            check_resizable(picture, least=self._unit, side=self.media.image_size)
            if self.media.crop == "square":
                return center_square(picture, self.media.image_size)
            if draws is None:
                return best_crop(picture, self.sizes)
            state.append(draws.getstate())
            draws.setstate(state[0])  # type: ignore[arg-type]
            return bucket_crop(picture, self.sizes, draws)

        return np.stack([np.asarray(picture) for picture in read_pictures(media, self.media, draws, cropped)])

    def extent_of(self, sample: np.ndarray) -> Shape:
        if sample.ndim != 4 or sample.shape[3] != 3 or sample.dtype != np.uint8:
            raise ValueError(
                f"a source must be pixels, uint8 [h w 3] or [f h w 3], but is {sample.dtype} {sample.shape}"
            )
        return Shape(sample.shape[1], sample.shape[2], len(sample))

    def read_source(
        self, file: Path, mask: Path | None, shape: Shape, corner: tuple[int, int] | None = None
    ) -> SourceFile:
        """A picture; where several frames are drawn, it is the first, or the file is a clip that may be shorter."""
        size = (shape.width, shape.height) if corner is None else None
        if shape.frames == 1 or is_still(file):
            frames, before, notices = read_still(file, size)
        else:
            wanted = self.media.replace(frames=shape.frames)
            frames, before, notices = read_moving(file, size, lambda seconds: moments(seconds, wanted, None))
        redrawn = None if mask is None else read_mask(mask, before, size)
        if corner is not None:
            frames, redrawn = surrounded(frames, redrawn, corner, (shape.width, shape.height))
        return SourceFile(frames, redrawn, tuple(notices))

    def to_latents(self, decoded: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f h w 3"]:
        return pixels_to_unit(decoded)

    def from_latents(
        self, latents: Float[np.ndarray, "b f v u c"], autoencoder: ImageVae | None
    ) -> Float[np.ndarray, "b f h w 3"]:
        """An autoencoder decodes frames one after another, so memory is that of one."""
        if autoencoder is None:
            return np.asarray(latents)
        return np.stack([np.asarray(autoencoder.decode(frame)) for frame in jnp.unstack(latents, axis=1)], axis=1)

    def shown(self, values: Float[np.ndarray, "b f h w 3"]) -> UInt8[np.ndarray, "b f h w 3"]:
        return unit_to_pixels(values)

    def read_autoencoder(self) -> tuple[int, int]:
        found = read_vae_config(vae_folder(self.vae.path))
        return found.factor, found.channels

    def check_factor(self) -> None:
        if self.media.image_size % self._unit:
            raise ValueError(
                f"data.image_size={self.media.image_size} must be a multiple of {self._unit} pixels: each value of the "
                f"latent stands for {self.factor}, and model.patch_size={self.config.patch_size}"
            )

    def load_autoencoder(self, mesh: Mesh | None) -> ImageVae:
        return load_image_vae(self.vae.path, dtype=self.vae.dtype, tile=self.vae.tile, mesh=mesh)

    def encoding(self, autoencoder: ImageVae) -> "PictureEncoding":
        return PictureEncoding(self, autoencoder)

    def preview(self, sample: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        return frame_sheet(sample)

    def files(self, frame_rate: float) -> Files:
        return FrameFiles(frame_rate)

    def judge(self, captions: Callable[[], Sequence[str]], files: Files) -> Judge:
        """The nearest true sample by pixels must have the same caption."""
        return pixel_report

    @property
    def _unit(self) -> int:
        """Pixels along a side of a patch."""
        return self.config.patch_size * self.factor

    def _asked_shape(self, asked: Asked) -> Shape:
        size = _first(asked.size, self.media.image_size)
        frames = _first(asked.video_frames, asked.views, self.media.frames)
        return Shape(_first(asked.height, size), _first(asked.width, size), frames)


def _first(*values: int | None) -> int:
    """The first that is given."""
    return next(value for value in values if value is not None)


class PictureEncoding:
    """Pictures and clips through an image autoencoder, frame by frame; every sample is cropped in one way, the middle.

    With buckets the crop has the size that keeps most of a picture; of a clip longer than its frames the middle is
    taken. See `Encoding`.
    """

    def __init__(self, modality: PictureModality, autoencoder: ImageVae):
        self._modality, self._vae = modality, autoencoder
        self.devices, self.channels = autoencoder.devices, autoencoder.channels
        taken, unit = modality.media, modality.patch_extent[0]
        frames = f"{taken.frames}x{taken.frame_rate or 'all'}"
        frames += "" if taken.grid_columns is None else f"-grid{taken.grid_columns}"
        self.folder = f"{autoencoder.fingerprint}-{taken.crop}-{taken.image_size}-{unit}-{frames}"
        self.part_samples = max(1, min(PART_SAMPLES, PART_PIXELS // (taken.frames * taken.image_size**2)))
        self.scale = LatentScale(autoencoder.config.shift, autoencoder.config.scaling)

    def __call__(self, media: Media) -> UInt8[np.ndarray, "f h w 3"]:
        return self._modality.decode(media, None)

    def batch_size(self, sample: UInt8[np.ndarray, "f h w 3"]) -> int:
        return -(-self._frames_at_once(sample) // len(sample))

    def encode(self, samples: list[np.ndarray]) -> Float[np.ndarray, "b f v u z"]:
        """The last batch of frames is filled up, so that one program serves a size."""
        frames = np.concatenate(samples)
        at_once = self._frames_at_once(frames)
        filled = np.concatenate([frames, *[frames[-1:]] * (-len(frames) % at_once)])
        moments = []
        for start in range(0, len(filled), at_once):
            posterior = self._vae.encode(pixels_to_unit(filled[start : start + at_once]))
            moments.append(np.concatenate([np.asarray(half) for half in posterior], axis=-1))
        kept = np.concatenate(moments)[: len(frames)]
        return kept.reshape(len(samples), -1, *kept.shape[1:])

    def _frames_at_once(self, frames: UInt8[np.ndarray, "f h w 3"]) -> int:
        return self.devices * max(1, BATCH_PIXELS // (frames.shape[1] * frames.shape[2]))
