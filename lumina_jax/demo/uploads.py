"""Files that a browser sends: pictures that remember their settings, and sources that are edited.

In: the path of an uploaded file. Out: what it says, or a copy of it beside the drawn samples in the size that is drawn,
named by its content; or a ValueError for the user. No other file is read, whatever path a request names.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from lumina_jax.demo.form import PictureSettings, settings_of
from lumina_jax.modalities.decoding.pictures import opened
from lumina_jax.modalities.files.png import PARAMETERS, written_whole

MOST_MEGABYTES = 64
"""Of a file."""
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


def kept_source(file: Path, folder: Path) -> Path:
    """A copy of an uploaded source beside what is drawn, with a name that its content decides."""
    content = file.read_bytes()
    return _kept(content, folder, "source", file.suffix.lower() if file.suffix[1:].isalnum() else "")


def kept_mask(redrawn: Bool[np.ndarray, "h w"], folder: Path) -> Path:
    """A mask as a file for `--mask`."""
    buffer = io.BytesIO()
    Image.fromarray(redrawn.astype(np.uint8) * 255).save(buffer, format="PNG")
    return _kept(buffer.getvalue(), folder, "mask", ".png")


def kept_picture(pixels: UInt8[np.ndarray, "h w 3"], folder: Path) -> Path:
    """A picture as a file for `--source`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return _kept(buffer.getvalue(), folder, "source", ".png")


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
