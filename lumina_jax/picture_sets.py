"""A set of pictures as features: from a folder of files of any sizes, or from a file of features.

In: a folder, or an .npz or .npy file. Out: `PictureSet`. Files that cannot be read are left out and named. The features
of a folder can be kept in a cache. The name of an entry is a hash of the contents of all files, of the network and of
how pictures are prepared, so that no entry is used after a picture was changed, added or removed.
"""

import hashlib
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lumina_jax.evaluation.features import BATCH, FeatureNetwork, features
from lumina_jax.modalities.decoding.pictures import open_picture
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.parts import UnwritableError, prepare_folder, write_file
from lumina_jax.progress import counted

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tga", ".jp2", ".avif", ".heic", ".heif", ".ico", ".jfif", ".apng",
)  # fmt: skip
"""The names of files that are read, in capitals or small letters; others, such as captions, are not pictures."""
KEY = "features"


class PictureSet(NamedTuple):
    """The features of a set, the file of each, and the files that could not be read with the reasons."""

    features: Float[np.ndarray, "n d"]
    files: list[Path]
    left_out: dict[str, str]
    is_from_cache: bool = False
    not_kept: str = ""
    """Why the features could not be written to the cache."""


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted.

    Hidden files and folders are ignored, and so are the contact sheets that `lumina sample` writes beside its pictures.

    Raises:
      ValueError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder of pictures, but is {'a file' if folder.exists() else 'missing'}")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
        and not _is_contact_sheet(path)
    ]
    if not files:
        raise ValueError(f"{folder} must hold pictures, but has none; their names end in {', '.join(ENDINGS[:6])}, ...")
    return files


def folder_features(
    network: FeatureNetwork, folder: Path, *, cache: Path | None = None, batch: int = BATCH
) -> PictureSet:
    """Return the features of all pictures in a folder that can be read.

    Args:
      cache: a folder in which features are kept, and looked for; None: they are computed.

    Raises:
      ValueError: there is no picture in the folder, or none that can be read.
    """
    files = picture_files(folder)
    batch = min(batch, len(files))
    kept = None if cache is None else cache / f"{_key(network, files)}.npz"
    if kept is not None and (found := _read_kept(kept, len(files))) is not None:
        return PictureSet(found, files, {}, is_from_cache=True)
    left_out: dict[str, str] = {}
    with counted(f"features of {folder}", len(files)) as show:
        prepared = _prepared(network, files, left_out, show, batch)
        first = next(prepared, None)
        if first is None:
            name, reason = next(iter(left_out.items()))
            raise ValueError(f"no picture in {folder} can be read; {name}: {reason}")
        found = features(network, itertools.chain([first], prepared), batch=batch)
    read = [file for file in files if str(file) not in left_out]
    if kept is None or left_out:  # a package that is installed later may read those that were left out
        return PictureSet(found, read, left_out)
    if _key(network, files) != kept.stem:
        return PictureSet(found, read, {}, not_kept="pictures changed while they were read")
    try:
        prepare_folder(kept.parent)
        write_file(kept.parent, kept.name, _npz(found))
    except UnwritableError as error:
        return PictureSet(found, read, {}, not_kept=str(error))
    return PictureSet(found, read, {})


def prompts_of(files: Sequence[Path]) -> list[str] | None:
    """Return the prompts that `lumina sample` writes into its PNG files; None if a file has none."""
    prompts = []
    for file in files:
        try:
            prompt = read_png_metadata(file).get("prompt")
        except (ValueError, OSError):
            return None
        if not isinstance(prompt, str):
            return None
        prompts.append(prompt)
    return prompts


def read_features(file: Path) -> Float[np.ndarray, "n d"]:
    """Read features from an .npz file with the array "features" or only one array, or from an .npy file.

    Raises:
      ValueError: the file is missing or damaged, or has no such array of numbers [samples width].
    """
    if not file.is_file():
        raise ValueError(
            f"{file} must be an .npz file of features, but is {'a folder' if file.is_dir() else 'missing'}"
        )
    try:
        loaded = np.load(file, allow_pickle=False)
        with_names = {KEY: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as .npz ({error}); write it with numpy.savez(file, {KEY}=X)") from None
    if KEY not in with_names and len(with_names) != 1:
        raise ValueError(
            f"{file} must have an array {KEY!r} or only one array, but has {', '.join(with_names) or 'none'}; write it "
            f"with numpy.savez(file, {KEY}=X)"
        )
    array = with_names.get(KEY, next(iter(with_names.values())))
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"features must be numbers [samples width], but those of {file} are {array.dtype} {list(array.shape)}"
        )
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def write_features(file: Path, array: Float[np.ndarray, "n d"]) -> None:
    """Write features as an .npz file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file.parent, file.name, _npz(array))


def default_cache() -> Path:
    """Return the folder of the user's caches that features of reference pictures are kept in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lumina_jax" / "picture-features"


def _prepared(
    network: FeatureNetwork, files: Sequence[Path], left_out: dict[str, str], show: Callable[[int], None], batch: int
) -> Iterator[np.ndarray]:
    """Yield the pictures that can be read as inputs of the network; threads decode a batch at a time."""

    def read(file: Path) -> np.ndarray | str:
        try:
            return network.prepare(open_picture(file))
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch):
            part = files[start : start + batch]
            for file, found in zip(part, pool.map(read, part)):
                if isinstance(found, str):
                    left_out[str(file)] = found
                else:
                    yield found
            show(start + len(part))


def _is_contact_sheet(path: Path) -> bool:
    """Whether a file is a sheet of a gallery: sheet.png, or the sheet.gif beside it."""
    if not path.name.startswith("sheet"):
        return False
    try:
        return "prompts" in read_png_metadata(path.with_suffix(".png"))
    except (ValueError, OSError):
        return False


def _key(network: FeatureNetwork, files: Sequence[Path]) -> str:
    total = hashlib.sha256(network.fingerprint.encode())
    for file in files:
        try:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError:
            total.update(b"unreadable")
    return total.hexdigest()[:32]


def _read_kept(file: Path, count: int) -> Float[np.ndarray, "n d"] | None:
    """Return what is in the cache, or None if it is missing or damaged."""
    try:
        found = read_features(file)
    except ValueError:
        return None
    return found if len(found) == count else None


def _npz(array: Float[np.ndarray, "n d"]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=array)
    return buffer.getvalue()
