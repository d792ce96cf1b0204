"""What is to be edited, from arrays to what the sampler takes: sources, masks and a strength.

In: a source for all samples or one for each, as samples or as latents; masks, True where a sample is drawn anew. Out:
an `Edit` for each batch. All that cannot work is refused before anything is computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, Num, Shaped

from lumina_jax.config import SampleConfig
from lumina_jax.generation.editing import Edit
from lumina_jax.modalities import Modality, Shape

Source = Num[np.ndarray, "..."]
"""A sample, such as uint8 [f h w 3], uint8 [h w 3] or the log mel spectrogram [t 80] of a sound; or latents, float
[f h w c]. It may be shorter in time than what is drawn, which then continues it."""
Mask = Shaped[np.ndarray, "..."]
"""Booleans, True where a sample is drawn anew: [h w] or [f h w], of a sound [t]."""


class Original(NamedTuple):
    """What one sample is made from."""

    sample: Source
    is_latent: bool
    redrawn: Bool[np.ndarray, "f h w"]
    """Of the shape of what is drawn."""


class Originals(NamedTuple):
    """What each of the samples is made from."""

    of_each: list[Original]
    strength: float
    captions: list[str] | None = None
    """What each source shows, where samples begin with the noise of their sources; None: with other noise."""
    normalized: bool = False
    """Whether each channel of the latents of a source gets the mean 0 and the deviation 1."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing is left of the sources but their noise."""
        return self.strength == 1 and all(one.redrawn.all() for one in self.of_each)

    def edit(self, indices: Sequence[int], shape: Shape, modality: Modality, autoencoder: Any) -> Edit | None:
        """The edit of a batch of samples of one shape; None: they are drawn from noise alone."""
        if self.is_plain:
            return None
        chosen = [self.of_each[index] for index in indices]
        kept = np.stack([_kept(one.redrawn, modality.latent_size(shape)) for one in chosen])
        sources = self.latents(indices, shape, modality, autoencoder)
        return Edit(sources, kept, np.asarray(self.strength, np.float32))

    def latents(
        self, indices: Sequence[int], shape: Shape, modality: Modality, autoencoder: Any
    ) -> Float[np.ndarray, "b f h w c"]:
        """Those of the sources of a batch of samples of one shape."""
        found: dict[int, np.ndarray] = {}
        chosen = [self.of_each[index] for index in indices]
        for one in chosen:
            if id(one.sample) not in found:
                latents = _latents(one, modality.latent_size(shape), modality, autoencoder)
                found[id(one.sample)] = normalized_channels(latents) if self.normalized else latents
        return np.stack([found[id(one.sample)] for one in chosen])


def originals(
    modality: Modality,
    shapes: Sequence[Shape],
    source: Source | Sequence[Source] | None,
    mask: Mask | Sequence[Mask] | None,
    strength: float | None,
    invert: str | Sequence[str] | None = None,
    normalized: bool = False,
) -> Originals | None:
    """What samples of these shapes are made from; None: of noise alone.

    Args:
      source, mask: one for all samples or a list of one for each.
      strength: None: 1, but only where a mask, a short source or `invert` says what is kept.
      invert: what the source shows, one caption for all samples or a list of one for each; samples begin with the
        noise that leads to their sources.
      normalized: give each channel of the latents of a source the mean 0 and the deviation 1 (Lumina-T2X, arXiv
        2405.05945, section 2.5), so that its colours do not stay.

    Raises:
      ValueError: a mask, a strength or `invert` without a source, a strength outside [0, 1] or beside `invert`, or a
        source or a mask of another size than what is drawn.
    """
    if source is None:
        if mask is not None or strength is not None:
            given = "a mask" if mask is not None else f"{strength=}"
            raise ValueError(f"{given} says what is drawn anew of a source, but there is none; name it with source")
        if normalized:
            raise ValueError("normalized changes the channels of a source, but there is none; name it with source")
        if invert is not None:
            raise ValueError(f"{invert=} says what a source shows, but there is none; name it with source")
        return None
    if strength is not None and not 0 <= strength <= 1:  # also of what is no number
        raise ValueError(
            f"{strength=} must be between 0, which returns the source, and 1, which draws all that no mask keeps anew"
        )
    if strength is not None and invert is not None:
        raise ValueError(
            f"{strength=} begins in the middle of a path, and {invert=} with the noise of the source; give one of them"
        )
    sources, masks = _one_each(source, len(shapes), "source"), _one_each(mask, len(shapes), "mask")
    of_each = [_original(modality, *of_one) for of_one in zip(sources, masks, shapes)]
    if normalized and not all(one.redrawn.all() for one in of_each):
        raise ValueError("normalized changes a source, but a mask or its length keeps a part of it; leave one out")
    if invert is not None:
        captions = [invert] * len(shapes) if isinstance(invert, str) else list(invert)
        if len(captions) != len(shapes):
            raise ValueError(f"invert must be one caption or a list of {len(shapes)}, but there are {len(captions)}")
        for shape, one in zip(shapes, sources):
            check_whole(one, modality, shape)
        return Originals(of_each, 1.0, captions, normalized)
    if strength is None and all(one.redrawn.all() for one in of_each):
        raise ValueError(
            "at strength 1 nothing of the source is left, because nothing is kept; choose a strength below 1, such as "
            "0.6, or mask what is drawn anew"
        )
    return Originals(of_each, 1.0 if strength is None else float(strength), normalized=normalized)


