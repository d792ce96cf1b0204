"""How much memory the decoding of pictures may take at once in a process.

In: the bytes that a thread is about to use. Out: a turn, in which it may. Sixteen threads that read ordinary pictures
never wait; enormous pictures are decoded one after another.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator

LARGE = 2**26
"""Bytes from which on memory is handed back to the system at once; glibc would keep as much for each thread."""


class Budget:
    """Bytes that threads share. A thread that asks for more than there are in all takes them all, and so runs alone."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn, self._freed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def reserved(self, amount: int) -> Iterator[None]:
        """Waits until `amount` bytes are free, and holds them during the block. Threads are served in the order in
        which they ask, so that one that asks for much is not passed over for ever. Blocks must not be nested."""
        amount = min(amount, self._total)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            if amount >= LARGE:
                _trim()(0)
            with self._freed:
                self._free += amount
                self._freed.notify_all()


@functools.cache
def _trim() -> Callable[[int], object]:
    """What hands free memory back to the system, where the C library is glibc."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


DECODING = Budget(2**30)
"""What all threads of this process share for decoding."""
