"""The page of `lumina demo`: where its parts are, and what happens when a run is chosen or a picture comes back.

In: a studio and tabs. Out: a Gradio page. A page knows itself and its browser by names that it keeps in the browser, so
that a reload finds what it was drawing and what it has drawn.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr

from lumina_jax.demo import fields as of_form
from lumina_jax.demo.drawn import HIDDEN, NAMED, Output, Page, TabParts, Updates, gallery_of, shown_views
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings, restored
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.shown import EMPTY, companions, drawn_html, state_html
from lumina_jax.demo.studio import Studio
from lumina_jax.demo.uploads import found_again, settings_in, sources_of, uploaded
from lumina_jax.failures import message


def new_page(studio: Studio, tabs: Sequence[Callable[[Page], TabParts]]) -> gr.Blocks:
    """The page; each tab lays itself out where it is called."""
    with gr.Blocks(title="lumina demo", analytics_enabled=False) as blocks:
        gr.Markdown("# lumina demo")
        output = _new_output()
        with gr.Row():
            with gr.Column(min_width=300):
                page = Page(studio, of_form.new_fields(studio), output)
                with gr.Tabs(elem_id="tabs") as all_tabs:
                    made = [tab(page) for tab in tabs]
            with gr.Column(min_width=300):
                output.state.render()
                output.picture.render()
                output.cancel.render()
                output.files.render()
                output.gallery.render()
                dropped = gr.File(
                    label="Drop a drawn PNG: its settings come back", elem_id="dropped", height=140
                )  # fmt: skip
        _wire_fields(page, all_tabs, made)
        _wire_history(page, all_tabs, made, dropped)
        _wire_loading(page, blocks)
    return blocks


def _new_output() -> Output:
    """Its components, which are laid out later."""
    return Output(
        state=gr.HTML(state_html("ready"), elem_id="state", render=False),
        picture=gr.HTML(EMPTY, elem_id="picture", render=False),
        cancel=gr.Button("Cancel", elem_id="cancel", render=False),
        files=gr.File(
            label="Files", file_count="multiple", interactive=False, visible=False, elem_id="files", render=False
        ),
        gallery=gr.Gallery(
            label="History: choose one, its settings come back", columns=4, height=240, fit_columns=False,
            allow_preview=False, buttons=[], interactive=False, elem_id="history", render=False, object_fit="contain",
        ),
        page=gr.Textbox(visible="hidden", render=True),
        browser=gr.Textbox(visible="hidden", render=True),
    )  # fmt: skip


def _wire_fields(page: Page, all_tabs: Any, tabs: Sequence[TabParts]) -> None:
    """What the fields do to each other."""
    studio, fields = page.studio, page.fields

    def chosen(*values: Any) -> dict[Any, Any]:
        now = Form.of(values, studio.adapters)
        run = studio.run(now.run)
        form = of_form.defaults(run)._replace(prompt=now.prompt, negative=now.negative, seed=now.seed)
        return of_form.updates(fields, run, form, studio.adapters) | _of_run(all_tabs, tabs, run)

    def chosen_modality(*values: Any) -> dict[Any, Any]:
        now = Form.of(values, studio.adapters)
        run = studio.run_of(now)
        form = of_form.with_modality(run, now)
        return of_form.updates(fields, run, form, studio.adapters) | _of_run(all_tabs, tabs, run)

    def chosen_adapters(names: Sequence[str] | None) -> dict[Any, Any]:
        return of_form.strengths_shown(fields, names or [], studio.adapters)

    def groups(name: str, modality: str | None, solver: str) -> dict[Any, Any]:
        return of_form.groups_shown(fields, studio.run(name, modality), solver)

    def size(name: str, modality: str | None, aspect: str) -> tuple[int, int]:
        return of_form.asked_size(studio.run(name, modality), aspect)

    changed = [*fields.changing, *_changing(all_tabs, tabs)]
    fields.run.input(chosen, fields.of_form, changed, **HIDDEN)
    fields.modality.input(chosen_modality, fields.of_form, changed, **HIDDEN)
    adapters, *strengths = fields.adapters
    adapters.input(chosen_adapters, adapters, [fields.strengths, *strengths], **HIDDEN)
    solver, drawn = fields.named("solver"), [fields.run, fields.modality]
    solver.change(groups, [*drawn, solver], fields.groups, **HIDDEN)
    sizes = [fields.named("width"), fields.named("height")]
    fields.aspect.input(size, [*drawn, fields.aspect], sizes, **HIDDEN)
    fields.new_seed.click(of_form.random_seed, None, fields.named("seed"), **HIDDEN)


def _wire_history(page: Page, all_tabs: Any, tabs: Sequence[TabParts], dropped: Any) -> None:
    """A picture that was drawn gives its settings back, from the history or as a file."""
    studio, fields, output = page.studio, page.fields, page.output

    def taken(settings: PictureSettings, values: Sequence[Any]) -> dict[Any, Any]:
        now = Form.of(values, studio.adapters)
        form, missing = restored(settings, studio.runs, studio.adapters, now)
        run = studio.run_of(form)
        if settings.source and found_again(settings.source, sources_of(run)) is None:
            missing.append("what it was made from is not here; choose it again")
        found = of_form.updates(fields, run, form, studio.adapters) | _of_run(all_tabs, tabs, run)
        found[all_tabs] = gr.update(selected=_tab_of(settings))
        for tab in tabs:
            found |= tab.of_settings(settings, run)
        return {**found, output.state: state_html("; ".join(["its settings are restored", *missing]))}

    def of_file(path: str | None, *values: Any) -> dict[Any, Any]:
        try:
            return {**taken(settings_in(uploaded(path, studio.uploads)), values), dropped: None}
        except (ValueError, OSError) as error:
            return {output.state: state_html(message(error), is_problem=True), dropped: None}

    def of_history(event: gr.SelectData, name: str, browser: str, *values: Any) -> dict[Any, Any]:
        try:
            file = studio.history.chosen(browser, event.index)
            settings = settings_in(file)
            shown = drawn_html([file], [settings.prompt or ""])
            files = gr.update(value=[str(one) for one in companions(file)], visible=True)
            return {**taken(settings, values), output.picture: shown, output.files: files}
        except (ValueError, OSError) as error:
            return {output.state: state_html(message(error), is_problem=True)}

    changed = [*fields.changing, output.state, *_changing(all_tabs, tabs)]
    dropped.upload(of_file, [dropped, *fields.of_form], [*changed, dropped], **HIDDEN)
    more = [output.picture, output.files]
    output.gallery.select(of_history, [*output.names, *fields.of_form], [*changed, *more], **NAMED)


def _tab_of(settings: PictureSettings) -> str:
    """The tab that draws a picture of these settings again."""
    if settings.source:
        return "edit"
    return "regions" if settings.region else "style" if settings.style_of else "draw"


def _changing(all_tabs: Any, tabs: Sequence[TabParts]) -> list[Any]:
    """What of the tabs changes with the run."""
    return [all_tabs, *(one for tab in tabs for one in (tab.tab, *tab.components))]


def _of_run(all_tabs: Any, tabs: Sequence[TabParts], run: ShownRun) -> Updates:
    """What the tabs become for a run. One that cannot be used is hidden by the style of the page."""
    found: Updates = {}
    for tab in tabs:
        found |= {tab.tab: gr.update(interactive=tab.fits(run)), **tab.of_run(run)}
    return found if all(tab.fits(run) for tab in tabs) else {**found, all_tabs: gr.update(selected="draw")}


def _wire_loading(page: Page, blocks: gr.Blocks) -> None:
    """A page that is loaded, perhaps again, shows what it was drawing, and can cancel it."""
    studio, output, step = page.studio, page.output, page.fields.named("step")

    async def loaded(name: str, browser: str) -> AsyncIterator[dict[Any, Any]]:
        steps = gr.update(choices=studio.runs[0].steps())  # it may have trained since the page was started
        yield {output.gallery: gallery_of(studio, browser), step: steps}
        async for update in shown_views(page, name, browser):
            yield update

    def cancelled(name: str, browser: str) -> None:
        studio.cancel(name)

    blocks.load(loaded, output.names, [*output.shown, step], concurrency_limit=None, **NAMED)
    output.cancel.click(cancelled, output.names, None, queue=False, **NAMED)
