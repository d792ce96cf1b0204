"""The fields of the page, as arguments of `lumina sample`.

In: what a user has typed and chosen, as it comes from the browser. Out: an `Arguments`, or a ValueError for the user.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lumina_jax.config.sample import SolverName
from lumina_jax.demo.field_values import lines_in, number_of, number_or_none, seed_of, whole_of
from lumina_jax.demo.more_settings import LABELS, settings_of_fields
from lumina_jax.demo.runs import ShownRun
from lumina_jax.sample_requests.arguments import Arguments

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "3:4": 3 / 4, "2:3": 2 / 3, "9:16": 9 / 16}
"""Width by height."""
LONGEST_PROMPT = 10_000


class Form(NamedTuple):
    """The fields that all tabs share; None: it is empty."""

    run: str | None
    modality: str | None
    """Of the run; None: its first."""
    step: int | None
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
    adapters: Mapping[str, float | None]
    """Their strengths by their folders, in the order of the page."""

    @classmethod
    def of(cls, values: Sequence[Any], offered: Collection[str]) -> "Form":
        """From a value for each of `FIELDS`, the adapters that are chosen, and a strength for each that is offered."""
        found = dict(zip(FIELDS, values))
        chosen, *strengths = values[len(FIELDS) :]
        adapters = {one: strength for one, strength in zip(offered, strengths, strict=True) if one in (chosen or [])}
        return cls(**{name: found.pop(name) for name in cls._fields[:-2]}, settings=found, adapters=adapters)

    def values(self) -> dict[str, Any]:
        """The value for each of `FIELDS`."""
        return {name: self.settings[name] if name in LABELS else getattr(self, name) for name in FIELDS}


FIELDS = (*Form._fields[:-2], *LABELS)
"""The fields of the page in their order; those of adapters follow them, of which there are as many as are offered."""


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
    given: dict[str, Any] = {
        "run": run.folder,
        "prompts": ((form.prompt or "").strip(),),
        "step": None if form.step is None else whole_of("step", form.step),
        "modality": run.modality_name,
        "adapter": tuple(_adapter_words(form.adapters)),
        "also": tuple(lines_in(form.also)),
        "seed": seed_of(form.seed),
        "frame_rate": number_of("frames a second", form.frame_rate),
        "sample": run.config.sample.replace(**settings),
        **asked,
    }
    return Arguments(**{**given, **more})


def _adapter_words(adapters: Mapping[str, float | None]) -> Iterator[str]:
    """Adapters as `--adapter` has them."""
    for folder, strength in adapters.items():
        yield f"{folder}:{number_of(f'the strength of {Path(folder).name}', strength):g}"


def sized(run: ShownRun, aspect: str) -> tuple[int, int]:
    """Width and height of about as many pixels as in training, in whole patches."""
    height, width, _ = run.trained_shape
    down, across = run.modality.patch_extent
    ratio = math.sqrt(height * width * ASPECTS[aspect]), math.sqrt(height * width / ASPECTS[aspect])
    return max(1, round(ratio[0] / across)) * across, max(1, round(ratio[1] / down)) * down
