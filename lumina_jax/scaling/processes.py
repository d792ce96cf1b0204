"""The runs of a grid, each trained by a process of its own, several at a time.

In: cells that are not over, and a command that trains one. Out: their results. A process whose parent is gone, killed
for example, ends at once, so that the same grid can be started again. A process that fails stops nothing but its run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lumina_jax.scaling.devices import DeviceSet
from lumina_jax.scaling.grid import GridCell
from lumina_jax.scaling.results import LOG_FILE, run_folder_of

LAST_LINES = 8
"""Lines of the log of a run that failed, to show."""
POLL = 0.1
"""Seconds between two looks at the processes."""
SECONDS_BETWEEN_REPORTS = 30.0


class Failure(NamedTuple):
    """A run whose process ended without a result."""

    cell: GridCell
    status: int
    log: Path

    def __str__(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        shown = "\n".join(f"    {line}" for line in lines)
        return f"{self.cell.name} ended with status {self.status}; the end of {self.log}:\n{shown}"


def train_cells(
    cells: Sequence[GridCell],
    folder: Path,
    sets: Sequence[DeviceSet],
    command: Callable[[GridCell], Sequence[str]],
    environment: dict[str, str],
    *,
    ended: Callable[[GridCell, bool], None],
    shown: Callable[[dict[GridCell, int]], None],
) -> list[Failure]:
    """Train cells, one at a time on each set of devices; returns those that failed.

    Ctrl-C and SIGTERM let all running cells save, and then raise KeyboardInterrupt.

    Args:
      command: the words that train a cell.
      environment: of every process.
      ended: called when a process has ended, with whether it was without error.
      shown: called now and then with the steps that the running cells have done.
    """
    waiting, free = deque(cells), deque(sets)
    running: dict[GridCell, tuple[subprocess.Popen[bytes], DeviceSet]] = {}
    failures, last = [], time.monotonic()
    with _stopping(running):
        while waiting or running:
            while waiting and free:
                cell, devices = waiting.popleft(), free.popleft()
                running[cell] = (_started(cell, folder, devices, command(cell), environment), devices)
            time.sleep(POLL)
            for cell, (process, devices) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[cell]
                free.append(devices)
                if process.returncode:
                    failures.append(Failure(cell, process.returncode, run_folder_of(folder, cell) / LOG_FILE))
                ended(cell, not process.returncode)
            if time.monotonic() - last >= SECONDS_BETWEEN_REPORTS:
                last = time.monotonic()
                shown({cell: steps_done(run_folder_of(folder, cell)) for cell in running})
    return failures


def steps_done(run_folder: Path) -> int:
    """The steps of a run, by its last report."""
    try:
        lines = (run_folder / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def end_with_parent() -> None:
    """From now on this process ends when the one that started it has gone, whose end of standard input then closes."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _started(
    cell: GridCell, folder: Path, devices: DeviceSet, words: Sequence[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """The process of a cell, on its devices, with its output in the log of the run."""
    log = run_folder_of(folder, cell) / LOG_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0)
    with log.open("ab") as output:
        os.sched_setaffinity(0, devices.cores)  # which the process inherits
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | devices.variables,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _stopping(running: dict[GridCell, Any]) -> Iterator[None]:
    """Within the block SIGTERM is as Ctrl-C. When it ends by an exception, the running processes are asked to save; a
    second Ctrl-C kills them."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        for process, _ in running.values():
            process.terminate()
        if running:
            print(f"waiting until {len(running)} runs have saved; Ctrl-C again ends them at once", file=sys.stderr)
        try:
            for process, _ in running.values():
                process.wait()
        except KeyboardInterrupt:
            for process, _ in running.values():
                process.kill()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
