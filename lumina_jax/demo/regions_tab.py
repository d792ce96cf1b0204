"""The tab that gives parts of a picture captions of their own: rectangles that are dragged, or typed as numbers."""

from importlib import resources
from typing import Any

import gradio as gr

from lumina_jax.demo.drawn import HIDDEN, Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.field_values import lines_in, whole_of
from lumina_jax.demo.fields import defaults
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings
from lumina_jax.demo.runs import ShownRun
from lumina_jax.sample_requests.captions import box_of, split_at_colon

STATIC = resources.files("lumina_jax.demo") / "static"


def regions_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    first = page.studio.runs[0]
    start = defaults(first)
    with gr.Tab("Regions", elem_id="tab-regions", id="regions", interactive=has_regions(first)) as tab:
        regions = gr.HTML(
            "", html_template=(STATIC / "regions.html").read_text(), js_on_load=(STATIC / "regions.js").read_text(),
            width=start.width, height=start.height, apply_default_css=False, elem_id="regions", elem_classes="regions",
        )  # fmt: skip
        blend = gr.Number(0, label="Pixels from one caption to the other", precision=0, elem_id="region-blend")
        button = gr.Button("Draw with regions", variant="primary", elem_id="draw-regions")

    def resized(width: Any, height: Any) -> Any:
        return gr.update(width=width, height=height)

    def asked(form: Form, words: str | None, blend: Any) -> Asking:
        lines = lines_of(words)
        if not lines:
            raise ValueError("draw at least one region, or write one, such as 0,0,16,32: red heart")
        return Asking([form], {"region": tuple(lines), "region_blend": whole_of("pixels of blending", blend)})

    def of_run(run: ShownRun) -> Updates:
        return {}

    def of_settings(settings: PictureSettings, run: ShownRun) -> Updates:
        kept = [line for line in settings.region or [] if is_box(line)]
        return {regions: "\n".join(kept), blend: settings.region_blend or 0}

    size = [page.fields.named("width"), page.fields.named("height")]
    gr.on([one.change for one in size], resized, size, regions, **HIDDEN)
    draws(page, [button.click, regions.submit], asked, [regions, blend])
    return TabParts(tab, has_regions, [regions, blend], of_run, of_settings)


def has_regions(run: ShownRun) -> bool:
    return not run.is_sound


def lines_of(words: str | None) -> list[str]:
    """The regions, in the words of `--region`; each is a box, because a file of a mask would be one of the server.

    Raises:
      ValueError: a line is none.
    """
    lines = lines_in(words)
    for line in lines:
        area, caption = split_at_colon("a region", line, "0,0,16,32: red heart")
        box_of(area)
        if not caption:
            raise ValueError(f"a region must have a caption after its colon, but {line!r} has none")
    return lines


def is_box(line: str) -> bool:
    try:
        return bool(lines_of(line))
    except ValueError:
        return False
