"""The settings that a picture of `lumina sample` carries, and the fields of the page that show them again.

In: the text in a PNG, which anybody may have written. Out: a form, and what of the settings the page does not have.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lumina_jax.demo.form import Form
from lumina_jax.demo.more_settings import settings_in_picture
from lumina_jax.demo.runs import ShownRun
from lumina_jax.documents import parse_json
from lumina_jax.trained import strength_of

MOST_NAMED = 5
"""Adapters that are missing and named."""


@dataclass(frozen=True)
class PictureSettings:
    """Of the settings that a picture carries, those that the page shows again; None: it does not say."""

    run: str | None = None
    modality: str | None = None
    step: int | None = None
    prompt: str | None = None
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    frame_rate: float | None = None
    seed: int | None = None
    seeds: list[int] | None = None
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    adapter: list[str] | None = None
    source: str | None = None
    mask: str | None = None
    outpaint: str | None = None
    strength: float | None = None
    invert: str | None = None
    normalize_source: bool | None = None
    resamplings: int | None = None
    also: list[str] | None = None
    region: list[str] | None = None
    region_blend: int | None = None
    scenes: list[str] | None = None
    scene_blend: int | None = None
    style_of: str | None = None
    style_caption: str | None = None
    style_strength: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Those of `more_settings`, by their names."""

    @property
    def seed_words(self) -> str | None:
        chosen = self.seed if self.seed is not None else self.seeds[0] if self.seeds else None
        return None if chosen is None else f"{chosen}"

    @property
    def scene_blend_words(self) -> str:
        """What draws the scenes again, if there are some: where nothing is said of their blend, they were cut."""
        return f"{self.scene_blend or 0}" if self.scenes else ""


def settings_of(text: str, origin: str) -> PictureSettings:
    """The settings in a picture, which anybody may have written.

    Raises:
      ValueError: they are not those of `lumina sample`.
    """
    found: PictureSettings = parse_json(text, PictureSettings, origin)
    try:
        return replace(found, settings=settings_in_picture(parse_json(text, dict[str, Any], origin)))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def restored(
    settings: PictureSettings, runs: Sequence[ShownRun], adapters: Collection[str], now: Form
) -> tuple[Form, list[str]]:
    """The form with the settings of a picture, and what of them the page does not have.

    Args:
      now: the form as it is; what the picture does not say stays.
    """
    missing = []
    names = {run.name: run for run in runs} | {run.config.run.name: run for run in runs}
    run = names.get(settings.run or "")
    if settings.run is not None and run is None:
        missing.append(f"it was drawn by the run {settings.run!r}, which this page does not have")
    step = settings.step if run is not None and settings.step in run.steps() else None
    if run is not None and settings.step is not None and step is None:
        missing.append(f"the run has no checkpoint of step {settings.step} any more; the newest is chosen")
    target, missed = _drawn_by(run or names[now.run or ""], settings.modality, now.modality)
    missing += missed if run is not None else []
    if (settings.style_of or "").isdecimal():
        missing.append("it is one of a set in one style, whose other prompts it does not say")
    apart = ("run", "modality", "step", "seed", "adapters", "also", "settings")
    given = {name: getattr(settings, name, None) for name in Form._fields if name not in apart}
    if settings.run is not None or settings.also is not None:
        given["also"] = "\n".join(settings.also or [])
    if settings.run is not None or settings.adapter is not None:
        given["adapters"], missed = _offered_again(settings.adapter or [], adapters)
        missing += missed
    given["settings"] = {**now.settings, **settings.settings}
    given |= {"seed": settings.seed_words, "run": run.name if run else None, "step": step}
    form = now._replace(**{name: value for name, value in given.items() if value is not None})
    form = form._replace(modality=target.modality_name)
    if target.is_sound:
        form = form._replace(seconds=settings.seconds)  # None: as long as its text needs
    elif target.is_of_views and "width" not in target.fields and settings.width and settings.height:
        form = form._replace(frames=target.views_of(settings.width, settings.height))
    return (form if run is None else form._replace(step=step if step else run.steps()[0])), missing


def _drawn_by(run: ShownRun, modality: str | None, now: str | None) -> tuple[ShownRun, list[str]]:
    """The run where it draws the modality of a picture, or else the one that is chosen, and what is missing."""
    if modality in run.modalities:
        return run.drawing(modality), []
    missing = [] if modality is None else [f"the run draws no {modality!r}, only {', '.join(run.modalities)}"]
    return run.drawing(now if now in run.modalities else None), missing


def _offered_again(words: Iterable[str], adapters: Collection[str]) -> tuple[Mapping[str, float], list[str]]:
    """The strengths of those adapters of a picture that the page offers, in its order, and what is missing."""
    asked = {os.path.abspath(folder): strength for folder, strength in map(strength_of, words)}
    found = {one: asked.pop(path) for one in adapters if (path := os.path.abspath(one)) in asked}
    names = ", ".join(repr(Path(one).name) for one in [*asked][:MOST_NAMED]) + (
        ", ..." if len(asked) > MOST_NAMED else ""
    )
    missing = [f"it was drawn with adapters that this page does not have: {names}"] if asked else []
    return {one: strength if math.isfinite(strength) else 1.0 for one, strength in found.items()}, missing
