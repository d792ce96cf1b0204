"""Writing a folder atomically, and replacing only folders that contain nothing but files written by this module.

In: a folder to write. Out: the folder with its files and a marker, .lumina_jax.json, which lists each file with its
size and SHA-256. An existing folder is replaced only if it contains a marker, the files that the marker lists,
unchanged, and nothing else at any depth. Otherwise an error names the other files.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.weights.rules import listed

MARKER = ".lumina_jax.json"
OLD, PARTIAL = ".old-", ".partial-"


class ExportRecord(TypedDict):
    size: int
    sha256: str


class Marker(TypedDict):
    files: dict[str, ExportRecord]


def check_room(folder: Path, wanted: int) -> None:
    """Check that the disk of a folder, which need not exist yet, has `wanted` bytes free.

    Raises:
      ValueError: it does not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise ValueError(
            f"{wanted / 1e9:.2f} GB must be free on the disk of {folder}, but {free / 1e9:.2f} GB are; "
            "free space there or name another folder"
        )


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Check that `folder` may be written or replaced.

    Args:
      overwrite: an unchanged folder that was written with a marker may be replaced.

    Raises:
      ValueError: it is a file, a link or a mount point, or a folder that is not empty and must not be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} must be a new folder, but is a file or a link; name another folder")
    if os.path.ismount(folder):
        raise ValueError(f"{folder} must be a new folder, but a disk is mounted there; name a folder within it")
    if not folder.exists():
        if left := _beside(folder, OLD):
            raise ValueError(
                f"replacing {folder} was interrupted, and its previous content is in {left[0]}; rename that to "
                f"{folder.name}, or remove it"
            )
        return
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name a new folder, or add --overwrite to replace it")
    if not (folder / MARKER).is_file() or (folder / MARKER).is_symlink():
        raise ValueError(
            f"{folder} can be overwritten only if lumina_jax wrote it, but it has no {MARKER}, which exports of "
            "earlier versions also lack; remove it yourself, or name another folder"
        )
    if other := foreign(folder):
        raise ValueError(
            f"{folder} can be overwritten only if it contains nothing but an unchanged export, but these files were "
            f"added or changed: {listed(other, most=5)}; move them away, or name another folder"
        )


def unfinished(folder: Path) -> list[Path]:
    """Return the temporary folders of processes that are writing `folder`, or were killed while writing it."""
    return _beside(folder, PARTIAL)


def foreign(folder: Path) -> list[str]:
    """Return the paths in a folder that were added or changed since its marker was written."""
    known = read_json(folder / MARKER, Marker)["files"]
    parents = {str(parent) for name in known for parent in Path(name).parents}
    other = []
    for name, path in _everything(folder):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            other.append(name)
        elif path.is_dir():
            other += [] if name in parents else [name]
        elif name != MARKER and (name not in known or known[name] != _written(path)):
            other.append(name)
    return sorted(other)


def write_marker(folder: Path, digests: Mapping[Path, str]) -> None:
    """Write the marker of a folder, and flush its files to disk.

    Args:
      digests: the SHA-256 of files for which it is already known; other files are read.
    """
    files = {
        name: _written(path, digests.get(path), flush=True)
        for name, path in sorted(_everything(folder))
        if path.is_file()
    }
    with (folder / MARKER).open("w") as file:
        file.write(json.dumps({"written by": "lumina convert", "files": files}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` at the end of the block, or is deleted if the block raises.

    Raises:
      ValueError: in the meantime something appeared in `folder` that must not be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}{PARTIAL}", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for inner in [entry for entry in temporary.rglob("*") if entry.is_dir()] + [temporary]:
            _flush(inner)
        check_destination(folder, overwrite=overwrite)
        _replace(temporary, folder)
        _flush(folder.parent)
    except BaseException:  # including KeyboardInterrupt
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _beside(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.parent.glob(f"{glob.escape(folder.name)}{ending}*"))


def _everything(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative and full path of each entry in a folder at any depth; links are not followed."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    raise error


def _written(path: Path, sha256: str | None = None, *, flush: bool = False) -> ExportRecord:
    with path.open("rb") as file:
        digest = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _replace(temporary: Path, folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        os.replace(temporary, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{folder.name}{OLD}", dir=folder.parent))
    try:
        os.replace(folder, old)
        os.replace(temporary, folder)
    except BaseException:
        if not folder.exists():
            os.replace(old, folder)
        with contextlib.suppress(OSError):  # it is already gone, or is not empty
            old.rmdir()
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove an export that was replaced, but no file that appeared in it in the meantime."""
    known = {*read_json(folder / MARKER, Marker)["files"], MARKER}
    for name, path in sorted(_everything(folder), reverse=True):
        with contextlib.suppress(OSError):  # the folder is not empty
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif name in known:
                path.unlink()
    if any(folder.iterdir()):
        raise ValueError(
            f"the new export is complete, but {folder} still contains files that appeared during writing; move them "
            "away"
        )
    folder.rmdir()


def _flush(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
