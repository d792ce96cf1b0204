"""Reporting errors of commands: one line on standard error, and an exit status other than 0.

In: an exception raised by a command. Out: "error: ..." without a traceback, which LUMINA_TRACEBACK=1 shows. An
unexpected exception is reported in the same way, and described as a bug in lumina_jax.
"""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator

EXPECTED = (ValueError, OSError, ImportError, RuntimeError)
"""Exceptions whose message is written for the user."""
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers of a full or read-only disk."""
REFUSED_OPTION = re.compile(
    r"No such compile option: '\w+'|Failed to parse '.*' into flag \w+|While setting option \w+, .*value"
)
"""How a compiler refuses an option of `parallel/compiler_options.py`, as another version of libtpu may."""
INTERRUPTED = 130
"""The exit status after Ctrl-C."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn exceptions of the block into a line on standard error and a SystemExit."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # otherwise Python prints an error when it flushes
        raise SystemExit(1) from None
    except Exception as error:
        report(error)
        raise SystemExit(1) from None


@contextlib.contextmanager
def written_to(folder: str | os.PathLike[str], what: str, setting: str) -> Iterator[None]:
    """Add the folder to errors of a full or read-only disk, in which the system does not name it.

    Args:
      what: what the block writes, for the message.
      setting: the setting that chooses the folder, for the message.

    Raises:
      OSError: the disk is full or read-only; other errors are not changed.
    """
    try:
        yield
    except Exception as error:
        reason = _reason_of_disk(error)
        if reason is None:
            raise
        raise OSError(
            f"{what} cannot be written to {folder} ({reason}); free space there, or choose another {setting}, and run "
            "the same command again"
        ) from error


def report(error: BaseException) -> None:
    """Print an error."""
    if os.environ.get("LUMINA_TRACEBACK"):
        traceback.print_exception(error)
    else:
        print(f"error: {message(error)}\n(set LUMINA_TRACEBACK=1 for a traceback)", file=sys.stderr, flush=True)


def message(error: BaseException) -> str:
    """Describe an error to a user who does not know the code."""
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if "memory space vmem" in text:
        return (
            "the TPU compiler needs more of a core's own memory (VMEM) than it has, which says nothing of HBM: "
            f"{text.splitlines()[0][:300]}; try LUMINA_TPU_OPTIONS=none in the environment, or --model.attention xla"
        )
    if isinstance(error, MemoryError) or any(word in text for word in OUT_OF_MEMORY):
        first = text.splitlines()[0] if text else type(error).__name__
        return f"out of memory ({first[:200]}); use smaller pictures, a smaller batch or shorter rows"
    if refused := REFUSED_OPTION.search(text):
        return (
            f"the compiler refuses one of its options ({refused[0]}), which another version of libtpu may know; "
            "LUMINA_TPU_OPTIONS=none in the environment leaves every option to it (docs/scaling.md lists them)"
        )
    if isinstance(error, EXPECTED) and not isinstance(error, RecursionError | NotImplementedError) and text:
        return text
    return f"{type(error).__name__}: {text}\nThis is a bug in lumina_jax: a check should have refused the input earlier"


def _reason_of_disk(error: Exception) -> str | None:
    """Return the system's message if the disk is full or read-only; safetensors has the number in its text only."""
    match = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else match and int(match[1])
    return os.strerror(number) if number in FULL else None
