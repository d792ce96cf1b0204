"""The fields that all tabs share: run, prompt, size, seed and solver, and a fold with all other settings.

In: the runs of the page. Out: the components in the order of `FIELDS`, and what they become when another run is chosen
or the settings of a picture are restored.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import gradio as gr

from lumina_jax.config.sample import ANCESTRAL, SolverName
from lumina_jax.demo.form import ASPECTS, FIELDS, Form, sized
from lumina_jax.demo.more_settings import GROUPS, LABELS, TYPES, is_optional
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.studio import Studio

AS_TRAINED = "as trained"


class Fields(NamedTuple):
    """Components."""

    of_form: list[Any]
    """One for each of `FIELDS`, then the choice of adapters, then the strength of each that is offered."""
    strengths: Any
    """The row of the strengths."""
    aspect: Any
    new_seed: Any
    fold: Any
    """What holds the fields of rare settings."""
    groups: list[Any]
    """Within the fold, a row for each of `GROUPS`."""

    @property
    def run(self) -> Any:
        return self.named("run")

    @property
    def modality(self) -> Any:
        return self.named("modality")

    @property
    def adapters(self) -> list[Any]:
        """The choice of adapters, and the strength of each."""
        return self.of_form[len(FIELDS) :]

    @property
    def prompt(self) -> Any:
        return self.named("prompt")

    def named(self, name: str) -> Any:
        return self.of_form[FIELDS.index(name)]

    @property
    def changing(self) -> list[Any]:
        """What changes with the run."""
        return [*self.of_form, self.strengths, self.aspect, self.fold, *self.groups]


def new_fields(studio: Studio) -> Fields:
    """The components, laid out where this is called."""
    first = studio.runs[0]
    start = defaults(first)
    with gr.Row():
        run = gr.Dropdown([one.name for one in studio.runs], value=first.name, label="Run", elem_id="run")
        modality = gr.Dropdown(
            first.modalities, value=start.modality, label="What is drawn", visible=has_choice(first),
            elem_id="modality",
        )  # fmt: skip
        step = gr.Dropdown(first.steps(), value=start.step, label="Checkpoint step", elem_id="step")
    adapters = _adapter_fields(studio.adapters)
    prompt = gr.Textbox(
        label="Prompt", lines=1, max_lines=6, placeholder=example(first), elem_id="prompt", autofocus=True
    )
    negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=3, elem_id="negative")
    size = _size_fields(first, start)
    with gr.Row(equal_height=True):
        seed = gr.Textbox(start.seed, label="Seed", max_lines=1, elem_id="seed", min_width=100)
        new_seed = gr.Button("New seed", elem_id="new-seed", min_width=80)
    with gr.Row():
        steps = gr.Number(start.steps, label="Steps", precision=0, minimum=1, elem_id="steps", min_width=100)
        solver = gr.Dropdown(solvers(first), value=start.solver, label="Solver", elem_id="solver", min_width=170)
        guidance = gr.Number(start.guidance, label="Guidance", step=0.5, elem_id="guidance", min_width=100)
    aspect, *sizes = size
    found = [run, modality, step, prompt, negative, *sizes, seed, steps, solver, guidance]
    with gr.Accordion("More settings", open=False, elem_id="more-settings") as fold:
        also = gr.Textbox(
            label="Further captions with weights, one a line; the prompt has the weight 1", lines=2,
            placeholder="0.5: a watercolour", elem_id="also",
        )  # fmt: skip
        rows, more = _more_fields(first, start)
    chosen, strengths, *each = adapters
    return Fields([*found, also, *more, chosen, *each], strengths, aspect, new_seed, fold, rows)


def _adapter_fields(offered: Mapping[str, float]) -> list[Any]:
    """The choice of adapters, the row of their strengths, and the strength of each one that is offered."""
    chosen = gr.Dropdown(
        list(offered), value=[], multiselect=True, label="Adapters", visible=bool(offered), elem_id="adapters"
    )
    with gr.Row(visible=False) as row:
        each = [
            gr.Number(
                strength, label=f"Strength of {name}", step=0.1, visible=False, elem_id=f"strength-of-{index}",
                min_width=140,
            )
            for index, (name, strength) in enumerate(zip(short_names(list(offered)), offered.values()))
        ]  # fmt: skip
    return [chosen, row, *each]


def short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where two have the same."""
    last = [Path(folder).name for folder in folders]
    return [name if last.count(name) == 1 else folder for name, folder in zip(last, folders)]


def strengths_shown(fields: Fields, chosen: Collection[str], offered: Collection[str]) -> dict[Any, Any]:
    """What the strengths of adapters become where some are chosen."""
    each = zip(fields.adapters[1:], offered)
    shown = {component: gr.update(visible=folder in chosen) for component, folder in each}
    return {fields.strengths: gr.update(visible=bool(chosen)), **shown}


def has_choice(run: ShownRun) -> bool:
    """Whether a run draws several modalities."""
    return len(run.modalities) > 1


def _more_fields(run: ShownRun, start: Form) -> tuple[list[Any], list[Any]]:
    """A row for each of `GROUPS`, and the fields in them."""
    rows, found = [], []
    for group in GROUPS:
        with gr.Row(visible=group.matters(run, start.solver or "")) as row:
            for name, label in group.labels.items():
                given: dict[str, Any] = {"value": start.settings[name], "label": label, "min_width": 140}
                given["elem_id"] = name.replace("_", "-")
                if TYPES[name] is bool:
                    found.append(gr.Checkbox(**given))
                elif get_origin(TYPES[name]) is Literal:
                    found.append(gr.Dropdown(list(get_args(TYPES[name])), **given))
                else:
                    found.append((gr.Textbox if is_optional(name) else gr.Number)(**given))
        rows.append(row)
    return rows, found


