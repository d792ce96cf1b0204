"""Folders of published models: local ones, and repositories of the Hugging Face hub that were downloaded before.

In: a folder, or the id of a repository such as "stabilityai/sdxl-vae", and the files wanted from it. Out: a folder that
holds them. Nothing is ever downloaded here: what is missing is an error with the command that fetches it.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_folder(name_or_folder: str | Path, *, files: Sequence[str] = (), what: str = "model") -> Path:
    """The folder itself, or the newest snapshot of a repository in the local cache of huggingface_hub.

    Args:
      files: patterns such as "vae/*.safetensors", each of which must match a file under the folder.
      what: the name of the thing in error messages.

    Raises:
      ValueError: there is no such folder or snapshot, or a pattern matches nothing; the message names the repository,
        the files and the command that downloads them.
    """
    name = str(name_or_folder)
    folder = Path(name_or_folder)
    if folder.is_dir():
        missing = _missing(folder, files)
        if missing:
            raise ValueError(f"the {what} in {folder} lacks {', '.join(missing)}; copy them there")
        return folder
    if not isinstance(name_or_folder, str) or not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"there is no folder {name} with a {what}; name an existing folder, or a repository of the Hugging Face "
            "hub as owner/name"
        )
    snapshot = _snapshot(name)
    missing = list(files) if snapshot is None else _missing(snapshot, files)
    if snapshot is None or missing:
        raise ValueError(
            f"the {what} {name!r} is neither a folder nor downloaded from the Hugging Face hub: missing "
            f"{', '.join(missing) or 'everything'}; nothing is downloaded while a program runs, so run first: "
            f"{_command(name, files)}"
        )
    return snapshot


def _snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download  # slow to import, and folders never need it
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """The patterns that match no file."""
    return [pattern for pattern in files if not any(path.is_file() for path in folder.glob(pattern))]


def _command(repository: str, files: Sequence[str]) -> str:
    patterns = "".join(f" --include {shlex.quote(pattern)}" for pattern in files)
    return f"hf download {repository}{patterns}"
