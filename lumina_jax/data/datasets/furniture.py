"""Furniture and things of the house from all around: 3-D models with names, from Debian's sweethome3d-furniture.

Of its five catalogues the one under CC0 is taken, of models of one name the first.
"""

import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lumina_jax.data.datasets.packages import fetch_debian
from lumina_jax.data.objects import ELEVATION, check_visible, load_vtk, render_views
from lumina_jax.data.prepared import Card, PreparedSample

logger = logging.getLogger(__name__)

PACKAGE = "sweethome3d-furniture"
CATALOGUE = "usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f"
PROPERTIES = "PluginFurnitureCatalog.properties"
MEDIA = "views"
"""The kind of data.media."""
SETTINGS = {"size": 64, "frames": 12}


def card(size: int, frames: int) -> Card:
    return Card(
        name="furniture",
        about="Views of furniture and things of the house, the camera going around; captioned with their names.",
        origin=f"Debian {PACKAGE}, models of Blend Swap",
        licence="CC0",
        attribution="Blend Swap, Emmanuel Puybaret / eTeks (appreciated, not mandatory)",
        settings={"pixels": size, "views": frames, "elevation in degrees": ELEVATION},
    )


def samples(size: int, frames: int) -> Iterator[PreparedSample]:
    """Each model, `frames` views of `size` pixels; a model that cannot be drawn is logged and left out."""
    load_vtk()  # before anything is downloaded
    with tempfile.TemporaryDirectory() as folder:
        package = fetch_debian([PACKAGE], Path(folder))
        with zipfile.ZipFile(package / CATALOGUE) as archive:
            archive.extractall(Path(folder) / "models")
            properties = archive.read(PROPERTIES).decode("latin-1")
        for name, model in models(properties).items():
            try:
                views = render_views(Path(folder) / "models" / model, views=frames, size=size)
                check_visible(views)
            except ValueError as error:
                logger.warning("skipped %s: %s", name, error)
                continue
            yield PreparedSample(name, name, views)


def models(properties: str) -> dict[str, str]:
    """Names and files of a catalogue, whose lines are `name#12=Bookcase` and `model#12=/folder/file.obj`."""
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(name|model)#(\d+)=(.*)$", properties, re.MULTILINE):
        entries.setdefault(number, {})[key] = value.strip()
    found: dict[str, str] = {}
    for entry in entries.values():
        if {"name", "model"} <= entry.keys():
            found.setdefault(entry["name"].lower(), entry["model"].lstrip("/"))
    return found
