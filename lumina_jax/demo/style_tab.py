"""The tab that draws several prompts in one style: that of the first of them, or that of a picture."""

from typing import Any

import gradio as gr

from lumina_jax.demo.drawn import HIDDEN, Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.field_values import lines_in, number_of, seed_of, seeds_after
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.shown import state_html
from lumina_jax.demo.uploads import found_again, kept_source, sources_of
from lumina_jax.failures import message

MOST_PROMPTS = 16


def style_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    studio, output = page.studio, page.output
    with gr.Tab("One style", elem_id="tab-style", id="style") as tab:
        prompts = gr.Textbox(
            label="Prompts, one a line, with seeds that follow each other; the first one gives the style",
            lines=4, elem_id="style-prompts",
        )  # fmt: skip
        upload = gr.File(label="Picture that gives the style instead", elem_id="style-source", height=140)
        source = gr.State()
        caption = gr.Textbox(label="What that picture shows", elem_id="style-caption")
        strength = gr.Slider(0, 1, 1, step=0.05, label="Strength of the style", elem_id="style-strength")
        button = gr.Button("Draw the set", variant="primary", elem_id="draw-style")

    def taken(path: str | None, run_name: str, modality: str | None) -> Updates:
        try:
            kept, notices = kept_source(path, studio.uploads, studio.run(run_name, modality))
            return {source: str(kept), output.state: state_html("; ".join(["the picture gives the style", *notices]))}
        except (ValueError, OSError) as error:
            return {source: None, output.state: state_html(message(error), is_problem=True)}

    def asked(form: Form, words: str | None, kept: str | None, caption: str | None, strength: Any) -> Asking:
        run = studio.run_of(form)
        lines = lines_in(words)
        if not 0 < len(lines) <= MOST_PROMPTS:
            raise ValueError(f"a set has 1 to {MOST_PROMPTS} prompts, one a line, but there are {len(lines)}")
        file = found_again(kept, sources_of(run)) if kept else None
        if kept and file is None:
            raise ValueError("the picture of the style belongs to another run; choose it again")
        style = {"style_of": "0"} if file is None else {"style_of": str(file), "style_caption": (caption or "").strip()}
        seeds = {"seed": None, "seeds": seeds_after(seed_of(form.seed), len(lines))}
        share = number_of("strength of the style", strength)
        return Asking([form], {"prompts": tuple(lines), **seeds, **style, "style_strength": share})

    def of_run(run: ShownRun) -> Updates:
        return {}

    def of_settings(settings: PictureSettings, run: ShownRun) -> Updates:
        kept = found_again(settings.style_of, sources_of(run))
        share = 1 if settings.style_strength is None else settings.style_strength
        found = {source: None if kept is None else str(kept), caption: settings.style_caption or "", strength: share}
        return {**found, **({prompts: settings.prompt or ""} if settings.style_of else {})}

    upload.upload(taken, [upload, page.fields.run, page.fields.modality], [source, output.state], **HIDDEN)
    upload.clear(lambda: None, None, source, **HIDDEN)
    draws(page, [button.click], asked, [prompts, source, caption, strength])
    return TabParts(tab, lambda run: True, [prompts, source, caption, strength], of_run, of_settings)
