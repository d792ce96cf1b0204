"""The door to PyAV, for videos and for sounds that libsndfile does not know."""

import io
from pathlib import Path
from typing import Any


def load_av() -> Any:
    """PyAV.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ImportError("reading videos needs PyAV: pip install 'lumina_jax[media]'") from None
    return av


def open_container(file: Path | io.BytesIO) -> Any:
    """PyAV's container of a file. Titles and comments may hold bytes that are no UTF-8.

    Raises:
      av.error.FFmpegError: the file cannot be read.
    """
    av = load_av()
    source = str(file.absolute()) if isinstance(file, Path) else file
    # PyAV 19 decodes every text; earlier ones need to be told.
    is_told = int(av.__version__.partition(".")[0]) < 19
    return av.open(source, metadata_errors="replace") if is_told else av.open(source)
