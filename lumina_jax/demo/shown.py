"""What the page shows of drawings, as HTML in which nothing of a user's is anything but text.

In: pixels, and files of samples. Out: pictures as data within the page, so that no file is served for them; players of
clips and sounds; and the state of a drawing.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SMALL = 256
"""Pixels below which a picture is shown larger, with its pixels as squares."""
PREVIEW_SIDE = 512
"""Pixels that a preview may have along a side; it is sent several times a second."""
KINDS = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4", ".wav": "audio/wav"}
EMPTY = '<div class="drawn empty">nothing is drawn yet</div>'


def companions(file: Path) -> list[Path]:
    """The files of a sample: its PNG and what moves or sounds beside it."""
    return [one for suffix in KINDS if (one := file.with_suffix(suffix)).is_file()]


def state_html(words: str, share: float | None = None, *, is_problem: bool = False) -> str:
    """What happens, with a bar from 0 to 1 or without."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    role = "alert" if is_problem else "status"
    return f'<div class="state" role="{role}">{html.escape(words)}{bar}</div>'


def preview_html(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """What a drawing leads to."""
    buffer, small = io.BytesIO(), Image.fromarray(pixels)
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    small.save(buffer, format="PNG", compress_level=1)
    picture = _picture(_data(buffer.getvalue(), ".png"), "preview of what is being drawn", pixels.shape[1])
    return f'<div class="drawn preview">{picture}</div>'


def drawn_html(files: Sequence[Path], captions: Sequence[str]) -> str:
    """Samples with their players."""
    figures = []
    for file, caption in zip(files, captions):
        made = {one.suffix: _data(one.read_bytes(), one.suffix) for one in companions(file)}
        text = html.escape(caption)
        with Image.open(file) as picture:
            width = picture.width
        if ".mp4" in made:
            shown = (
                f'<video controls loop autoplay muted playsinline aria-label="{text}"{_pixelated(width)}>'
                f'<source src="{made[".mp4"]}" type="video/mp4"></video>'
            )
        elif ".gif" in made:
            shown = _picture(made[".gif"], caption, width)
        else:
            shown = _picture(made[".png"], caption, width)
        if ".wav" in made:
            shown += f'<audio controls aria-label="{text}" src="{made[".wav"]}"></audio>'
        figures.append(f"<figure>{shown}<figcaption>{text}</figcaption></figure>")
    return f'<div class="drawn samples">{"".join(figures)}</div>'


def _picture(source: str, caption: str, width: int) -> str:
    return f'<img src="{source}" alt="{html.escape(caption)}"{_pixelated(width)}>'


def _pixelated(width: int) -> str:
    return ' class="small"' if width < SMALL else ""


def _data(content: bytes, suffix: str) -> str:
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(content).decode()}"
