"""The tab that gives parts of a picture captions of their own, as rows of numbers."""

import html
from typing import Any

import gradio as gr

from lumina_jax.demo.drawn import HIDDEN, Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.form import Form, PictureSettings, whole_of
from lumina_jax.demo.runs import ShownRun
from lumina_jax.failures import message
from lumina_jax.sample_requests.captions import box_of, split_at_colon

COLOURS = ("#d81b60", "#1e88e5", "#ffc107", "#004d40", "#8e24aa", "#5d4037")


def regions_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    with gr.Tab("Regions", elem_id="tab-regions", id="regions", interactive=has_regions(page.studio.runs[0])) as tab:
        rows = gr.Textbox(
            label="One region a line: left, top, right and bottom pixel, and a caption", lines=4,
            placeholder="0,0,16,32: red heart, noto style", elem_id="regions",
        )  # fmt: skip
        boxes = gr.HTML("", elem_id="boxes")
        blend = gr.Number(0, label="Pixels from one caption to the other", precision=0, elem_id="region-blend")
        button = gr.Button("Draw with regions", variant="primary", elem_id="draw-regions")

    def shown(words: str | None, width: Any, height: Any) -> str:
        try:
            return boxes_html(lines_of(words), whole_of("width", width), whole_of("height", height))
        except ValueError as error:
            return f'<div class="boxes">{html.escape(message(error))}</div>'

    def asked(form: Form, words: str | None, blend: Any) -> Asking:
        lines = lines_of(words)
        if not lines:
            raise ValueError("write at least one region, such as 0,0,16,32: red heart")
        return Asking([form], {"region": tuple(lines), "region_blend": whole_of("pixels of blending", blend)})

    def of_run(run: ShownRun) -> Updates:
        return {}

    def of_settings(settings: PictureSettings, run: ShownRun) -> Updates:
        kept = [line for line in settings.region or [] if is_box(line)]
        return {rows: "\n".join(kept), blend: settings.region_blend or 0}

    size = [page.fields.named("width"), page.fields.named("height")]
    gr.on([rows.change, *(one.change for one in size)], shown, [rows, *size], boxes, **HIDDEN)
    draws(page, [button.click], asked, [rows, blend])
    return TabParts(tab, has_regions, [rows, blend], of_run, of_settings)


def has_regions(run: ShownRun) -> bool:
    return not run.is_sound


def lines_of(words: str | None) -> list[str]:
    """The regions, in the words of `--region`; each is a box, because a file of a mask would be one of the server.

    Raises:
      ValueError: a line is none.
    """
    lines = [line.strip() for line in (words or "").splitlines() if line.strip()]
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


def boxes_html(lines: list[str], width: int, height: int) -> str:
    """Where the regions are, later ones above earlier ones."""
    shown = []
    for index, line in enumerate(lines):
        area, caption = split_at_colon("a region", line, "")
        left, top, right, bottom = box_of(area)
        colour, text = COLOURS[index % len(COLOURS)], html.escape(caption[:40])
        place = f'x="{left}" y="{top}" width="{max(0, right - left)}" height="{max(0, bottom - top)}"'
        shown.append(f'<rect {place} fill="{colour}" fill-opacity="0.6"><title>{text}</title></rect>')
        where = f'x="{left + width / 50}" y="{top + width / 14}" font-size="{width / 18}"'
        shown.append(f'<text {where} fill="currentColor">{text}</text>')
    view = f'viewBox="0 0 {width} {height}" role="img" aria-label="regions"'
    return f'<div class="boxes"><svg {view}>{"".join(shown)}</svg></div>'
