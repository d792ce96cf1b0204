"""Samples read ahead, by index and in any order, in threads or in worker processes.

In: a `grain.MapDataset` and the indices that will be needed. Out: each sample when it is asked for. The rows of a batch
take their samples at different speeds, so the order is known one sample at a time and not as one list.

Each worker process has a thread here, which asks it for one sample after another over a pipe that only the two share.
So the end of a process, at any moment, closes the pipe and is noticed; a queue shared by all would wait for ever.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import grain

from lumina_jax.failures import message

MESSAGE_SAMPLES = 16
"""Samples that a worker is asked for at once; each message costs the threads here a turn at the interpreter's lock."""
FOR_THE_PARENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Requests to stop. The parent answers them, and needs its workers until it has saved."""

_Read = tuple[bool, Any]
"""Whether a sample was read, and the sample or the error."""


class WorkerLostError(RuntimeError):
    """A worker process ended before it was told to."""


class ReadAhead:
    """Reads `samples[index]`.

    Args:
      samples: picklable, if there are workers.
      workers: processes that read; 0: `threads` of this process do.
    """

    def __init__(self, samples: grain.MapDataset, *, workers: int, threads: int) -> None:
        self._samples, self._workers, self._threads = samples, workers, threads
        self._pool: ThreadPoolExecutor | None = None
        self._of_thread = threading.local()
        self._started: list[_Worker] = []
        self._reading: dict[int, tuple[Future[list[_Read]], int]] = {}

    def want(self, indices: Iterable[int]) -> None:
        """Begin to read these, unless that has begun already."""
        new = [index for index in dict.fromkeys(indices) if index not in self._reading]
        share = -(-len(new) // self._workers) if self._workers else 1
        together = max(1, min(MESSAGE_SAMPLES, share))
        for start in range(0, len(new), together):
            part = new[start : start + together]
            future = self._opened().submit(self._read, part)
            self._reading |= {index: (future, place) for place, index in enumerate(part)}

    def read(self, index: int) -> Any:
        """The sample, which is forgotten then; an error of reading it is raised here.

        Raises:
          WorkerLostError: the process that read it has ended.
        """
        self.want([index])
        future, place = self._reading.pop(index)
        is_read, value = future.result()[place]
        if not is_read:
            raise value
        return value

    def close(self) -> None:
        """End threads and processes, and forget what was read ahead; reading starts them again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        for worker in self._started:
            worker.close()
        self._started.clear()
        self._reading.clear()

    def _opened(self) -> ThreadPoolExecutor:
        if self._pool is None and self._workers:
            self._pool = ThreadPoolExecutor(self._workers)
        elif self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads)
        return self._pool

    def _read(self, indices: list[int]) -> list[_Read]:
        """Read in this thread, or in the process that belongs to it."""
        if not self._workers:
            return [_read(self._samples, index) for index in indices]
        if not hasattr(self._of_thread, "worker"):
            self._of_thread.worker = _Worker(self._samples)
            self._started.append(self._of_thread.worker)
        return self._of_thread.worker.read(indices)


class _Worker:
    """A process that reads samples and ignores requests to stop from its start.

    Raises:
      WorkerLostError: it cannot be started.
    """

    def __init__(self, samples: grain.MapDataset) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)  # a new process inherits what its thread blocks
        spawned = multiprocessing.get_context("spawn")
        try:
            self._line, line_of_worker = spawned.Pipe()
            self._process = spawned.Process(target=_work, args=(line_of_worker, samples), daemon=True)
            self._process.start()
        except OSError as error:
            raise WorkerLostError(f"a data worker cannot be started ({error}); lower data.workers") from None
        line_of_worker.close()  # now only the worker holds it, and its end is the end of the pipe
        atexit.register(self._line.close)  # before multiprocessing waits for its processes

    def read(self, indices: list[int]) -> list[_Read]:
        try:
            self._line.send(indices)
            return self._line.recv()
        except (EOFError, OSError):
            raise WorkerLostError(self._loss()) from None

    def close(self) -> None:
        atexit.unregister(self._line.close)
        self._line.close()
        self._process.join()

    def _loss(self) -> str:
        self._process.join()
        status = self._process.exitcode or 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        why = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
        return (
            f"the data worker of process id {self._process.pid} {how}{why}; lower data.workers or data.prefetch, or "
            "free memory, and start the same command again"
        )


def _work(line: Connection, samples: grain.MapDataset) -> None:
    """Serve samples until the pipe closes; the process ends with its parent."""
    for number in FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            read = [_read(samples, index) for index in line.recv()]
            line.send([one if one[0] else (False, _portable(one[1])) for one in read])


def _read(samples: grain.MapDataset, index: int) -> _Read:
    try:
        return True, samples[index]
    except Exception as error:
        return False, error


def _portable(error: Exception) -> Exception:
    """An error that can be sent to another process; not every one can."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(message(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(1)
