"""Finding the folder of a published model: a local one, or a downloaded repository of the Hugging Face hub.

In: a folder, or the id of a repository such as "stabilityai/sdxl-vae", and the files that are needed. Out: a folder
that contains them. Nothing is downloaded: if files are missing, the error has the command that downloads them.

The cache of the hub has a folder for each revision, models--OWNER--NAME/snapshots/COMMIT, and refs/main contains the
commit of the branch main. Downloading a single revision (`hf download --revision COMMIT`) does not write refs/main.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CACHE_PREFIX, SNAPSHOTS, COMMIT_DIGITS = "models--", "snapshots", 12


def local_folder(name_or_folder: str | Path, *, files: Sequence[str] = (), what: str = "model") -> Path:
    """Return the folder itself, or the snapshot of a repository in the local cache of huggingface_hub.

    This is the snapshot of the branch main or, if that is missing or incomplete, the only other complete one.

    Args:
      files: patterns such as "vae/*.safetensors", each of which must match a file under the folder.
      what: what error messages call the model.

    Raises:
      ValueError: there is no such folder or snapshot, or a pattern matches nothing; the message names the repository,
        the files and the command that downloads them. Or several other revisions are complete.
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
    main, others = _snapshots(name)
    missing = list(files) if main is None else _missing(main, files)
    if main is not None and not missing:
        return main
    complete = [snapshot for snapshot in others if not _missing(snapshot, files)]
    if len(complete) > 1:
        raise ValueError(
            f"{len(complete)} revisions of {name!r} are downloaded, but not the branch main; name the folder of one "
            f"revision: {', '.join(map(str, complete))}"
        )
    if complete:
        return complete[0]
    raise ValueError(
        f"the {what} {name!r} is neither a folder nor a complete download of the Hugging Face hub: missing "
        f"{', '.join(missing) or 'everything'}; download it first with: "
        f"{_command(name, files)}"
    )


def published_name(path: Path) -> str | None:
    """Return the name on the hub of a path in the cache, such as "owner/name at revision 0123456789ab", or None."""
    parts = path.absolute().parts
    for repository, folder, commit in zip(parts, parts[1:], parts[2:]):
        if repository.startswith(CACHE_PREFIX) and folder == SNAPSHOTS:
            name = "/".join(repository.removeprefix(CACHE_PREFIX).split("--"))
            return f"{name} at revision {commit[:COMMIT_DIGITS]}"
    return None


def _snapshots(repository: str) -> tuple[Path | None, list[Path]]:
    """Return the snapshot of the branch main, if there is one, and the other snapshots."""
    from huggingface_hub import constants, snapshot_download  # slow to import, and not needed for folders
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        main: Path | None = Path(snapshot_download(repository, local_files_only=True))
    except HFValidationError:
        return None, []
    except LocalEntryNotFoundError:
        main = None
    folder = Path(constants.HF_HUB_CACHE) / f"{CACHE_PREFIX}{'--'.join(repository.split('/'))}" / SNAPSHOTS
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return main, [snapshot for snapshot in found if snapshot.is_dir() and snapshot != main]


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patterns that match no file."""
    return [pattern for pattern in files if not any(path.is_file() for path in folder.glob(pattern))]


def _command(repository: str, files: Sequence[str]) -> str:
    patterns = "".join(f" --include {shlex.quote(pattern)}" for pattern in files)
    return f"hf download {repository}{patterns}"
