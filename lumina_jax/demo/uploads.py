"""Files that a browser sends: pictures that remember their settings, and sources that are edited.

In: the path of an uploaded file. Out: what it says, or a copy of it beside the drawn samples in the size that is drawn,
named by its content; or a ValueError for the user. No other file is read, whatever path a request names.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageColor

from lumina_jax.demo.picture_settings import PictureSettings, settings_of
from lumina_jax.demo.runs import ShownRun
from lumina_jax.failures import message
from lumina_jax.modalities.decoding.edited import is_still
from lumina_jax.modalities.decoding.pictures import open_picture, opened
from lumina_jax.modalities.files.png import PARAMETERS, written_whole
from lumina_jax.run import samples_folder

MOST_MEGABYTES = 64
"""Of a file."""
PAINTED_SIDE = 640
"""Pixels of the longer side of a picture that is painted on."""
LONGEST_SETTINGS = 1 << 20
"""Characters of the settings in a PNG."""


def uploaded(path: str | None, folder: Path) -> Path:
    """The file of an upload.

    Args:
      folder: where the server puts uploads.

    Raises:
      ValueError: there is none, or it lies elsewhere.
    """
    if not path:
        raise ValueError("choose a file first")
    file = Path(path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise ValueError("the file was not uploaded to this page; drop it here again")
    return file


def settings_in(file: Path) -> PictureSettings:
    """The settings that a picture of `lumina sample` carries.

    Raises:
      ValueError: it is no PNG, or carries none.
    """
    try:
        with opened(file) as picture:
            is_png, text = picture.format == "PNG", getattr(picture, "text", {}).get(PARAMETERS)
    except ValueError as error:  # what PIL cannot identify is one, too
        raise ValueError(f"{file.name} is no picture that can be read; drop a PNG that was drawn here") from error
    except OSError as error:
        raise ValueError(f"{file.name} is no picture; drop a PNG that was drawn here") from error
    if not is_png or text is None:
        raise ValueError(f"{file.name} carries no settings; drop a PNG that this page or `lumina sample` has drawn")
    if len(text) > LONGEST_SETTINGS:
        raise ValueError(f"the settings in {file.name} are longer than those of any picture; drop another one")
    return settings_of(text, f"the settings in {file.name}")


def kept_source(path: str | None, uploads: Path, run: ShownRun) -> tuple[Path, tuple[str, ...]]:
    """A copy of an uploaded source beside what the run draws, with a name that its content decides, and what is changed
    about it where it is drawn in the size of training.

    Raises:
      ValueError: it was not uploaded, or is nothing that the run can edit.
    """
    file = uploaded(path, uploads)
    try:
        notices = run.modality.read_source(file, None, run.trained_shape).notices
    except (ValueError, OSError) as error:
        raise ValueError(message(error).replace(str(file), file.name)) from error
    content = file.read_bytes()
    kept = _kept(content, sources_of(run), "source", file.suffix.lower() if file.suffix[1:].isalnum() else "")
    return kept, tuple(notice.replace(str(file), file.name) for notice in notices)


def sources_of(run: ShownRun) -> Path:
    """The folder of what is edited, beside what is drawn."""
    return samples_folder(run.folder) / "sources"


def kept_mask(redrawn: Bool[np.ndarray, "h w"], folder: Path) -> Path:
    """A mask as a file for `--mask`."""
    buffer = io.BytesIO()
    Image.fromarray(redrawn.astype(np.uint8) * 255).save(buffer, format="PNG")
    return _kept(buffer.getvalue(), folder, "mask", ".png")


def painted(layers: Sequence[Any], size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | None:
    """Where the layers of an editor are painted on, in a picture of this size (width, height); None: nowhere.

    A pixel of the picture is painted if a part of it is.
    """
    found = np.zeros((size[1], size[0]), bool)
    for layer in layers:
        if layer is None:
            continue
        alpha = np.asarray(layer)[..., 3] > 0
        part = Image.fromarray(alpha.astype(np.uint8) * 255)
        is_larger = part.width >= size[0] and part.height >= size[1]
        found |= np.asarray(part.resize(size, Image.Resampling.BOX if is_larger else Image.Resampling.NEAREST)) > 0
    return found if found.any() else None


def painted_again(mask: Path, size: tuple[int, int], colour: str) -> UInt8[np.ndarray, "h w 4"]:
    """A mask that was kept, as a layer of an editor."""
    white = open_picture(mask).convert("L").resize(size, Image.Resampling.NEAREST)
    layer = np.zeros((size[1], size[0], 4), np.uint8)
    layer[np.asarray(white) > 0] = ImageColor.getcolor(colour, "RGBA")
    return layer


def shown_for_painting(file: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """A picture in a size that can be painted on; None: it is a clip or no picture.

    Raises:
      ValueError: it is a broken picture, or too large.
    """
    if not is_still(file):
        return None
    picture = open_picture(file)
    longest = max(picture.size)
    factor = PAINTED_SIDE / longest
    if 0.99 < factor < 1.01:
        return np.asarray(picture)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS))


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a picture, upright."""
    picture = open_picture(file)
    return picture.size


def found_again(name: str | None, folder: Path) -> Path | None:
    """The file of a source or a mask that the settings of a picture name, if this page has kept it."""
    file = folder / Path(name or "-").name
    return file if file.is_file() and file.name.startswith(("source-", "mask-")) else None


def _kept(content: bytes, folder: Path, kind: str, suffix: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}{suffix[:8]}"
    if not file.exists():
        with written_whole(file) as temporary:
            temporary.write_bytes(content)
    return file