def check_resampling(settings: SampleConfig, edited: Originals | None) -> Originals | None:
    """What is edited, after a check that there is something where steps are taken again.

    Raises:
      ValueError: it is asked for.
    """
    if settings.resamplings > 1 and (edited is None or edited.is_plain):
        raise ValueError(
            f"sample.resamplings={settings.resamplings} fits what is drawn to what is kept of a source, but nothing is "
            "kept; leave it out, or name a source and a mask"
        )
    return edited


def normalized_channels(latents: Float[np.ndarray, "f h w c"]) -> Float[np.ndarray, "f h w c"]:
    """Each channel with the mean 0 and the deviation 1; a constant one is 0."""
    deviation = latents.std(axis=(0, 1, 2))
    return (latents - latents.mean(axis=(0, 1, 2))) / np.where(deviation < 1e-6, 1, deviation)


def latents_of(source: Source, shape: Shape, modality: Modality, autoencoder: Any) -> Float[np.ndarray, "f h w c"]:
    """The latents of a source that has the shape of what is drawn.

    Raises:
      ValueError: it has another one.
    """
    original = _original(modality, _one_each(source, 1, "source")[0], None, shape)
    return _latents(original, modality.latent_size(shape), modality, autoencoder)


def check_whole(source: Source, modality: Modality, shape: Shape) -> None:
    """Refuse a source that is shorter in time than what is drawn.

    Raises:
      ValueError: it is shorter, or does not fit.
    """
    source = _one_each(source, 1, "source")[0]
    if not _original(modality, source, None, shape).redrawn.all():
        raise ValueError(
            f"noise is found for a whole source, but this one is shorter in time than what is drawn, {_words(shape)}; "
            "draw as much as it has"
        )


def _one_each(given: Any, count: int, name: str) -> list[Any]:
    """One for each of `count` samples, as arrays; a picture is a clip of one frame."""
    if not isinstance(given, list | tuple):
        given = given if given is None else np.asarray(given)
        is_picture = name == "source" and given.dtype == np.uint8 and given.ndim == 3
        return [given[None] if is_picture else given] * count
    if len(given) != count:
        raise ValueError(
            f"there must be one {name} for all samples or a list of {count}, one for each, but there are {len(given)}"
        )
    return [_one_each(one, 1, name)[0] for one in given]


def _original(modality: Modality, source: Source, mask: Mask | None, shape: Shape) -> Original:
    size = modality.latent_size(shape)
    is_latent = source.ndim == 4 and source.dtype.kind == "f"
    if is_latent:
        if source.shape[3] != size[3]:
            raise ValueError(f"latents of a source must have {size[3]} channels, but have the shape {source.shape}")
        found = Shape(source.shape[1] * shape.height // size[1], source.shape[2] * shape.width // size[2], len(source))
    else:
        found = modality.extent_of(source)
    if source.dtype.kind == "f" and not np.isfinite(source).all():
        raise ValueError("a source must hold finite numbers only; draw it again, or repair it")
    along_time = modality.time_axis
    is_whole = found._replace(**{along_time: getattr(shape, along_time)}) == shape
    if not is_whole or not 0 < getattr(found, along_time) <= getattr(shape, along_time):
        raise ValueError(
            f"a source must have the size of what is drawn, {_words(shape)}, or be shorter in time, but has "
            f"{_words(found)}; crop it, or ask for its size"
        )
    redrawn = np.ones((shape.frames, shape.height, shape.width), bool)
    if found != shape or mask is not None:
        redrawn[: found.frames, : found.height, : found.width] = False
    if mask is not None:
        redrawn |= _mask(mask, shape)
    return Original(source, is_latent, redrawn)


def _mask(mask: Mask, shape: Shape) -> Bool[np.ndarray, "_ _ _"]:
    """A mask with all three axes."""
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"a mask must hold booleans, True where a sample is drawn anew, but holds {mask.dtype}")
    whole = mask.reshape((1,) * (3 - mask.ndim) + mask.shape) if mask.ndim < 3 else mask
    if whole.ndim != 3 or whole.shape[1:] != (shape.height, shape.width) or len(whole) not in (1, shape.frames):
        raise ValueError(f"a mask must have the size of what is drawn, {_words(shape)}, but has the shape {mask.shape}")
    return whole


def _words(shape: Shape) -> str:
    frames = "" if shape.frames == 1 else f"{shape.frames} frames of "
    return f"{frames}{shape.height} x {shape.width}"


def _kept(redrawn: Bool[np.ndarray, "f h w"], size: Sequence[int]) -> Float[np.ndarray, "_ _ _ 1"]:
    """1 for the latents of which nothing is drawn anew."""
    frames, height, width = size[:3]
    is_redrawn = reduce(redrawn, "(f a) (h b) (w c) -> f h w 1", "max", f=frames, h=height, w=width)
    return np.asarray(~is_redrawn, np.float32)


def _latents(
    original: Original, size: tuple[int, int, int, int], modality: Modality, autoencoder: Any
) -> Float[np.ndarray, "f h w c"]:
    """The latents of a source, its end repeated up to `size`."""
    if original.is_latent:
        found = np.asarray(original.sample, np.float32)
    elif autoencoder is None:
        found = modality.to_latents(original.sample)
    else:
        encoding = modality.encoding(autoencoder)
        mean = np.split(encoding.encode([modality.filled(original.sample)])[0], 2, axis=-1)[0]
        found = np.asarray((mean - encoding.scale.shift) * encoding.scale.scaling, np.float32)
    missing = [(0, whole - part) for whole, part in zip(size, found.shape)]
    return np.pad(found, missing, mode="edge")
