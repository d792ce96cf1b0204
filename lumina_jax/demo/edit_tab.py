"""The tab that edits a picture: what is painted is drawn anew, or all of it by strength, or what surrounds it."""

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lumina_jax.demo.drawn import HIDDEN, Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.field_values import number_of, whole_of
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.shown import state_html
from lumina_jax.demo.uploads import (
    found_again,
    kept_mask,
    kept_source,
    painted,
    painted_again,
    shown_for_painting,
    size_of,
    sources_of,
)
from lumina_jax.failures import message

BRUSH = "#ff2d95"


class EditParts(NamedTuple):
    """The components of the tab."""

    tab: Any
    upload: Any
    source: Any
    editor: Any
    strength: Any
    corner: Any
    is_inverted: Any
    shown: Any
    is_normalized: Any
    resamplings: Any
    button: Any

    @property
    def inputs(self) -> list[Any]:
        """What `Edited` has, in its order."""
        found = [self.source, self.editor, self.strength, self.corner]
        return [*found, self.is_inverted, self.shown, self.is_normalized, self.resamplings]


class Edited(NamedTuple):
    """The values of the fields."""

    source: str | None
    editor: Any
    strength: Any
    corner: str | None
    is_inverted: bool | None
    shown: str | None
    """What the source shows, if it is inverted."""
    is_normalized: bool | None
    resamplings: Any


def edit_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    studio, output, parts = page.studio, page.output, _laid_out(page.studio.runs[0])

    def taken(path: str | None, run_name: str, modality: str | None) -> Updates:
        try:
            kept, notices = kept_source(path, studio.uploads, studio.run(run_name, modality))
            words = "; ".join(["the picture is here: paint over what is to change", *notices])
            return {**_editor_of(parts, kept), output.state: state_html(words)}
        except (ValueError, OSError) as error:
            return {**_editor_of(parts, None), output.state: state_html(message(error), is_problem=True)}

    def asked(form: Form, *values: Any) -> Asking:
        edited, run = Edited(*values), studio.run_of(form)
        if not edited.source:
            raise ValueError("choose the picture to edit first")
        file = found_again(edited.source, sources_of(run))
        if file is None:
            raise ValueError("the picture to edit belongs to another run; choose it again")
        redrawn = painted(edited.editor["layers"], size_of(file)) if edited.editor else None
        share = number_of("strength", edited.strength)
        more = {
            "source": file,
            "mask": None if redrawn is None else kept_mask(redrawn, file.parent),
            "outpaint": (edited.corner or "").strip() or None,
            "strength": None if share == 1 else share,
            "invert": (edited.shown or "").strip() if edited.is_inverted else None,
            "normalize_source": bool(edited.is_normalized),
        }
        again = {"resamplings": whole_of("times that each step is taken", edited.resamplings)}
        return Asking([form._replace(settings={**form.settings, **again})], more)

    def of_settings(settings: PictureSettings, run: ShownRun) -> Updates:
        kept = found_again(settings.source, sources_of(run))
        mask = None if kept is None else found_again(settings.mask, sources_of(run))
        share = 1 if settings.strength is None else settings.strength
        return {
            **_editor_of(parts, kept, mask),
            parts.strength: share,
            parts.corner: settings.outpaint or "",
            parts.is_inverted: settings.invert is not None,
            parts.shown: gr.update(value=settings.invert or "", visible=settings.invert is not None),
            parts.is_normalized: bool(settings.normalize_source),
            parts.resamplings: settings.resamplings or 1,
        }

    def of_run(run: ShownRun) -> Updates:
        return {parts.resamplings: run.config.sample.resamplings}

    asked_of = [parts.upload, page.fields.run, page.fields.modality]
    parts.upload.upload(taken, asked_of, [parts.source, parts.editor, output.state], **HIDDEN)
    parts.is_inverted.input(lambda on: gr.update(visible=on), parts.is_inverted, parts.shown, **HIDDEN)
    draws(page, [parts.button.click], asked, parts.inputs)
    return TabParts(parts.tab, can_edit, parts.inputs, of_run, of_settings)


def can_edit(run: ShownRun) -> bool:
    """Whether its samples have pixels that can be painted on."""
    return "width" in run.fields


def _laid_out(run: ShownRun) -> EditParts:
    with gr.Tab("Edit", elem_id="tab-edit", id="edit", interactive=can_edit(run)) as tab:
        upload = gr.File(label="Picture to edit", elem_id="edit-source", height=140)
        source = gr.State()
        editor = gr.ImageEditor(
            label="Paint over what is drawn anew", elem_id="edit-mask", sources=(), transforms=(), layers=False,
            brush=gr.Brush(default_size=32, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
            type="numpy", buttons=[], visible=False,
        )  # fmt: skip
        strength = gr.Slider(
            0, 1, 1, step=0.05, label="Strength: how much is drawn anew where it is painted, or everywhere",
            elem_id="strength",
        )  # fmt: skip
        corner = gr.Textbox(
            label="Outpaint: where the left and top edge of a smaller picture are to be, such as 16,0", max_lines=1,
            elem_id="outpaint",
        )  # fmt: skip
        with gr.Row():
            is_inverted = gr.Checkbox(
                label="Begin with the noise that leads to the picture", elem_id="is-inverted", min_width=140
            )
            shown = gr.Textbox(
                label="What the picture shows", max_lines=1, elem_id="invert", min_width=140, visible=False
            )
        is_normalized = gr.Checkbox(label="Normalise the channels, so that colours do not stay", elem_id="normalize")
        resamplings = gr.Number(
            run.config.sample.resamplings, precision=0, minimum=1, elem_id="resamplings",
            label="Times that each step is taken: with more, the drawn part fits the kept part better",
        )  # fmt: skip
        button = gr.Button("Draw the edit", variant="primary", elem_id="draw-edit")
    options = (is_inverted, shown, is_normalized, resamplings)
    return EditParts(tab, upload, source, editor, strength, corner, *options, button)


def _editor_of(parts: EditParts, kept: Path | None, mask: Path | None = None) -> Updates:
    """What the editor becomes for a source that was kept; None: there is none."""
    shown = None if kept is None else shown_for_painting(kept)
    if shown is None:
        return {parts.source: None if kept is None else str(kept), parts.editor: gr.update(value=None, visible=False)}
    size = shown.shape[1], shown.shape[0]
    layers = [] if mask is None else [painted_again(mask, size, BRUSH)]
    value = {"background": shown, "layers": layers, "composite": None}
    return {parts.source: str(kept), parts.editor: gr.update(value=value, visible=True, canvas_size=size)}
