"""The tab that draws from the prompt alone, named as what the run draws; of clips it has scenes, too."""

from typing import Any

import gradio as gr

from lumina_jax.demo.drawn import Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.field_values import lines_in, whole_or_none
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings
from lumina_jax.demo.runs import ShownRun


def draw_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    first = page.studio.runs[0]
    with gr.Tab(title_of(first), elem_id="tab-draw", id="draw") as tab:
        scenes = gr.Textbox(
            label='Scenes instead of the prompt, one a line, such as "a sunrise @ 2" for two seconds',
            lines=2, visible=has_scenes(first), elem_id="scenes",
        )  # fmt: skip
        blend = gr.Textbox(
            label="Frames from one scene to the next; empty: three quarters of the shortest scene",
            max_lines=1, visible=has_scenes(first), elem_id="scene-blend",
        )  # fmt: skip
        button = gr.Button("Draw", variant="primary", elem_id="draw")

    def asked(form: Form, scenes: str | None, blend: Any) -> Asking:
        run = page.studio.run_of(form)
        lines = lines_in(scenes)
        if not lines or not has_scenes(run):
            return Asking([form], {})
        whole = form._replace(frames=None)  # scenes say how long a clip is
        more = {"prompts": (), "scenes": tuple(lines), "scene_blend": whole_or_none("frames between scenes", blend)}
        return Asking([whole], more)

    def of_run(run: ShownRun) -> Updates:
        return {
            tab: gr.update(label=title_of(run)),
            scenes: gr.update(visible=has_scenes(run)),
            blend: gr.update(visible=has_scenes(run)),
        }

    def of_settings(settings: PictureSettings, run: ShownRun) -> Updates:
        shown = has_scenes(run)
        return {
            scenes: gr.update(value="\n".join(settings.scenes or []), visible=shown),
            blend: gr.update(value=settings.scene_blend_words, visible=shown),
        }

    draws(page, [button.click, page.fields.prompt.submit], asked, [scenes, blend])
    return TabParts(tab, lambda run: True, [scenes, blend], of_run, of_settings)


def title_of(run: ShownRun) -> str:
    return run.modality.plural.capitalize()


def has_scenes(run: ShownRun) -> bool:
    """Whether captions may follow each other in its samples."""
    return "video_frames" in run.fields and run.trained_shape.frames > 1
