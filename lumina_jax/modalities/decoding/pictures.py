"""Any picture file to RGB on white, or a ValueError that says what is wrong with it.

In: a path, the bytes of an encoded picture, or pixels uint8 [h w 3]. Out: a PIL picture of mode RGB, upright. Threads
that decode share an amount of memory (`memory.py`).
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lumina_jax.modalities.decoding.kinds import HEIC, check_file, file_kind, mistaken
from lumina_jax.modalities.decoding.memory import DECODING

SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
DECODING_BYTES = 8
"""Memory that a pixel takes while it is decoded, made RGB and resized."""
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that PIL tells by their headers and cannot decode, or only by running another program."""
BAND_PIXELS = 2**20
"""Pixels that are made RGB at once."""
Finish = Callable[[Image.Image], Image.Image]
"""What is done to each picture as soon as it is decoded, such as cropping, so that memory holds one at a time."""


def as_decoded(picture: Image.Image) -> Image.Image:
    """A `Finish` that leaves pictures as they are."""
    return picture


def open_picture(image: Path | bytes | np.ndarray, finish: Finish = as_decoded) -> Image.Image:
    """The first frame, turned as its EXIF orientation says, transparency laid on white, and finished.

    Raises:
      ValueError: no such file, not a picture, broken, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else opened(image)
    except UnidentifiedImageError:
        assert not isinstance(image, np.ndarray)
        what = mistaken(image, "image")
        no_picture = "the file is not a picture, or its header is broken"
        raise ValueError(f"the file cannot be read as a picture: {what}" if what else no_picture) from None
    except TypeError as error:
        raise ValueError(f"the array is no picture ({error})") from None
    with DECODING.reserved(picture.width * picture.height * DECODING_BYTES):
        picture = _decoded(picture)  # the name no longer holds the pixels as they were in the file
        finished = finish(picture)
        del picture
        return finished


def opened(file: Path | bytes) -> Image.Image:
    """A picture or an animation of which no more than the header was read.

    Raises:
      UnidentifiedImageError: it is neither.
      ValueError: no such file, broken, or far larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(file, Path):
        check_file(file)
    try:
        try:
            picture = _header(file)
        except UnidentifiedImageError:
            if file_kind(file) is not HEIC or not _reads_heic():
                raise
            picture = _header(file)
    except (UnidentifiedImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"the picture would take more than twice {_limit()}") from None
    except Exception as error:  # the decoders of forty formats raise all sorts on broken files
        raise ValueError(f"the picture cannot be read ({type(error).__name__}: {error})") from error
    if picture.format in NO_PICTURES:
        raise UnidentifiedImageError(f"{picture.format} is no format of pictures")
    return picture


def check_resizable(picture: Image.Image, *, least: int, side: int) -> None:
    """Refuse a picture smaller than `least` pixels, or so long that its shorter side cannot become `side`."""
    shorter, longer = sorted(picture.size)
    if shorter < least:
        raise ValueError(f"the picture of {picture.width} x {picture.height} pixels is smaller than a patch of {least}")
    check_pixels(side, longer * side // shorter)


def check_pixels(width: int, height: int) -> None:
    """Refuse pictures beyond PIL's limit."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"the picture would take {width} x {height} pixels, more than {_limit()}")


def rgb_on_white(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, transparency laid on white; the same one if it is RGB."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        picture.load()
        return picture
    rows = max(1, BAND_PIXELS // picture.width)
    if rows >= picture.height:
        return _converted(picture)
    whole = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        whole.paste(_converted(band), (0, top))
    return whole


def _header(file: Path | bytes) -> Image.Image:
    return Image.open(file if isinstance(file, Path) else io.BytesIO(file))


def _decoded(picture: Image.Image) -> Image.Image:
    """RGB on white, upright."""
    try:
        with picture:
            check_pixels(*picture.size)
            ImageOps.exif_transpose(picture, in_place=True)
            return rgb_on_white(picture)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # see `opened`
        raise ValueError(f"the picture cannot be read ({type(error).__name__}: {error})") from error


def _converted(picture: Image.Image) -> Image.Image:
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


def _limit() -> str:
    return f"PIL's safe limit of {Image.MAX_IMAGE_PIXELS}; make it smaller, or cut it"


def _reads_heic() -> bool:
    """Whether PIL reads HEIC pictures from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
