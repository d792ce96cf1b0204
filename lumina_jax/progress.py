"""How far long work is: a bar with the time left, or a line now and then where the output is not a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def counted(
    description: str, total: int, *, is_shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of `total` are done; nothing is shown of work that is done at once.

        with counted("encoding captions", len(captions)) as show:
            show(32)    # 32 in all

    Args:
      description: what is being done.
      is_shown: False: say nothing, as all but one process of a job do.
      clock: gives seconds.
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
