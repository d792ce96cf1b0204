"""Pictures, clips and sounds of the user: a folder with captions, or the JSON and YAML files of the released code.

In: files. Out: records, by index. Opening a source reads the lists of samples, never a picture, clip or sound.
"""

import array
import bisect
import dataclasses
import itertools
import random
import re
from pathlib import Path
from typing import NamedTuple

from lumina_jax.data.annotations import Annotations, open_annotations
from lumina_jax.data.example import BadSample, Record, combined, record_of, unusable
from lumina_jax.data.lines import file_name, image_and_caption, record_of_line
from lumina_jax.data.listings import open_folder
from lumina_jax.documents import read_yaml


class FolderSource:
    """Files with a .jsonl of {"image": file, "caption": text, "label": number}; caption or label may be missing.

    {"video": file, "start": seconds, "end": seconds} is a clip, where start and end may be missing; {"audio": file} is
    a sound, with the same fields; {"views": [file, ...]} are pictures of one object from all around it. {"pitch": Hz}
    is the pitch of a sound. The form of Hugging Face, {"file_name": file, "text": caption}, is understood too. Files
    are relative to the folder of the .jsonl.

    Args:
      path: the .jsonl; or a folder that holds one, or captions beside its pictures, or a folder for each class
        (`data.listings`); or a folder with such folders inside, of which `split` names one.
      caption: of every sample, with its name or its caption for {name} and {caption}; nothing: its caption.

    Raises:
      ValueError: there is nothing, there are several .jsonl files, or no sample.
    """

    def __init__(self, path: str | Path, split: str = "train", caption: str = "") -> None:
        self._annotations, self.classes = open_folder(Path(path), split, needs_captions=not caption)
        self.path, self._caption = self._annotations.path, caption
        contents = self._annotations.contents
        self.contents = combined([contents], caption) if caption else contents
        if not len(self._annotations):
            raise ValueError(f'{self.path} lists no sample; write one {{"image": ..., "caption": ...}} a line')
        self._folder = self.path if self.path.is_dir() else self.path.parent

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> Record | BadSample:
        name = self._annotations.item_name(index)
        try:
            record = record_of_line(self._annotations.item(index), self._folder)
            return captioned(record, self._caption) if self._caption and isinstance(record, Record) else record
        except Exception as error:  # whatever a line holds, the others can be used
            return unusable(name, error)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.path)!r})"


def captioned(record: Record, caption: str) -> Record:
    """The record with another caption, in which {name} is the name of its file, and {caption} the one it has.

    Raises:
      ValueError: {caption} is asked for, and it has none.
    """
    if "{caption}" in caption and not record.caption:
        raise ValueError(f"it has no caption for data.caption={caption!r}; give it one, or use {{name}}")
    words = {"name": re.sub(r"[\s_-]+", " ", Path(record.name).stem).strip(), "caption": record.caption or ""}
    return record._replace(caption=re.sub(r"{(name|caption)}", lambda found: words[found[1]], caption).strip())


class LuminaSource:
    """The released format: a YAML of `META: [{path, root, ratio, type}, ...]`, each path a .json or .jsonl.

    An item is {"image", "conversations": [..., {"value": caption}]} or {"path", "prompt"}. `root` is the folder of the
    files, `ratio` the share of the items that is used (the same items as in the released code), and items of one `type`
    follow each other. Relative paths start at the working directory, or else at the folder of the YAML.

    Raises:
      ValueError: the YAML or a file that it names is missing or malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        groups: dict[str, list[_List]] = {}
        for entry in _meta(self.path):
            groups.setdefault(entry.type or "default", []).append(self._list(entry))
        self._lists = list(itertools.chain.from_iterable(groups.values()))
        self._ends = list(itertools.accumulate(len(one.kept) for one in self._lists))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{self.path} lists no sample; check META and each ratio")
        used = [(one.root, len(one.kept)) for one in self._lists]
        self.contents = combined((one.annotations.contents for one in self._lists), used)._replace(samples=len(self))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record | BadSample:
        which = bisect.bisect_right(self._ends, index)
        chosen = self._lists[which]
        index = chosen.kept[index - (self._ends[which] - len(chosen.kept))]
        name = chosen.annotations.item_name(index)
        try:
            item = chosen.annotations.item(index)
            image, caption = image_and_caption(item)
            name = file_name(str(Path(chosen.root) / image), "root and path")
            return record_of(name, self._resolved(name), caption, item.get("label"))
        except Exception as error:  # whatever an item holds, the others can be used
            return unusable(name, error)

    def __repr__(self) -> str:
        return f"LuminaSource({str(self.path)!r})"

    def _list(self, entry: "_Entry") -> "_List":
        annotations = open_annotations(self._resolved(file_name(entry.path, f"path in {self.path}")))
        count, ratio, root = len(annotations), entry.ratio, entry.root or ""
        if ratio is None:
            return _List(annotations, root, range(count))
        if not 0 <= ratio <= 1:
            raise ValueError(f"{self.path}: ratio={ratio} of {entry.path} must lie between 0 and 1")
        kept = random.Random(0).sample(range(count), int(count * ratio))
        return _List(annotations, root, array.array("q", kept))

    def _resolved(self, name: str) -> Path:
        beside = self.path.parent / name
        return beside if beside.exists() and not Path(name).exists() else Path(name)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What the YAML says about one list."""

    path: str
    root: str | None = None
    ratio: float | None = None
    type: str | None = None


@dataclasses.dataclass(frozen=True)
class _Meta:
    """The whole YAML."""

    META: list[_Entry]


class _List(NamedTuple):
    """One list of a LuminaSource: its items, the folder of their pictures, and the indices of those that are used."""

    annotations: Annotations
    root: str
    kept: range | array.array


def _meta(path: Path) -> list[_Entry]:
    try:
        return read_yaml(path, _Meta).META
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        form = "META: [{path: file.json, root: folder, ratio: 0.5, type: name}, ...]"
        raise ValueError(f"{error}; it must hold {form}") from None
