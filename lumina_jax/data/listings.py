"""The samples of a user's folder, one a line, from its captions file or from the names of its files and folders.

In: a file or a folder. Out: annotations, and the classes if folders name them. The layouts, in the order of trying:

    captions.jsonl              the one .jsonl, or what `data scenes` made of it (`scenes.jsonl`, `NAME.scenes.jsonl`)
    metadata.csv                the one .csv with a column file_name, as Hugging Face has it
    cat.png, cat.txt            a caption beside each file, in folders too
    dogs/1.png, cats/2.png      a folder for each class: its name is the caption, and its number in the order of names
                                the label

For the last three, opening the folder writes the lines to a temporary file without a name, so that they do not change
later, and memory does not grow with the number of files.
"""

import codecs
import csv
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumina_jax.data.annotations import Annotations, JsonLines, open_annotations
from lumina_jax.data.example import printable
from lumina_jax.data.lines import medium_of

SCENES = "scenes.jsonl"
FILE_COLUMNS = {"file_name", "image", "video", "audio"}
"""Columns of a .csv that name files."""
HIDDEN_PREFIXES = (".", "__MACOSX")
TABLE = "metadata.csv"
INNER = ("/captions.jsonl", "/metadata.jsonl", f"/{TABLE}")
"""Endings of captions in inner folders."""
SIDECARS = (".txt", ".caption")
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
PREPARED = ".array_record"
FOREIGN = {
    ".parquet": "a data set of Hugging Face in parquet files; write its pictures to files with a metadata.jsonl",
    ".arrow": "a data set of Hugging Face in arrow files; write its pictures to files with a metadata.jsonl",
    ".tar": "tar archives; unpack them",
    ".zip": "zip archives; unpack them",
    ".tfrecord": "tensorflow records; prepare them with tensorflow-datasets for --data.source tfds",
    PREPARED: "a prepared data set; use --data.source prepared",
    ".csv": "a .csv without a column file_name; give it that and a column text",
    ".json": "a .json file; name it, if it is a list of samples",
}
"""What a folder may hold instead of pictures, and what to do then."""


class Listing(JsonLines):
    """Lines made from names. A line {"unusable": reason} is a sample that cannot be used."""

    def item_name(self, index: int) -> str:
        return f"{printable(self.path.name)}, file {index + 1}"

    def item(self, index: int) -> dict[str, Any]:
        item = super().item(index)
        if "unusable" in item:
            raise ValueError(item["unusable"])
        return item


def open_folder(path: Path, split: str, *, needs_captions: bool = True) -> tuple[Annotations, tuple[str, ...]]:
    """The lines of a captions file or of a folder, and the names of the classes, if each class has a folder.

    Args:
      split: the inner folder to read, if there are folders such as train and test.
      needs_captions: whether there must be captions, or folders for classes.

    Raises:
      ValueError: there are no captions, or several files could hold them.
    """
    if not path.is_dir():
        return _of_file(path), ()
    captions = _captions_file(path)
    if captions is None:
        path = _split_folder(path, split)
        captions = _captions_file(path)
    if captions is not None:
        return _of_file(captions), ()
    files = list(_files(path))
    if inner := next((file for file in files if file.endswith(INNER)), None):
        raise ValueError(f"the folder {path} has captions further inside; name the file: --data.path {path / inner}")
    media = [file for file in files if medium_of(file)]
    texts = {file for file in files if file.lower().endswith(SIDECARS)}
    sidecars = {file: text for file in media if (text := _sidecar(file, texts))} if texts else {}
    classes = sorted({top for file in media if (top := _top(file))})
    if not media or (needs_captions and not sidecars and not classes):
        raise ValueError(_missing(path, files, media))
    return _listed(path, _items(path, media, sidecars, classes)), tuple(classes)


def _of_file(path: Path) -> Annotations:
    if path.suffix.lower() == ".csv":
        return _listed(path, _rows(path))
    if path.suffix.lower() not in (".jsonl", ".json"):
        found = "" if path.exists() else ", and there is nothing of that name"
        raise ValueError(f"data.path={str(path)!r} must be a folder, or a .jsonl file of captions{found}")
    return open_annotations(path)


def _split_folder(folder: Path, split: str) -> Path:
    """The inner folder of the split, if the folder holds only such folders; else the folder itself."""
    entries = _entries(folder)
    splits = [entry.name for entry in entries if _is_folder(entry)]
    is_split = {name.lower() for name in splits} <= SPLITS and not any(medium_of(entry.name) for entry in entries)
    if not splits or not is_split:
        return folder
    if split not in splits:
        raise ValueError(
            f"the folder {folder} holds the splits of a data set ({', '.join(splits)}), but data.split={split!r}; set "
            f"it to one of them, or name one: --data.path {folder / splits[0]}"
        )
    return folder / split


