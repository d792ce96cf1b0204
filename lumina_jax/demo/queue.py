"""The one place where the page draws: requests wait in a line, and one thread draws one after another.

In: requests that were checked. Out: for each a `QueuedDrawing`, which says how far it is and what came of it; it can be
cancelled while it waits, and between two calls of the network while it is drawn.
"""

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lumina_jax.demo.models import OpenedModels
from lumina_jax.demo.runs import ShownRun
from lumina_jax.encoders.caption_warnings import caption_warnings
from lumina_jax.failures import message
from lumina_jax.generation.following import Follower
from lumina_jax.generation.gallery import writable
from lumina_jax.generation.not_drawn import NotDrawn
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.run import samples_folder
from lumina_jax.sample_requests.preparation import Prepared

MOST_WAITING = 64
MOST_PAGES = 1024
"""Pages whose last drawing is remembered, so that it is shown again after a reload."""

Phase = Literal["waiting", "opening", "drawing", "done", "failed", "cancelled"]
FINAL = ("done", "failed", "cancelled")


@dataclass(eq=False)
class QueuedDrawing:
    """A request on its way."""

    run: ShownRun
    request: Prepared
    browser: str
    """The name of the browser in whose history it goes."""
    notices: list[str] = field(default_factory=list)
    """What whoever asked should know, such as how a file was cropped."""
    phase: Phase = "waiting"
    problem: str = ""
    """Why it failed."""
    files: list[Path] = field(default_factory=list)
    """The PNG of each sample so far."""
    is_cancelled: bool = False

    @property
    def is_over(self) -> bool:
        return self.phase in FINAL


class DrawingQueue:
    """Draws requests one after another in a thread of its own, which ends with the process.

    Args:
      adapters: folders of adapters that may be chosen.
      done: is told of each drawing that is done.
    """

    def __init__(self, adapters: Sequence[str], done: Callable[[QueuedDrawing], None]) -> None:
        self._done, self._follower = done, Follower()
        self._models = OpenedModels(adapters, self._follower)
        self._waiting: deque[QueuedDrawing] = deque()
        self._current: QueuedDrawing | None = None
        self._pipeline: Pipeline | None = None
        """What the last drawing is or was drawn with."""
        self._of_page: OrderedDict[str, list[QueuedDrawing]] = OrderedDict()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="drawing", daemon=True).start()

    def submit(self, page: str, drawings: list[QueuedDrawing]) -> None:
        """Let these wait for their turn, in this order, as the drawings of a page.

        Raises:
          ValueError: the page draws already, or too many wait.
        """
        with self._changed:
            if any(not drawing.is_over for drawing in self._of_page.get(page, [])):
                raise ValueError("this page is drawing already; wait for it, or cancel it")
            if len(self._waiting) + len(drawings) > MOST_WAITING:
                raise ValueError(f"{len(self._waiting)} drawings are waiting, which are too many; try again later")
            self._waiting.extend(drawings)
            self._of_page[page] = drawings
            self._of_page.move_to_end(page)
            while len(self._of_page) > MOST_PAGES:
                self._of_page.popitem(last=False)
            self._changed.notify_all()

    def of_page(self, page: str) -> list[QueuedDrawing]:
        """The last drawings that a page asked for."""
        with self._changed:
            return list(self._of_page.get(page, []))

    def cancel(self, page: str) -> None:
        """Cancel what a page is drawing or waits for."""
        with self._changed:
            for drawing in self._of_page.get(page, []):
                drawing.is_cancelled = True
                if drawing in self._waiting:
                    self._waiting.remove(drawing)
                    drawing.phase = "cancelled"
                elif drawing is self._current:
                    self._follower.stop()

    def ahead(self, drawing: QueuedDrawing) -> int:
        """Drawings that come before one that waits."""
        with self._changed:
            return self._waiting.index(drawing) + (self._current is not None) if drawing in self._waiting else 0

    def progress(self, drawing: QueuedDrawing) -> tuple[float, int]:
        """How far a drawing is, from 0 to 1, and the calls of the network, while it is drawn."""
        seen = self._follower.seen()
        return (seen.time, seen.calls) if drawing is self._current and drawing.phase == "drawing" else (0.0, 0)

    def preview(self, drawing: QueuedDrawing) -> UInt8[np.ndarray, "h w 3"] | None:
        """What the drawing leads to as far as the network can say; None: nothing is known."""
        data, pipeline = self._follower.seen().data, self._pipeline
        if drawing is not self._current or drawing.phase != "drawing" or data is None or pipeline is None:
            return None
        modality = drawing.request.modality
        values = modality.from_latents(data[:1], pipeline.autoencoders.get(modality.config.name))
        return modality.preview(modality.shown(values)[0])

    def _work(self) -> None:
        for _ in itertools.repeat(None):
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                drawing = self._current = self._waiting.popleft()
                drawing.phase = "opening"
                self._follower.begin()
            try:
                phase: Phase = "cancelled" if self._draw(drawing) else "done"
                if phase == "done":
                    self._done(drawing)
            except Exception as error:  # whatever happens, the others have their turn
                drawing.problem, phase = message(error), "failed"
            with self._changed:
                self._current, drawing.phase = None, phase

    def _draw(self, drawing: QueuedDrawing) -> bool:
        """Draw, and write the samples; returns whether it was cancelled."""
        request = drawing.request
        pipeline = self._models.pipeline(drawing.run, request.arguments.step, request.arguments.adapter)
        drawing.notices += caption_warnings(pipeline.encoder, request.captions, request.config.text.max_tokens)
        gallery = request.gallery(writable(drawn_folder(drawing.run, pipeline)), pipeline)
        self._pipeline, drawing.phase = pipeline, "drawing"
        for index, sample in request.drawn(pipeline):
            if drawing.is_cancelled:
                return True
            if isinstance(sample, NotDrawn):
                raise ValueError(f"no sample of {request.prompts[index]!r}: {sample.reason}")
            drawing.files.append(gallery.add(index, sample))
        return False


def drawn_folder(run: ShownRun, pipeline: Pipeline) -> Path:
    """Where the page writes what it draws with a model."""
    return samples_folder(run.folder, pipeline.step) / "demo"
