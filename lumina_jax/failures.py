"""How a command ends when something goes wrong: one line that says what, and a status that is not 0.

In: whatever a command raises. Out: on standard error, "error: ..." without a traceback; LUMINA_TRACEBACK=1 shows it. An
error that no code foresaw is shown in the same way and called a fault of lumina_jax.
"""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator

EXPECTED = (ValueError, OSError, ImportError, RuntimeError)
"""Errors whose text is meant for the user."""
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""System errors of a disk that takes no more, or nothing at all."""
INTERRUPTED = 130
"""Status of a command that Ctrl-C ended."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns what the block raises into a line on standard error and a SystemExit."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        raise SystemExit(1) from None
    except Exception as error:
        report(error)
        raise SystemExit(1) from None


@contextlib.contextmanager
def written_to(folder: str | os.PathLike[str], what: str, setting: str) -> Iterator[None]:
    """Names the folder, which the system does not, when a disk takes no more.

    Args:
      what: is written there.
      setting: chooses the folder.

    Raises:
      OSError: the disk is full, or may not be written to; other errors stay as they are.
    """
    try:
        yield
    except Exception as error:
        reason = _reason_of_disk(error)
        if reason is None:
            raise
        raise OSError(
            f"{what} cannot be written to {folder} ({reason}); free space there, or choose another {setting}, and "
            "start the same command again"
        ) from error


def report(error: BaseException) -> None:
    """Print what went wrong."""
    if os.environ.get("LUMINA_TRACEBACK"):
        traceback.print_exception(error)
    else:
        print(f"error: {message(error)}\n(LUMINA_TRACEBACK=1 shows where)", file=sys.stderr, flush=True)


def message(error: BaseException) -> str:
    """What went wrong, for a reader who does not know the code."""
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, MemoryError) or any(word in text for word in OUT_OF_MEMORY):
        first = text.splitlines()[0] if text else type(error).__name__
        return f"memory is exhausted ({first[:200]}); use smaller pictures, a smaller batch or shorter rows"
    if isinstance(error, EXPECTED) and not isinstance(error, RecursionError | NotImplementedError) and text:
        return text
    return f"{type(error).__name__}: {text}\nThis is a fault of lumina_jax: no check refused what led here"


def _reason_of_disk(error: Exception) -> str | None:
    """What the system said, if an error is of a disk that takes no more; safetensors gives it as text."""
    said = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else said and int(said[1])
    return os.strerror(number) if number in FULL else None
