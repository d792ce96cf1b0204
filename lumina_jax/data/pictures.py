"""Any picture file to RGB on white, or a ValueError that says what is wrong with it.

In: a path, the bytes of an encoded picture, or pixels uint8 [h w 3]. Out: a PIL picture of mode RGB, upright.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def open_picture(image: Path | bytes | np.ndarray) -> Image.Image:
    """The first frame, turned as its EXIF orientation says, transparency laid on white.

    Raises:
      ValueError: no such file, not a picture, broken, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(image, Path) and not image.is_file():
        raise ValueError(f"there is no file {image}")
    try:
        if isinstance(image, np.ndarray):
            return rgb_on_white(Image.fromarray(image))
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as picture:
            check_pixels(*picture.size)
            return rgb_on_white(ImageOps.exif_transpose(picture))
    except ValueError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("the file is not a picture, or its header is broken") from error
    except Exception as error:  # the decoders of forty formats raise all sorts on broken files
        raise ValueError(f"the picture cannot be read ({type(error).__name__}: {error})") from error


def check_resizable(picture: Image.Image, *, least: int, side: int) -> None:
    """Refuse a picture smaller than `least` pixels, or so long that its shorter side cannot become `side`."""
    shorter, longer = sorted(picture.size)
    if shorter < least:
        raise ValueError(f"the picture of {picture.width} x {picture.height} pixels is smaller than a patch of {least}")
    check_pixels(side, longer * side // shorter)


def check_pixels(width: int, height: int) -> None:
    """Refuse pictures beyond PIL's limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"the picture would take {width} x {height} pixels, more than PIL's safe limit of {limit}")


def rgb_on_white(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, transparency laid on white."""
    if picture.mode in SIXTEEN_BITS:
        values = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("the picture holds floating-point values, whose range nobody knows; save it with 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
