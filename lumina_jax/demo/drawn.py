"""From a button that is pressed to what the page shows while its samples are drawn.

In: the fields of a tab. Out: updates of the components that show state, picture, files and history.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from lumina_jax.demo.fields import Fields
from lumina_jax.demo.form import Form
from lumina_jax.demo.picture_settings import PictureSettings
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.shown import state_html
from lumina_jax.demo.studio import Studio
from lumina_jax.demo.uploads import settings_in
from lumina_jax.failures import message

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of an event: nothing spins, and nobody calls it but the page."""
NAMED: dict[str, Any] = {
    **HIDDEN,
    "js": """(page, browser, ...others) => {
  const named = (store, key) => {
    if (!store.getItem(key)) {
      const words = crypto.getRandomValues(new Uint32Array(4));
      store.setItem(key, Array.from(words, word => word.toString(16).padStart(8, "0")).join(""));
    }
    return store.getItem(key);
  };
  return [named(sessionStorage, "lumina-page"), named(localStorage, "lumina-browser"), ...others];
}""",
}
"""Of an event whose first inputs are `Output.names`: those that this page, which a reload keeps, and this browser have
made up for themselves."""
Updates = dict[Any, Any]
"""What components become, by the components."""


class Output(NamedTuple):
    """What shows drawings, and the names of page and browser."""

    state: Any
    picture: Any
    cancel: Any
    files: Any
    gallery: Any
    page: Any
    browser: Any

    @property
    def names(self) -> list[Any]:
        return [self.page, self.browser]

    @property
    def shown(self) -> list[Any]:
        return [self.state, self.picture, self.files, self.gallery]


class Page(NamedTuple):
    """What a tab needs."""

    studio: Studio
    fields: Fields
    output: Output


class TabParts(NamedTuple):
    """A tab that is laid out."""

    tab: Any
    fits: Callable[[ShownRun], bool]
    """Whether the samples of a run can be drawn so; the page hides the tab of one that does not."""
    components: list[Any]
    """Those within it that change with the run or with settings that are restored."""
    of_run: Callable[[ShownRun], Updates]
    """What they become when a run is chosen."""
    of_settings: Callable[[PictureSettings, ShownRun], Updates]
    """What they become when the settings of a picture are restored."""


class Asking(NamedTuple):
    """What a tab asks for."""

    forms: list[Form]
    """One for each drawing."""
    more: dict[str, Any]
    """Arguments of `lumina sample` besides those of the forms."""


def draws(page: Page, triggers: Sequence[Any], asked: Callable[..., Asking], inputs: Sequence[Any] = ()) -> None:
    """Let events draw.

    Args:
      asked: from the form and the values of `inputs` to what is drawn; a ValueError is shown.
    """
    output, count = page.output, len(page.fields.of_form)

    async def draw(name: str, browser: str, *values: Any) -> AsyncIterator[Updates]:
        def submitted() -> None:
            asking = asked(Form.of(values[:count], page.studio.adapters), *values[count:])
            page.studio.submit(name, browser, asking.forms, **asking.more)

        try:
            await asyncio.to_thread(submitted)
        except Exception as error:  # one message, whatever is wrong
            yield {output.state: state_html(message(error), is_problem=True)}
            return
        async for update in shown_views(page, name, browser):
            yield update

    gr.on(
        triggers,
        draw,
        [*output.names, *page.fields.of_form, *inputs],
        output.shown,
        concurrency_limit=None,
        scroll_to_output=True,
        **NAMED,
    )


async def shown_views(page: Page, name: str, browser: str) -> AsyncIterator[Updates]:
    """What components become while the last drawings of a page go on, until they are over."""
    output, state, picture = page.output, "", ""
    async for view in page.studio.views(name):
        update: Updates = {}
        if view.state != state:
            update[output.state] = state = view.state
        if view.picture != picture:
            update[output.picture] = picture = view.picture
        if view.is_over:
            files = [str(file) for file in view.files]
            update[output.files] = gr.update(value=files or None, visible=bool(files))
            update[output.gallery] = gallery_of(page.studio, browser)
        if update:
            yield update


def gallery_of(studio: Studio, browser: str) -> list[tuple[str, str]]:
    """The pictures of a browser with their prompts."""
    return [(str(file), settings_in(file).prompt or "") for file in studio.history.of(browser)]
