"""Pictures on disk: PNG files that remember how they were made.

In and out: pixels as bytes 0..255, [h w 3]. A PNG carries its settings as JSON in an iTXt chunk named "parameters",
which the file viewers and image tools that show such chunks show as text. Files appear complete or not at all.
"""

import contextlib
import filecmp
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

PARAMETERS = "parameters"


def save_png(
    path: str | Path, pixels: UInt8[np.ndarray, "h w 3"], metadata: dict[str, Any], *, is_kept: bool = False
) -> Path:
    """Write a picture with its settings; returns its name. The folder is created.

    Args:
      is_kept: a file of that name with other content stays, and the new one is called name-2, or name-3; False: it is
        replaced at once.

    Raises:
      ValueError: the settings are not JSON.
    """
    try:
        text = json.dumps(metadata, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"the settings in a PNG must be JSON, but {metadata=} is not: {error}") from error
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(PARAMETERS, text)
    with _temporary(Path(path)) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)
        return _named_anew(temporary, Path(path)) if is_kept else temporary.replace(path)


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name to write to; at the end the file gets its final name, or after an error is gone."""
    with _temporary(Path(path)) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside a path; what is there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _named_anew(file: Path, path: Path) -> Path:
    """Give a file that path as its name, or the first of path-2, path-3, ... under which there is no other content."""
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.link(file, candidate)  # unlike a rename, it fails where there is a file
            return candidate
        except FileExistsError:
            if filecmp.cmp(file, candidate, shallow=False):
                return candidate
        except OSError:  # a file system without links
            if not candidate.exists():
                return file.replace(candidate)
            if filecmp.cmp(file, candidate, shallow=False):
                return candidate
    raise AssertionError  # there are enough numbers


def read_png_metadata(path: str | Path) -> dict[str, Any]:
    """The settings that `save_png` wrote.

    Raises:
      ValueError: the file carries none.
    """
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(PARAMETERS)
    if text is None:
        raise ValueError(f"{path} must carry a text chunk {PARAMETERS!r}, but has none; name one of `lumina sample`")
    return json.loads(text)
