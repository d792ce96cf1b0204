"""A line of a captions file as a record.

In: a JSON object, from a file that anyone may have written. Out: a Record, or a ValueError that says what is wrong with
the line. The files that a line names are not opened.
"""

import os
import reprlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from lumina_jax.data.example import BadSample, Record, is_unicode, record_of
from lumina_jax.modalities.decoding.kinds import Medium
from lumina_jax.modalities.decoding.media import Clip, Media, Sound, Views

ENDINGS: dict[Medium, str] = {
    "image": ".png .jpg .jpeg .jfif .webp .bmp .tif .tiff .avif .heic .heif .ppm",
    "video": ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .gif .apng",
    "audio": ".wav .flac .ogg .mp3 .m4a .aac .opus .aif .aiff",
}
MEDIUM_OF_ENDING = {ending: medium for medium, endings in ENDINGS.items() for ending in endings.split()}
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""The most bytes that file systems allow in a name and in a whole path."""
LONGEST_SECONDS = 1e9
"""Thirty years, which no recording lasts."""


def medium_of(name: str) -> Medium | None:
    """The key for a file of this name, by its ending: image, video or audio."""
    return MEDIUM_OF_ENDING.get(os.path.splitext(name)[1].lower())


def record_of_line(item: dict[str, Any], folder: Path) -> Record | BadSample:
    """A line of `FolderSource`.

    Raises:
      ValueError: it names no file, or a field has the wrong type.
    """
    if "file_name" in item and not {"image", "video", "audio", "views"} & item.keys():  # as Hugging Face has it
        name = file_name(item["file_name"], "file_name")
        item = {**item, medium_of(name) or "image": name}
    name, media = _media(item, folder)
    caption = item.get("text") if item.get("caption") is None else item["caption"]
    return record_of(name, media, caption, item.get("label"), item.get("pitch"))


def image_and_caption(item: dict[str, Any]) -> tuple[str, Any]:
    """The picture and the caption of an item of the released code's files.

    Raises:
      ValueError: it has neither of the two forms.
    """
    if "conversations" not in item:
        return file_name(first_of(item, ["path", "image", "image_url"]), "path"), first_of(item, ["prompt"])
    turns = item["conversations"]
    if not isinstance(turns, list) or len(turns) != 2 or not isinstance(turns[1], dict) or "value" not in turns[1]:
        raise ValueError("'conversations' must be two turns, of which the second holds the caption as 'value'")
    return file_name(first_of(item, ["image"]), "image"), turns[1]["value"]


def first_of(item: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of `keys` that an item has.

    Raises:
      ValueError: it has none of them.
    """
    for key in keys:
        if key in item:
            return item[key]
    wanted = " or ".join(repr(key) for key in keys)
    raise ValueError(f"the item has no {wanted}, only {reprlib.repr(sorted(item))}")


def file_name(value: Any, key: str) -> str:
    """A value that can be the name of a file.

    Raises:
      ValueError: it cannot.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key!r} must name a file, but is {reprlib.repr(value)}")
    if not is_unicode(value):
        raise ValueError(f"{key!r} names a file in letters that are not UTF-8: {reprlib.repr(value)}; rename it")
    if "\0" in value:
        raise ValueError(f"{key!r} holds a null character, which no file name can: {reprlib.repr(value)}")
    if "://" in value:
        raise ValueError(f"{key!r} must name a file, but is the address {reprlib.repr(value)}; download it first")
    longest = max(len(part.encode()) for part in value.split("/"))
    if longest > LONGEST_NAME or len(value.encode()) > LONGEST_PATH:
        raise ValueError(f"{key!r} is longer than the name of a file can be: {reprlib.repr(value)}")
    return value


def _media(item: dict[str, Any], folder: Path) -> tuple[str, Media]:
    """The picture, clip, sound or views that a line names, and a name for reports."""
    first_of(item, ["image", "video", "audio", "views"])
    if "views" in item:
        files = item["views"]
        if not isinstance(files, list) or not files:
            raise ValueError(f"'views' must be a list of files, but is {reprlib.repr(files)}")
        names = [file_name(file, "views") for file in files]
        return names[0], Views(tuple(_inside(folder, name) for name in names))
    if not {"video", "audio"} & item.keys():
        name = file_name(item["image"], "image")
        return name, _inside(folder, name)
    start, end = _seconds(item, "start"), _seconds(item, "end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"'end' must come after 'start', but they are {end} and {start or 0.0} seconds")
    if "video" in item:
        name = file_name(item["video"], "video")
        return name, Clip(_inside(folder, name), start or 0.0, end)
    name = file_name(item["audio"], "audio")
    return name, Sound(_inside(folder, name), start=start or 0.0, end=end)


def _inside(folder: Path, name: str) -> Path:
    """A file in a folder; names with the backslashes of Windows are understood too."""
    path = folder / name
    return folder / PureWindowsPath(name).as_posix() if "\\" in name and not path.exists() else path


def _seconds(item: dict[str, Any], key: str) -> float | None:
    value = item.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key!r} must be a number of seconds, but is {reprlib.repr(value)}")
    if not 0 <= value <= LONGEST_SECONDS:
        raise ValueError(f"{key!r} must be a number of seconds that is not negative, but is {reprlib.repr(value)}")
    return float(value)
