"""What the page does, without its looks: requests become drawings, and drawings become what is shown.

In: forms, and the names that a page and a browser have made up for themselves. Out: drawings that wait in the queue,
and one `PageView` after another of how they get on.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lumina_jax.demo.form import Form, arguments_of
from lumina_jax.demo.history import History
from lumina_jax.demo.queue import DrawingQueue, QueuedDrawing
from lumina_jax.demo.runs import ShownRun
from lumina_jax.demo.shown import EMPTY, companions, drawn_html, preview_html, state_html
from lumina_jax.modalities import Shape
from lumina_jax.sample_requests.preparation import prepared

POLL_SECONDS, PREVIEW_SECONDS = 0.1, 0.25
"""How often a page looks how far its drawing is, and the least time between two previews."""
LONGEST_NAME = 64
MOST_TIMES = 16
"""How much larger than in training samples may be."""


class PageView(NamedTuple):
    """What a page shows of its drawings."""

    state: str
    """HTML that says what happens."""
    picture: str
    """HTML of samples, or of what they will be."""
    files: tuple[Path, ...] = ()
    """What can be downloaded."""
    is_over: bool = True


class Studio:
    """Draws for all pages.

    Args:
      runs: by their order on the page.
      adapters: folders of adapters that may be chosen, each with the strength that it begins with.
      uploads: the folder of uploaded files.
    """

    def __init__(self, runs: Sequence[ShownRun], adapters: Mapping[str, float], uploads: Path):
        self.runs, self.adapters, self.uploads = list(runs), dict(adapters), uploads
        self.history = History()
        self._queue = DrawingQueue(
            list(self.adapters), lambda drawing: self.history.add(drawing.browser, drawing.files)
        )

    def run(self, name: str | None, modality: str | None = None) -> ShownRun:
        """A run where it draws a modality; None: its first.

        Raises:
          ValueError: the page has no such run, or the run no such modality.
        """
        for run in self.runs:
            if run.name == name:
                return run.drawing(modality)
        raise ValueError(f"choose one of the runs {', '.join(run.name for run in self.runs)}")

    def run_of(self, form: Form) -> ShownRun:
        """The run that a form draws with. Raises ValueError: as `run`."""
        return self.run(form.run, form.modality)

    def submit(self, page: str, browser: str, forms: Sequence[Form], **more: Any) -> None:
        """Let samples of these forms be drawn one after another, for a page.

        Args:
          more: arguments of `lumina sample` besides those of the forms.

        Raises:
          ValueError: a field cannot be read or the model cannot draw it, or the page draws already.
        """
        drawings = []
        for form in forms:
            run = self.run_of(form)
            if not set(form.adapters) <= set(self.adapters):
                raise ValueError(f"choose adapters among {', '.join(self.adapters)}")
            notices: list[str] = []
            request = prepared(arguments_of(form, run, **more), notices.append)
            _check_size(run, request.shapes)
            drawings.append(QueuedDrawing(run, request, checked_name(browser), notices))
        self._queue.submit(checked_name(page), drawings)

    def cancel(self, page: str) -> None:
        self._queue.cancel(page)

    async def views(self, page: str) -> AsyncIterator[PageView]:
        """How the last drawings of a page get on, until they are over; at once one view if they are."""
        drawings = self._queue.of_page(page)
        shown_calls, shown_at, picture = -1, 0.0, EMPTY
        while True:
            is_over = all(drawing.is_over for drawing in drawings)
            current = next((drawing for drawing in drawings if not drawing.is_over), None)
            calls = 0 if current is None else self._queue.progress(current)[1]
            if is_over or (calls != shown_calls and time.monotonic() - shown_at > PREVIEW_SECONDS):
                picture = await asyncio.to_thread(self._picture, drawings, current)
                shown_calls, shown_at = calls, time.monotonic()
            files = tuple(one for drawing in drawings for file in drawing.files for one in companions(file))
            yield PageView(self._state(drawings, current), picture, files if is_over else (), is_over)
            if is_over:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _picture(self, drawings: Sequence[QueuedDrawing], current: QueuedDrawing | None) -> str:
        """The samples so far, and what the current drawing leads to."""
        files = [file for drawing in drawings for file in drawing.files]
        captions = [caption for drawing in drawings for caption in captions_of(drawing, len(drawings) > 1)]
        drawn = drawn_html(files, captions) if files else ""
        preview = None if current is None else self._queue.preview(current)
        return (drawn + ("" if preview is None else preview_html(preview))) or EMPTY

    def _state(self, drawings: Sequence[QueuedDrawing], current: QueuedDrawing | None) -> str:
        if current is None:
            return _result(drawings)
        if current.phase == "waiting":
            ahead = self._queue.ahead(current)
            return state_html(f"waiting for {ahead} other drawing{'' if ahead == 1 else 's'}", 0.0)
        if current.phase == "opening":
            return state_html(f"opening {current.run.name}", 0.0)
        share, calls = self._queue.progress(current)
        words = "starting, which compiles a program when the size or the solver is new" if not calls else "drawing"
        return state_html(words, share)


def captions_of(drawing: QueuedDrawing, has_others: bool) -> list[str]:
    """What stands below each sample of a drawing; beside others, with the run and the step."""
    prompts = drawing.request.prompts
    if not has_others:
        return prompts
    step = drawing.request.arguments.step
    return [f"{drawing.run.name}, step {step or drawing.run.steps()[0]}: {prompt}" for prompt in prompts]


def checked_name(name: str) -> str:
    """The name that a page or a browser has made up for itself. Raises ValueError: it has none."""
    if not (isinstance(name, str) and name.isalnum() and len(name) <= LONGEST_NAME):
        raise ValueError("the page was not loaded completely; load it again")
    return name


def _check_size(run: ShownRun, shapes: Sequence[Shape]) -> None:
    """Refuse samples so large that they would hold up everybody."""
    most = MOST_TIMES * math.prod(run.trained_shape)
    for shape in shapes:
        if math.prod(shape) > most:
            raise ValueError(
                f"the page draws at most {MOST_TIMES} times as much as a sample of training, of "
                f"{_words(run.trained_shape)}, but {_words(shape)} are asked for; `lumina sample` draws larger ones"
            )


def _words(shape: Shape) -> str:
    return " x ".join(f"{size}" for size in (shape.width, shape.height, shape.frames) if size > 1)


def _result(drawings: Sequence[QueuedDrawing]) -> str:
    """What came of drawings that are over."""
    if not drawings:
        return state_html("ready")
    problems = [drawing.problem for drawing in drawings if drawing.phase == "failed"]
    if problems:
        return state_html(problems[0], is_problem=True)
    if any(drawing.phase == "cancelled" for drawing in drawings):
        return state_html("cancelled")
    notices = list(dict.fromkeys(notice for drawing in drawings for notice in drawing.notices))
    return state_html("; ".join(["done", *notices]))
