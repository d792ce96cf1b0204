"""Icon sets as npm packages of Iconify hold them: vector graphics by name and code points, drawn as pixels.

In: the folder of an unpacked package. Out: SVG by the name of the icon, and pixels on white.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

OVERSAMPLING = 2
"""A picture is drawn this many times larger, and averaged."""


def load_resvg() -> Any:
    """The module that draws vector graphics.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise ValueError(
            "drawing vector graphics needs resvg-py; install it with: pip install 'lumina_jax[icons]'"
        ) from None
    return resvg_py


def read_icons(package: Path) -> Iterator[tuple[str, str]]:
    """Name and SVG of each icon that is not hidden; words of a name are separated by hyphens."""
    icon_set = _json(package / "icons.json")
    for name, icon in icon_set["icons"].items():
        if icon.get("hidden"):
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        box = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
        yield name, f"<svg {namespaces} {box}>{icon['body']}</svg>"


def read_code_points(package: Path) -> dict[str, str]:
    """The name of the icon of each sequence of code points, such as 1f469-200d-1f680; none if the set does not tell."""
    return _json(package / "chars.json")


def read_icon_names(package: Path) -> Iterator[tuple[str, str]]:
    """Every name that the set has for an icon, and the icon's own; further names of a changed icon are left out."""
    icon_set = _json(package / "icons.json")
    yield from ((name, icon["parent"]) for name, icon in icon_set.get("aliases", {}).items() if set(icon) == {"parent"})
    yield from ((name, name) for name in icon_set["icons"])


def drawn(svg: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """An icon on white, `size` pixels a side."""
    large = size * OVERSAMPLING
    encoded = load_resvg().svg_to_bytes(svg_string=svg, width=large, height=large, background="white")
    picture = Image.open(io.BytesIO(bytes(encoded))).convert("RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())
