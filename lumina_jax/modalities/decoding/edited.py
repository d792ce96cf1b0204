"""Files that are to be edited: a picture or a clip in the size that is drawn, and a mask of what is drawn anew.

In: files of any size. Out: frames uint8 [f h w 3], True where a mask is white, and sentences that say what was changed:
transparency is laid on white, and what does not fit is resized and cropped to its middle.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from lumina_jax.modalities.decoding.buckets import Size, center_crop
from lumina_jax.modalities.decoding.clips import read_frames
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.decoding.pictures import open_picture, opened
from lumina_jax.modalities.decoding.videos import Moments

WHITE = 128
"""The least byte of a mask that counts as white."""


def is_still(file: Path) -> bool:
    """Whether a file is a picture of one frame.

    Raises:
      ValueError: there is no such file, or it is broken.
    """
    try:
        with opened(file) as picture:
            return getattr(picture, "n_frames", 1) == 1
    except UnidentifiedImageError:
        return False


def read_still(file: Path, size: Size | None) -> tuple[UInt8[np.ndarray, "1 h w 3"], Size, list[str]]:
    """A picture cropped to `size`, (width, height), if that is given, its size before, and what was changed.

    Raises:
      ValueError: it cannot be read; the message names the file.
    """
    picture = _read(file)
    notices = _about_header(file)
    if size is None or picture.size == size:
        return np.asarray(picture)[None], picture.size, notices
    notices.append(_cropping(file, picture.size, size))
    return np.asarray(center_crop(picture, size))[None], picture.size, notices


def read_moving(
    file: Path, size: Size | None, moments: Moments
) -> tuple[UInt8[np.ndarray, "f h w 3"], Size, list[str]]:
    """The frames of a clip at some moments, as `read_still`."""
    sizes: set[Size] = set()

    def cropped(frame: Image.Image) -> Image.Image:
        sizes.add(frame.size)
        return center_crop(frame, size or frame.size)

    try:
        frames = np.stack([np.asarray(frame) for frame in read_frames(Clip(file), moments, cropped)])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    before = min(sizes)
    return frames, before, [] if size is None or before == size else [_cropping(file, before, size)]


def read_mask(file: Path, source: Size, size: Size | None) -> Bool[np.ndarray, "h w"]:
    """Where a mask is white: 128 or more of 255, transparent included. It is cropped as the source is, and a pixel is
    white if a part of it was.

    Args:
      source: the size (width, height) of the source before it was cropped, which the mask must have.
      size: that of what is drawn; None: the mask is not cropped.

    Raises:
      ValueError: it cannot be read, has another size, or is black everywhere.
    """
    picture = _read(file).convert("L")
    if picture.size != source:
        raise ValueError(
            f"the mask must have the size of the source, {source[0]} x {source[1]} pixels, but {file} has "
            f"{picture.width} x {picture.height}"
        )
    white = Image.fromarray(np.where(np.asarray(picture) >= WHITE, 255, 0).astype(np.uint8))
    found = np.asarray(center_crop(white, size or source, Image.Resampling.BOX)) > 0
    if not found.any():
        raise ValueError(f"{file} is black wherever the source is taken, so it draws nothing anew; paint a part white")
    return found


def read_white(file: Path) -> Bool[np.ndarray, "h w"]:
    """Where a picture is white: 128 or more of 255, transparent included.

    Raises:
      ValueError: it cannot be read.
    """
    return np.asarray(_read(file).convert("L")) >= WHITE


def surrounded(
    frames: UInt8[np.ndarray, "f h w 3"], redrawn: Bool[np.ndarray, "h w"] | None, corner: tuple[int, int], size: Size
) -> tuple[UInt8[np.ndarray, "f height width 3"], Bool[np.ndarray, "height width"]]:
    """A source within larger frames, its edges repeated up to theirs, and a mask that has them drawn anew.

    Args:
      corner: the left and top pixel of the source.

    Raises:
      ValueError: the source reaches beyond the frames, or fills them.
    """
    (left, top), (height, width) = corner, frames.shape[1:3]
    right, bottom = size[0] - left - width, size[1] - top - height
    if min(left, top, right, bottom) < 0 or not max(left, top, right, bottom):
        raise ValueError(
            f"a source of {width} x {height} pixels whose left upper corner is at {left},{top} must lie within the "
            f"{size[0]} x {size[1]} pixels of what is drawn, and leave some of them; ask for another size"
        )
    around = (top, bottom), (left, right)
    mask = np.zeros((height, width), bool) if redrawn is None else redrawn
    return np.pad(frames, ((0, 0), *around, (0, 0)), mode="edge"), np.pad(mask, around, constant_values=True)


def _read(file: Path) -> Image.Image:
    try:
        return open_picture(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _about_header(file: Path) -> list[str]:
    """What a file has that a picture to be edited does not."""
    with opened(file) as picture:
        frames = getattr(picture, "n_frames", 1)
        notices = [f"{file} is animated: its first frame is taken"] if frames > 1 else []
        return [*notices, f"{file} is transparent: it is laid on white"] if picture.has_transparency_data else notices


def _cropping(file: Path, before: Size, size: Size) -> str:
    how = "resized" if before[0] * size[1] == before[1] * size[0] else "resized and cropped to its middle"
    return f"{file} of {before[0]} x {before[1]} pixels is {how}: {size[0]} x {size[1]}"