def groups_shown(fields: Fields, run: ShownRun, solver: str) -> dict[Any, Any]:
    """What the rows of the fold become for a run and a solver."""
    return {row: gr.update(visible=group.matters(run, solver)) for row, group in zip(fields.groups, GROUPS)}


def _size_fields(run: ShownRun, start: Form) -> list[Any]:
    """The aspect, and the fields of `Form` from width to frame rate."""
    with gr.Row():
        shown = {name: name in run.fields for name in ("width", "height", "seconds")}
        is_long = bool(run.fields & {"video_frames", "views"})
        aspect = gr.Dropdown(
            [AS_TRAINED, *ASPECTS], value=AS_TRAINED, label="Aspect", elem_id="aspect", visible=shown["width"],
            min_width=170,
        )  # fmt: skip
        numbers: dict[str, Any] = {"precision": 0, "min_width": 90}
        width = gr.Number(start.width, label="Width", visible=shown["width"], elem_id="width", **numbers)
        height = gr.Number(start.height, label="Height", visible=shown["height"], elem_id="height", **numbers)
        frames = gr.Number(start.frames, label=frames_label(run), visible=is_long, elem_id="frames", **numbers)
        seconds = gr.Textbox(
            label="Seconds (empty: as the text needs)", max_lines=1, visible=shown["seconds"], elem_id="seconds"
        )
        frame_rate = gr.Number(8, label="Frames a second", visible=is_long, elem_id="frame-rate", min_width=90)
    return [aspect, width, height, frames, seconds, frame_rate]


def frames_label(run: ShownRun) -> str:
    return "Views" if run.is_of_views else "Frames"


def defaults(run: ShownRun) -> Form:
    """The form of a run before anything is typed."""
    height, width, _ = run.trained_shape
    settings = run.config.sample
    return Form(
        run=run.name,
        modality=run.modality_name,
        step=run.steps()[0],
        prompt="",
        negative=settings.negative,
        width=width,
        height=height,
        frames=run.frames,
        seconds=None,
        frame_rate=8.0,
        seed="0",
        steps=settings.steps,
        solver=settings.solver,
        guidance=settings.guidance,
        also="",
        settings={name: getattr(settings, name) for name in LABELS},
        adapters={},
    )


def example(run: ShownRun) -> str:
    """A prompt that a run has drawn while it trained, or nothing."""
    prompts = run.config.run.sample_prompts
    return f"such as: {prompts[0]}" if prompts and len(run.modalities) == 1 else ""


def solvers(run: ShownRun) -> list[str]:
    """The solvers that a model of this run can follow."""
    is_ddpm = run.config.flow.path == "ddpm"
    return [name for name in get_args(SolverName) if is_ddpm or name not in ANCESTRAL]


def with_modality(run: ShownRun, now: Form) -> Form:
    """The form of a run where another of its modalities was chosen: sizes are those of training, and settings that do
    not matter to it those of the run."""
    usual = defaults(run)
    matter = {name for group in GROUPS if group.matters(run, now.solver or "") for name in group.labels}
    settings = {name: value if name in matter else usual.settings[name] for name, value in now.settings.items()}
    sizes = {name: getattr(usual, name) for name in ("modality", "width", "height", "frames", "seconds")}
    return now._replace(settings=settings, **sizes)


def updates(fields: Fields, run: ShownRun, form: Form, offered: Mapping[str, float]) -> dict[Any, Any]:
    """What the components become for a form of a run.

    Args:
      offered: the adapters of the page, each with the strength that it begins with.
    """
    is_long = bool(run.fields & {"video_frames", "views"})
    more: dict[str, dict[str, Any]] = {
        "prompt": {"placeholder": example(run)},
        "modality": {"choices": run.modalities, "visible": has_choice(run)},
        "step": {"choices": run.steps()},
        "solver": {"choices": solvers(run)},
        "width": {"visible": "width" in run.fields},
        "height": {"visible": "height" in run.fields},
        "seconds": {"visible": "seconds" in run.fields},
        "frames": {"visible": is_long, "label": frames_label(run)},
        "frame_rate": {"visible": is_long},
    }
    found = {fields.named(name): gr.update(value=value, **more.get(name, {})) for name, value in form.values().items()}
    chosen, *each = fields.adapters
    found[chosen] = list(form.adapters)
    for component, (folder, strength) in zip(each, offered.items()):
        is_chosen = folder in form.adapters
        found[component] = gr.update(value=form.adapters.get(folder, strength), visible=is_chosen)
    usual = defaults(run)
    is_special = bool(form.also) or form.settings != usual.settings
    return {
        **found,
        fields.strengths: gr.update(visible=bool(form.adapters)),
        **groups_shown(fields, run, form.solver or ""),
        fields.aspect: gr.update(value=AS_TRAINED, visible="width" in run.fields),
        fields.fold: gr.update(open=is_special),
    }


def asked_size(run: ShownRun, aspect: str) -> tuple[int, int]:
    """Width and height of an aspect."""
    if aspect not in ASPECTS:
        return run.trained_shape.width, run.trained_shape.height
    return sized(run, aspect)


def random_seed() -> str:
    return f"{secrets.randbelow(2**32)}"
