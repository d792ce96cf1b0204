"""Folders that appear whole or not at all, and are replaced only where everything in them was written here.

In: a folder to write. Out: the folder with its files and a marker, .lumina_jax.json, that lists each of them with its
size and SHA-256. A folder that is in the way is replaced when its marker is there, and it holds what the marker lists
and nothing else, at any depth; anything else is somebody's, and an error names it.
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


class Written(TypedDict):
    size: int
    sha256: str


class Marker(TypedDict):
    files: dict[str, Written]


def check_room(folder: Path, wanted: int) -> None:
    """The disk on which a folder will lie has `wanted` bytes free.

    Raises:
      ValueError: it has not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise ValueError(
            f"{wanted / 1e9:.2f} GB must be free on the disk of {folder}, but {free / 1e9:.2f} GB are; "
            "free space there or name another folder"
        )


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Nothing that is worth keeping would be lost if `folder` were replaced.

    Args:
      overwrite: a folder that `new_folder` wrote, and nobody changed since, may be replaced.

    Raises:
      ValueError: it is a file, a link or a mounted disk, or a folder that is not empty and may not be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} must be a new folder, but it is a file or a link; name another")
    if os.path.ismount(folder):
        raise ValueError(f"{folder} must be a new folder, but a disk is mounted there; name a folder within it")
    if not folder.exists():
        if left := _beside(folder, OLD):
            raise ValueError(
                f"replacing {folder} was interrupted, and what it held is in {left[0]}; rename that to {folder.name}, "
                "or remove it"
            )
        return
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name a new folder, or add --overwrite to replace it")
    if not (folder / MARKER).is_file() or (folder / MARKER).is_symlink():
        raise ValueError(
            f"{folder} may only be overwritten when it is an export of ours, but it has no {MARKER}, which exports of "
            "earlier versions lack too; remove it yourself, or name another folder"
        )
    if other := foreign(folder):
        raise ValueError(
            f"{folder} may only be overwritten when it holds nothing but an unchanged export, but somebody added or "
            f"changed {listed(other, most=5)}; move that away, or name another folder"
        )


def unfinished(folder: Path) -> list[Path]:
    """What writing `folder` left when it was killed, or leaves if it still goes on."""
    return _beside(folder, PARTIAL)


def foreign(folder: Path) -> list[str]:
    """What a folder holds besides the files that its marker lists: whatever was added or changed."""
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
    """List the files of a folder as ours, and flush them to the disk.

    Args:
      digests: the SHA-256 of files where it is known already; the others are read.
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
    """A temporary sibling, which takes the place of `folder` when the block ends, or vanishes when it raises.

    Raises:
      ValueError: meanwhile something appeared in `folder` that may not be replaced.
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
    except BaseException:  # an interrupt as well
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _beside(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.parent.glob(f"{glob.escape(folder.name)}{ending}*"))


def _everything(folder: Path) -> Iterator[tuple[str, Path]]:
    """What a folder holds at any depth, with the path within it; links are not followed."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    raise error


def _written(path: Path, sha256: str | None = None, *, flush: bool = False) -> Written:
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
        with contextlib.suppress(OSError):  # it is gone, or holds what was replaced
            old.rmdir()
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove an export that was replaced, but nothing that appeared in it at the last moment."""
    known = {*read_json(folder / MARKER, Marker)["files"], MARKER}
    for name, path in sorted(_everything(folder), reverse=True):
        with contextlib.suppress(OSError):  # a folder that is not empty
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif name in known:
                path.unlink()
    if any(folder.iterdir()):
        raise ValueError(f"the new export is written; {folder} keeps files of the earlier one that appeared meanwhile")
    folder.rmdir()


def _flush(folder: Path) -> None:
    """Write the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
