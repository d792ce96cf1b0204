"""Where a video cuts: one clip for each scene, so that no sample runs across a cut.

In: a captions .jsonl with {"video": ...} lines (`file_sources.FolderSource`). Out: the same lines with "start" and
"end" in seconds, one for each scene. PySceneDetect (the extra `media`) compares the content of neighbouring frames.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina_jax.data.annotations import open_annotations
from lumina_jax.data.example import BadSample, is_unicode
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.modalities.decoding.clips import ANIMATIONS
from lumina_jax.modalities.decoding.media import Clip


@dataclasses.dataclass
class SceneReport:
    """How many scenes the lines of a file gave."""

    videos: int = 0
    scenes: int = 0
    too_short: int = 0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files that could not be read, and why."""


def write_scenes(captions: Path, out: Path, *, least: float) -> SceneReport:
    """Write `out`, whole or not at all; it must be in the folder of `captions`, because files are relative to that.

    Args:
      least: scenes of fewer seconds are left out.

    Raises:
      ValueError: `out` is in another folder, or exists already; or no line gives a scene.
      RuntimeError: PySceneDetect is not installed.
    """
    if out.parent.resolve() != captions.parent.resolve():
        raise ValueError(f"{out} must lie beside {captions}, because the files in it are relative to that folder")
    if out.exists():
        raise ValueError(f"{out} is there already; delete it first, or choose another name")
    if out.suffix.lower() != ".jsonl":
        raise ValueError(f"{out} must end in .jsonl, because it holds a scene a line")
    report = SceneReport()
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for item in _items(captions, least, report):
                text = json.dumps(item, ensure_ascii=False)
                file.write((text if is_unicode(text) else json.dumps(item)) + "\n")
            if not file.tell():
                raise ValueError(f"no line of {captions} gives a scene; the last: {list(report.bad.items())[-1:]}")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def _items(captions: Path, least: float, report: SceneReport) -> Iterator[dict[str, Any]]:
    """The lines of the new file; pictures and animations, which have no cuts, stay as they are."""
    source, lines = FolderSource(captions), open_annotations(captions)
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, BadSample):
            report.bad[record.name] = record.reason
            continue
        item = lines.item(index)
        if not isinstance(record.media, Clip) or Path(record.name).suffix.lower() in ANIMATIONS:
            yield item
            continue
        try:
            found = list(scenes(record.media))
        except ValueError as error:
            report.bad[record.name] = str(error)
            continue
        long = [(start, end) for start, end in found if end - start >= least]
        report.videos += 1
        report.scenes += len(long)
        report.too_short += len(found) - len(long)
        for start, end in long:
            yield item | {"start": round(start, 3), "end": round(end, 3)}


def scenes(clip: Clip) -> Iterator[tuple[float, float]]:
    """Start and end in seconds of each scene of a video; a video without a cut is one scene.

    Raises:
      ValueError: there is no such file, or it cannot be read.
      RuntimeError: PySceneDetect is not installed.
    """
    detect, detector = _scenedetect()
    if isinstance(clip.file, bytes) or not clip.file.is_file():
        raise ValueError(f"there is no file {clip.file!r}")
    try:
        found = detect(
            str(clip.file),
            detector(min_scene_len=1),
            start_time=clip.start,
            end_time=clip.end,
            start_in_scene=True,
            backend="pyav",
        )
    except Exception as error:  # PySceneDetect and the decoders below it raise all sorts
        raise ValueError(f"the video cannot be read ({type(error).__name__}: {error})") from error
    for start, end in found:
        yield start.seconds, end.seconds


def _scenedetect() -> tuple[Any, Any]:
    try:
        from scenedetect import ContentDetector, detect
    except ImportError:
        raise RuntimeError("finding cuts needs PySceneDetect: pip install 'lumina_jax[media]'") from None
    return detect, ContentDetector
