"""The user's own 3-D files to a folder of renders, which `data.source=folder` reads.

In: a folder that is searched for .obj, .glb, .gltf, .ply and .stl files, or a .jsonl of {"model": file, "caption":
text}. Out: a folder with captions.jsonl, one line of {"views": [...], "caption": ...} for each object, and its pictures
in a folder for each object. A run that was interrupted goes on where it stopped.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lumina_jax.data.annotations import open_annotations
from lumina_jax.data.example import reason_of
from lumina_jax.data.lines import first_of
from lumina_jax.data.objects import IMPORTERS, READERS, check_visible, load_vtk, render_views

CAPTIONS, SETTINGS = "captions.jsonl", "render.json"


class Model(NamedTuple):
    """A 3-D file and what is said of it."""

    file: Path
    caption: str


class RenderReport(NamedTuple):
    """What came of some models: folders of pictures, and for the others the reason."""

    rendered: dict[str, Model]
    bad: dict[str, str]


class Look(NamedTuple):
    """How models are drawn; elevation in degrees."""

    views: int
    size: int
    elevation: float


def find_models(path: Path) -> list[Model]:
    """The 3-D files of a folder, captioned by their names, or those of a .jsonl.

    Raises:
      ValueError: there are none, or a line does not name one.
    """
    if path.suffix == ".jsonl":
        annotations = open_annotations(path)
        found = [_of_line(annotations.item(index), path) for index in range(len(annotations))]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMPORTERS | READERS)
        found = [Model(file, re.sub(r"[\s_-]+", " ", file.stem).strip()) for file in files]
    else:
        raise ValueError(f'there is no folder {path}; name one with 3-D files, or a .jsonl of {{"model": file}}')
    if not found:
        raise ValueError(f"{path} must name 3-D files ({', '.join(IMPORTERS | READERS)}), but names none")
    return found


def render_models(
    models: list[Model], out: Path, look: Look, progress: Callable[[int, int], None] | None = None
) -> RenderReport:
    """Draw each model into a folder of `out` and write the captions of those that could be drawn.

    Args:
      progress: called with (models seen to, models in all).

    Raises:
      ValueError: `out` holds renders of another look, or a number is out of range.
      RuntimeError: VTK is not installed.
    """
    if look.views < 1 or look.size < 1 or not -90 < look.elevation < 90:
        raise ValueError(f"views and size must be at least 1 and elevation between -90 and 90, but got {look}")
    load_vtk()
    _check_look(out, look)
    report = RenderReport({}, {})
    for done, model in enumerate(models, start=1):
        try:
            name = _name(model.file)
            _render(model.file, out / name, look)
            report.rendered[name] = model
        except Exception as error:  # whatever the readers of 3-D files raise
            report.bad[str(model.file)] = reason_of(error)
        if progress is not None:
            progress(done, len(models))
    if not report.rendered:
        raise ValueError(f"no model could be drawn; the last: {list(report.bad.items())[-1]}")
    lines = [
        json.dumps({"views": [f"{name}/{_file(view)}" for view in range(look.views)], "caption": model.caption})
        for name, model in report.rendered.items()
    ]
    partial = out / f".{CAPTIONS}.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(out / CAPTIONS)
    return report


def _of_line(item: dict, path: Path) -> Model:
    file, caption = first_of(item, ["model"]), first_of(item, ["caption"])
    if not isinstance(file, str) or not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"a line of {path} must give 'model' and 'caption' as text, but is {item}")
    return Model(path.parent / file, caption.strip())


def _check_look(out: Path, look: Look) -> None:
    """Note how the renders of a folder look, or refuse to mix two looks in it."""
    file = out / SETTINGS
    settings = json.dumps(look._asdict(), indent=2) + "\n"
    if file.is_file() and file.read_text() != settings:
        raise ValueError(f"{out} holds renders of another look ({file.name}); choose another folder, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(settings)


def _render(model: Path, folder: Path, look: Look) -> None:
    """The pictures of a model; the folder appears when it is complete."""
    if folder.is_dir():
        return
    views = render_views(model, views=look.views, size=look.size, elevation=look.elevation)
    check_visible(views)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for index, view in enumerate(views):
        Image.fromarray(view).save(partial / _file(index))
    partial.replace(folder)


def _file(view: int) -> str:
    return f"{view:03}.png"


def _name(file: Path) -> str:
    """The name of a model's folder, which changes with path, size and time of its file: what changed is drawn anew."""
    state = f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file.is_file() else "missing"
    digest = hashlib.blake2b(f"{file.resolve()} {state}".encode(), digest_size=4).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', file.stem).strip('-') or 'model'}-{digest}"
