"""The programs that jax compiles while something runs, by their names."""

import contextlib
import re

import jax


@contextlib.contextmanager
def compiled(caplog):
    """A list that holds, after the block, the name of each function that was compiled within it."""
    names = []
    with jax.log_compiles(), caplog.at_level("WARNING"):
        caplog.clear()
        yield names
    names += re.findall(r"^Compiling (?:jit\()?(\w+)", "\n".join(caplog.messages), re.MULTILINE)
