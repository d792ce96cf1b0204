"""The user's own pictures, clips and sounds: a folder with captions, or the JSON and YAML files of the released code.

In: files. Out: records, by index. Opening reads the lists of samples, never a file they name.
"""

import bisect
import itertools
import random
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lumina_jax.data.annotations import Annotations, first_of, open_annotations
from lumina_jax.data.example import (
    BadSample,
    ChangedSourceError,
    Clip,
    Media,
    Record,
    Sound,
    Views,
    combined,
    record_of,
)


class FolderSource:
    """Files beside a .jsonl of {"image": file, "caption": text, "label": number}; caption or label may be missing.

    {"video": file, "start": seconds, "end": seconds} is a clip, where start and end may be missing, {"audio": file} a
    sound, likewise, and {"views": [file, ...]} pictures of one object from all around it. {"pitch": Hz} of a sound goes
    before its caption. `path` is the .jsonl, or a folder that holds exactly one. Files are relative to the folder of
    the .jsonl.

    Raises:
      ValueError: nothing there, several .jsonl files, or no sample.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _captions_file(Path(path))
        self._annotations = open_annotations(self.path)
        self.contents = self._annotations.contents
        if not len(self._annotations):
            raise ValueError(f'{self.path} names no picture; write one {{"image": ..., "caption": ...}} a line')

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> Record | BadSample:
        name = self._annotations.place(index)
        try:
            item = self._annotations.item(index)
            name, media = _media(item, self.path.parent)
        except ChangedSourceError:
            raise
        except ValueError as error:
            return BadSample(name, str(error))
        return record_of(name, media, item.get("caption"), item.get("label"), item.get("pitch"))

    def __repr__(self) -> str:
        return f"FolderSource({str(self.path)!r})"


class LuminaSource:
    """The released format: a YAML of `META: [{path, root, ratio, type}, ...]`, each path a .json or .jsonl.

    An item is {"image", "conversations": [..., {"value": caption}]} or {"path", "prompt"}. `root` is put before its
    file, `ratio` keeps that share of the items (the same ones as the released code), and items of one `type` follow
    each other. Relative paths start at the working directory, or else at the folder of the YAML.

    Raises:
      ValueError: the YAML or a file it names is missing or not of this form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        groups: dict[str, list[_Part]] = {}
        for entry in _meta(self.path):
            groups.setdefault(entry.get("type", "default"), []).append(self._part(entry))
        self._parts = list(itertools.chain.from_iterable(groups.values()))
        self._ends = list(itertools.accumulate(len(part.kept) for part in self._parts))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{self.path} names no sample; check META and each ratio")
        used = [(part.root, len(part.kept)) for part in self._parts]
        self.contents = combined((part.annotations.contents for part in self._parts), used)._replace(samples=len(self))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record | BadSample:
        which = bisect.bisect_right(self._ends, index)
        part = self._parts[which]
        index = part.kept[index - (self._ends[which] - len(part.kept))]
        name = part.annotations.place(index)
        try:
            item = part.annotations.item(index)
            image, caption = _image_and_caption(item)
            name = str(Path(part.root) / image)
        except ChangedSourceError:
            raise
        except ValueError as error:
            return BadSample(name, str(error))
        return record_of(name, self._resolved(name), caption, item.get("label"))

    def __repr__(self) -> str:
        return f"LuminaSource({str(self.path)!r})"

    def _part(self, entry: dict[str, Any]) -> "_Part":
        annotations = open_annotations(self._resolved(entry["path"]))
        count, ratio = len(annotations), entry.get("ratio")
        if ratio is None:
            return _Part(annotations, entry.get("root", ""), range(count))
        if not 0 <= ratio <= 1:
            raise ValueError(f"{self.path}: ratio={ratio} of {entry['path']} must lie between 0 and 1")
        return _Part(annotations, entry.get("root", ""), random.Random(0).sample(range(count), int(count * ratio)))

    def _resolved(self, name: str) -> Path:
        beside = self.path.parent / name
        return beside if beside.exists() and not Path(name).exists() else Path(name)


class _Part(NamedTuple):
    """One file of a LuminaSource: its items, the folder of their pictures, and which of them are used."""

    annotations: Annotations
    root: str
    kept: range | list[int]


def _captions_file(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix != ".jsonl":
            raise ValueError(f"data.path={str(path)!r} must be a folder, or a .jsonl file of captions")
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"the folder {path} must hold exactly one .jsonl of captions; found {names}. Name the file")
    return found[0]


def _meta(path: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML ({error})") from error
    entries = content.get("META") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "path" in entry for entry in entries):
        raise ValueError(f"{path} must hold META: a list of {{path: file.json, root: folder, ratio: 0.5, type: name}}")
    return entries


def _media(item: dict[str, Any], folder: Path) -> tuple[str, Media]:
    """What a line names: a picture, a clip, a sound or views of an object, and the name to report it by."""
    first_of(item, ["image", "video", "audio", "views"])
    if "views" in item:
        files = item["views"]
        if not isinstance(files, list) or not files:
            raise ValueError(f"'views' must be a list of files, but is {files!r}")
        names = [_text(file, "views") for file in files]
        return names[0], Views(tuple(folder / name for name in names))
    if "video" in item:
        name = _text(item["video"], "video")
        return name, Clip(folder / name, _number(item, "start") or 0.0, _number(item, "end"))
    if "audio" in item:
        name = _text(item["audio"], "audio")
        start, end = _number(item, "start") or 0.0, _number(item, "end")
        return name, Sound(folder / name, start=start, end=end)
    name = _text(item["image"], "image")
    return name, folder / name


def _number(item: dict[str, Any], key: str) -> float | None:
    value = item.get(key)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise ValueError(f"{key!r} must be a number, but is {value!r}")
    return value


def _image_and_caption(item: dict[str, Any]) -> tuple[str, Any]:
    if "conversations" not in item:
        return _text(first_of(item, ["path", "image", "image_url"]), "path"), first_of(item, ["prompt"])
    turns = item["conversations"]
    if not isinstance(turns, list) or len(turns) != 2 or not isinstance(turns[1], dict) or "value" not in turns[1]:
        raise ValueError("'conversations' must be two turns, of which the second holds the caption as 'value'")
    return _text(first_of(item, ["image"]), "image"), turns[1]["value"]


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key!r} must name a file, but is {value!r}")
    return value
