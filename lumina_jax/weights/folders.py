"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path


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


def check_destination(folder: Path, *, overwrite: bool, known: Collection[str]) -> None:
    """Nothing that is worth keeping would be lost if `folder` were replaced.

    Args:
      known: patterns of the names that an earlier export may have left, which `overwrite` may replace.

    Raises:
      ValueError: it is a file, or a folder that is not empty and may not be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} must be a new folder, but it is a file or a link; name another")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name a new folder, or add --overwrite to replace it")
    other = [file.name for file in folder.iterdir() if not any(file.match(pattern) for pattern in known)]
    if other:
        raise ValueError(
            f"{folder} may only be overwritten when it holds nothing but an earlier export, but it holds "
            f"{', '.join(sorted(other)[:5])}; name another folder"
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling, which takes the place of `folder` when the block ends, or vanishes when it raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for inner in [entry for entry in temporary.rglob("*") if entry.is_dir()] + [temporary]:
            _flush(inner)
        _replace(temporary, folder)
        _flush(folder.parent)
    except BaseException:  # an interrupt as well
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace(temporary: Path, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.old-", dir=folder.parent))
        os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except BaseException:
            os.replace(old, folder)
            raise
        shutil.rmtree(old)
    else:
        os.replace(temporary, folder)


def _flush(folder: Path) -> None:
    """Write the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
