"""Folders of published models: local ones, and repositories of the Hugging Face hub that were downloaded before.

In: a folder, or the id of a repository such as "stabilityai/sdxl-vae", and the files wanted from it. Out: a folder that
holds them. Nothing is ever downloaded here: what is missing is an error with the command that fetches it.

The cache has a folder for each revision, models--OWNER--NAME/snapshots/COMMIT, and refs/main names that of the branch.
A download of one revision (`hf download --revision COMMIT`) leaves no refs/main.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CACHED, SNAPSHOTS, SHOWN_DIGITS = "models--", "snapshots", 12


def local_folder(name_or_folder: str | Path, *, files: Sequence[str] = (), what: str = "model") -> Path:
    """The folder itself, or the snapshot of a repository in the local cache of huggingface_hub: that of the branch
    main, and where it is not there or lacks files, the only other one that has them.

    Args:
      files: patterns such as "vae/*.safetensors", each of which must match a file under the folder.
      what: the name of the thing in error messages.

    Raises:
      ValueError: there is no such folder or snapshot, or a pattern matches nothing; the message names the repository,
        the files and the command that downloads them. Or several revisions would do.
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
            f"{len(complete)} revisions of {name!r} are downloaded and none is that of the branch main; name the "
            f"folder of one: {', '.join(map(str, complete))}"
        )
    if complete:
        return complete[0]
    raise ValueError(
        f"the {what} {name!r} is neither a folder nor downloaded from the Hugging Face hub: missing "
        f"{', '.join(missing) or 'everything'}; nothing is downloaded while a program runs, so run first: "
        f"{_command(name, files)}"
    )


def published_name(path: Path) -> str | None:
    """What a path within the cache is called on the hub, such as "owner/name at revision 0123456789ab"; None: it is not
    in the cache."""
    parts = path.absolute().parts
    for repository, folder, commit in zip(parts, parts[1:], parts[2:]):
        if repository.startswith(CACHED) and folder == SNAPSHOTS:
            name = "/".join(repository.removeprefix(CACHED).split("--"))
            return f"{name} at revision {commit[:SHOWN_DIGITS]}"
    return None


def _snapshots(repository: str) -> tuple[Path | None, list[Path]]:
    """The snapshot of the branch main, and the others."""
    from huggingface_hub import constants, snapshot_download  # slow to import, and folders never need it
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        main: Path | None = Path(snapshot_download(repository, local_files_only=True))
    except HFValidationError:
        return None, []
    except LocalEntryNotFoundError:
        main = None
    folder = Path(constants.HF_HUB_CACHE) / f"{CACHED}{'--'.join(repository.split('/'))}" / SNAPSHOTS
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return main, [snapshot for snapshot in found if snapshot.is_dir() and snapshot != main]


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """The patterns that match no file."""
    return [pattern for pattern in files if not any(path.is_file() for path in folder.glob(pattern))]


def _command(repository: str, files: Sequence[str]) -> str:
    patterns = "".join(f" --include {shlex.quote(pattern)}" for pattern in files)
    return f"hf download {repository}{patterns}"
