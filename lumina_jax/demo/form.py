"""The fields of the page, as arguments of `lumina sample`, and back from the settings in a PNG.

In: what a user has typed and chosen, as it comes from the browser. Out: an `Arguments`, or a ValueError for the user.
And back: of the settings that a picture carries, those that the fields can show.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lumina_jax.config.sample import SolverName
from lumina_jax.demo.field_values import lines_in, number_of, number_or_none, seed_of, whole_of
from lumina_jax.demo.more_settings import LABELS, settings_in_picture, settings_of_fields
from lumina_jax.demo.runs import ShownRun
from lumina_jax.documents import parse_json
from lumina_jax.sample_requests.arguments import Arguments

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "3:4": 3 / 4, "2:3": 2 / 3, "9:16": 9 / 16}
"""Width by height."""
LONGEST_PROMPT = 10_000


class Form(NamedTuple):
    """The fields that all tabs share; None: it is empty."""

    run: str | None
    step: int | None
    adapter: str | None
    adapter_strength: float | None
    prompt: str | None
    negative: str | None
    width: float | None
    height: float | None
    frames: float | None
    """Of a clip, or the views of an object."""
    seconds: str | float | None
    frame_rate: float | None
    seed: str | None
    """Text, because browsers round large numbers."""
    steps: float | None
    solver: str | None
    guidance: float | None
    also: str | None
    """Captions with weights, one a line."""
    settings: Mapping[str, Any]
    """Others of `SampleConfig`, by their names."""

    @classmethod
    def of(cls, values: Iterable[Any]) -> "Form":
        """From a value for each of `FIELDS`."""
        found = dict(zip(FIELDS, values, strict=True))
        return cls(**{name: found.pop(name) for name in cls._fields[:-1]}, settings=found)

    def values(self) -> dict[str, Any]:
        """The value for each of `FIELDS`."""
        return {name: self.settings[name] if name in LABELS else getattr(self, name) for name in FIELDS}


FIELDS = (*Form._fields[:-1], *LABELS)
"""The fields of the page in their order."""


def arguments_of(form: Form, run: ShownRun, **more: Any) -> Arguments:
    """The arguments that `lumina sample` would have.

    Args:
      more: those of a tab; they replace those of the form.

    Raises:
      ValueError: a field is empty or holds what it cannot; the message names it.
    """
    for name, text in (("prompt", form.prompt), ("negative prompt", form.negative)):
        if len(text or "") > LONGEST_PROMPT:
            raise ValueError(f"the {name} has {len(text or '')} characters, but may have {LONGEST_PROMPT}; shorten it")
    if form.solver not in get_args(SolverName):
        raise ValueError(f"choose one of the solvers {', '.join(get_args(SolverName))}")
    settings = {
        "steps": whole_of("steps", form.steps),
        "guidance": number_of("guidance", form.guidance),
        "negative": (form.negative or "").strip(),
        "solver": form.solver,
        **settings_of_fields(form.settings),
    }
    sizes = {
        "width": form.width,
        "height": form.height,
        "video_frames": form.frames,
        "views": form.frames,
    }
    asked: dict[str, Any] = {
        name: whole_of(name.replace("_", " "), value)
        for name, value in sizes.items()
        if name in run.fields and value is not None
    }
    if "seconds" in run.fields:
        asked["seconds"] = number_or_none("seconds", form.seconds)
    strength = number_of("strength of the adapter", 1.0 if form.adapter_strength is None else form.adapter_strength)
    given: dict[str, Any] = {
        "run": run.folder,
        "prompts": ((form.prompt or "").strip(),),
        "step": None if form.step is None else whole_of("step", form.step),
        "adapter": (f"{form.adapter}:{strength:g}",) if form.adapter else (),
        "also": tuple(lines_in(form.also)),
        "seed": seed_of(form.seed),
        "frame_rate": number_of("frames a second", form.frame_rate),
        "sample": run.config.sample.replace(**settings),
        **asked,
    }
    return Arguments(**{**given, **more})


def sized(run: ShownRun, aspect: str) -> tuple[int, int]:
    """Width and height of about as many pixels as in training, in whole patches."""
    height, width, _ = run.trained_shape
    down, across = run.modality.patch_extent
    ratio = math.sqrt(height * width * ASPECTS[aspect]), math.sqrt(height * width / ASPECTS[aspect])
    return max(1, round(ratio[0] / across)) * across, max(1, round(ratio[1] / down)) * down


@dataclass(frozen=True)
class PictureSettings:
    """Of the settings that a picture carries, those that the page shows again; None: it does not say."""

    run: str | None = None
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
    settings: PictureSettings, runs: Sequence[ShownRun], adapters: Sequence[str], now: Form
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
    adapter, strength = now.adapter, now.adapter_strength
    if settings.run is not None or settings.adapter is not None:
        word = (settings.adapter or [""])[0]
        folder, _, of_word = word.rpartition(":")
        adapter = next((one for one in adapters if word and one in (folder, word)), "")
        strength = float(of_word) if adapter and adapter == folder and _is_number(of_word) else 1.0
        if word and not adapter:
            missing.append(
                f"it was drawn with the adapter {Path(folder or word).name!r}, which this page does not have"
            )
        if len(settings.adapter or []) > 1:
            missing.append(f"it was drawn with {len(settings.adapter or [])} adapters, but this page draws with one")
    if (settings.style_of or "").isdecimal():
        missing.append("it is one of a set in one style, whose other prompts it does not say")
    apart = ("run", "step", "seed", "adapter", "also", "settings")
    given = {name: getattr(settings, name, None) for name in Form._fields if name not in apart}
    if settings.run is not None or settings.also is not None:
        given["also"] = "\n".join(settings.also or [])
    given["settings"] = {**now.settings, **settings.settings}
    given |= {"seed": settings.seed_words, "run": run.name if run else None, "step": step}
    form = now._replace(**{name: value for name, value in given.items() if value is not None})
    target = run or names[now.run or ""]
    if target.is_sound:
        form = form._replace(seconds=settings.seconds)  # None: as long as its text needs
    elif target.is_of_views and "width" not in target.fields and settings.width and settings.height:
        form = form._replace(frames=target.views_of(settings.width, settings.height))
    if run is not None:
        form = form._replace(adapter=adapter, adapter_strength=strength, step=step if step else run.steps()[0])
    return form, missing


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