def _captions_file(folder: Path) -> Path | None:
    """The one file of captions of a folder, if it has any."""
    names = [entry.name for entry in _entries(folder) if not _is_folder(entry)]
    lines = [name for name in names if name.lower().endswith(".jsonl")]
    tables = [name for name in names if name == TABLE or (name.lower().endswith(".csv") and _is_table(folder / name))]
    found = lines or tables
    scenes = [name for name in found if name == SCENES or name.endswith(f".{SCENES}")]
    if len(found) == 2 and len(scenes) == 1:
        found = scenes
    if len(found) > 1:
        raise ValueError(
            f"the folder {folder} must hold exactly one file of captions; found {', '.join(found)}. Name the file: "
            f"--data.path {folder / found[-1]}"
        )
    return folder / found[0] if found else None


def _entries(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder in the order of their names, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(HIDDEN_PREFIXES)), key=_by_name)
    except OSError as error:
        raise ValueError(
            f"the folder {folder} cannot be listed ({error.strerror}); change its permissions, or move it elsewhere"
        ) from error


def _by_name(entry: os.DirEntry) -> str:
    return entry.name


def _files(folder: Path) -> Iterator[str]:
    """All files below a folder, relative to it. Links are followed, but no folder is listed twice."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        entries, status = _entries(folder / inner), (folder / inner).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(f"{inner}{entry.name}/")
            else:
                yield f"{inner}{entry.name}"
        waiting.extend(reversed(folders))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _missing(folder: Path, files: list[str], media: list[str]) -> str:
    """The error for a folder without captions and classes."""
    for file in files:
        ending = os.path.splitext(file)[1].lower()
        if ending in FOREIGN and (not media or ending == PREPARED):
            return f"the folder {folder} holds {FOREIGN[ending]} ({file})"
    if not media:
        return (
            f"the folder {folder} must hold one .jsonl of captions, or pictures, clips or sounds with a .txt beside "
            f"each or in folders named by their class; found none among {len(files)} files"
        )
    first, ending = os.path.splitext(media[0])
    line = f'{{"{medium_of(media[0])}": "{first}{ending}", "caption": "..."}}'
    return (
        f"the folder {folder} holds {len(media)} files but no captions; write a captions.jsonl of lines like {line}, "
        f"put a text such as {first}.txt beside each, sort them into folders named by their class, or set "
        'data.caption, such as "{name}" for the names of the files'
    )


def _top(file: str) -> str | None:
    """The first folder of a relative path, if it has one."""
    top, separator, _ = file.partition("/")
    return top if separator else None


def _sidecar(file: str, texts: set[str]) -> str | None:
    """The file with the caption of another one: cat.txt, cat.caption or cat.png.txt beside cat.png."""
    starts = (os.path.splitext(file)[0], file)
    return next((name for ending in SIDECARS for start in starts if (name := f"{start}{ending}") in texts), None)


def _items(folder: Path, media: list[str], sidecars: dict[str, str], classes: list[str]) -> Iterator[dict[str, Any]]:
    """A line for each file."""
    labels = {name: label for label, name in enumerate(classes)}
    spoken = {name: re.sub(r"[\s_-]+", " ", name).strip() for name in classes}
    for file in media:
        item: dict[str, Any] = {medium_of(file) or "image": file}
        top = _top(file)
        if top is not None:
            item["label"] = labels[top]
        if file in sidecars:
            try:
                item["caption"] = _text(folder / sidecars[file])
            except (OSError, UnicodeDecodeError) as error:
                item = {"unusable": f"the caption {printable(sidecars[file])} cannot be read ({error})"}
        elif top is not None and not sidecars:
            item["caption"] = spoken[top]
        yield item


def _text(file: Path) -> str:
    """A text file in UTF-8, or in UTF-16 if it says so."""
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a .csv, with numbers as numbers."""
    numbers = {"label": int, "start": float, "end": float, "pitch": float}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not FILE_COLUMNS & set(rows.fieldnames or ()):
                raise ValueError(f"{path} must have a column file_name, and one text; it has {rows.fieldnames}")
            for row in rows:
                item: dict[str, Any] = {name: text for name, text in row.items() if name and text}
                yield item | {name: _number(item[name], kind) for name, kind in numbers.items() if name in item}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV in UTF-8 ({error})") from error


def _is_table(path: Path) -> bool:
    """Whether a .csv names files."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return bool(FILE_COLUMNS & set(csv.DictReader(file).fieldnames or ()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _listed(path: Path, items: Iterable[dict[str, Any]]) -> Listing:
    """The items as lines of a temporary file, which is gone when the program ends."""
    with tempfile.TemporaryFile() as file:
        try:
            for item in items:
                file.write(json.dumps(item).encode() + b"\n")
            file.flush()
        except OSError as error:
            raise ValueError(
                f"the list of the files of {path} cannot be written to {tempfile.gettempdir()} ({error.strerror}); "
                "make room there, or name another folder in the variable TMPDIR"
            ) from error
        file.seek(0)
        return Listing(path, file)
