"""Samples read ahead of their use, by index and in any order, in threads or in worker processes.

In: a `grain.MapDataset` and the indices that will be wanted. Out: the samples, each when it is asked for. Rows of a
batch take their samples each at its own pace, so the order is known one sample at a time and not as one list.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import grain


class ReadAhead:
    """Reads `samples[index]`.

    Args:
      samples: picklable, if there are workers.
      workers: processes that read; 0: `threads` of this process do.
    """

    def __init__(self, samples: grain.MapDataset, *, workers: int, threads: int) -> None:
        self._samples, self._workers, self._threads = samples, workers, threads
        self._pool: Executor | None = None
        self._reading: dict[int, Future] = {}

    def want(self, indices: Iterable[int]) -> None:
        """Begin to read these, if that has not begun."""
        for index in indices:
            if index not in self._reading:
                pool = self._opened()
                read = self._samples.__getitem__ if isinstance(pool, ThreadPoolExecutor) else _read
                self._reading[index] = pool.submit(read, index)

    def read(self, index: int) -> Any:
        """The sample, and forget it; an error of reading it is raised here."""
        self.want([index])
        return self._reading.pop(index).result()

    def close(self) -> None:
        """End threads and processes, and forget what was read; reading starts them again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._reading.clear()

    def _opened(self) -> Executor:
        if self._pool is None and self._workers:
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_open_in_worker,
                initargs=(self._samples,),
            )
        elif self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads)
        return self._pool


_samples_of_worker: list[grain.MapDataset] = []
"""In a worker process, the one data set that it reads."""


def _open_in_worker(samples: grain.MapDataset) -> None:
    """Requests to stop are for the parent, which still needs its workers to save; but no worker outlives it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _samples_of_worker.append(samples)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(1)


def _read(index: int) -> Any:
    return _samples_of_worker[0][index]
