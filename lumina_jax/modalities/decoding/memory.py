"""How much memory the decoding of pictures may take at once.

In: the bytes that a thread is about to use. Out: a turn, in which it may. Sixteen threads that read ordinary pictures
never wait. Enormous pictures are decoded one after another, by all processes of a user on a machine.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

LARGE = 2**26
"""Bytes from which on memory is handed back to the system at once; glibc would keep as much for each thread."""
ENORMOUS = 2**28
"""Bytes from which on processes take turns."""
PATIENCE = 60.0
"""Seconds after which a process no longer waits for others, which may have been stopped."""


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
            with _turn_of_processes() if amount >= ENORMOUS else contextlib.nullcontext():
                yield
        finally:
            if amount >= LARGE:
                _trim()(0)
            with self._freed:
                self._free += amount
                self._freed.notify_all()


@contextlib.contextmanager
def _turn_of_processes() -> Iterator[None]:
    """Holds a lock of the file system, which ends with a process that is killed."""
    path = os.path.join(tempfile.gettempdir(), f"lumina-jax-decoding-{os.getuid()}")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # then nothing tells processes of one another
        yield
        return
    try:
        deadline = time.monotonic() + PATIENCE
        while not _is_locked(descriptor) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def _trim() -> Callable[[int], object]:
    """What hands free memory back to the system, where the C library is glibc."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


DECODING = Budget(3 * 2**29)
"""What all threads of this process share for decoding."""
