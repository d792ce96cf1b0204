"""Progress of long work: a bar with the time left, or a line every few seconds if the output is not a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def counted(
    description: str, total: int, *, is_shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of items done so far, which shows the progress.

        with counted("encoding captions", len(captions)) as show:
            show(32)  # 32 captions are done

    Args:
      description: the text to show.
      total: the number of items.
      is_shown: False prints nothing; it is true in one process of a job only.
      clock: a function that returns seconds.
    """
    if not is_shown:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(description, total) as show:
            yield show
    else:
        yield _lines(description, total, clock)


@contextlib.contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(description: str, total: int, clock: Callable[[], float]) -> Callable[[int], None]:
    last = clock()

    def show(done: int) -> None:
        nonlocal last
        if clock() - last >= SECONDS_BETWEEN_LINES:
            last = clock()
            print(f"{description}: {done} of {total}", file=sys.stderr, flush=True)

    return show


def duration(seconds: float) -> str:
    """59 s, 12:34 or 1:23:45."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
