"""Items of .json and .jsonl files, by index.

A .jsonl file stays on disk: opening it notes where its lines start, and an item is parsed when it is asked for.
"""

import array
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Annotations(Protocol):
    """Random access to the items of one file."""

    def __len__(self) -> int: ...

    def place(self, index: int) -> str:
        """Where an item stands, for reports."""
        ...

    def item(self, index: int) -> dict[str, Any]:
        """One item; ValueError when it is not a JSON object."""
        ...


class JsonLines:
    """A file with one JSON object a line; blank lines do not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._numbers = array.array("q"), array.array("q")
        position = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(position)
                    self._numbers.append(number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> str:
        return f"{self.path.name}, line {self._numbers[index]}"

    def item(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            return _checked(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"the line is not JSON ({error})") from error


class JsonList:
    """A file that is one JSON list of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._items = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        if not isinstance(self._items, list):
            raise ValueError(f"{path} must hold a list of samples, but holds a {type(self._items).__name__}")

    def __len__(self) -> int:
        return len(self._items)

    def place(self, index: int) -> str:
        return f"{self.path.name}, item {index}"

    def item(self, index: int) -> dict[str, Any]:
        return _checked(self._items[index])


def open_annotations(path: Path) -> Annotations:
    """The items of a .json or .jsonl file.

    Raises:
      ValueError: no such file, another ending, or a .json file that is no list.
    """
    kinds: dict[str, Callable[[Path], Annotations]] = {".json": JsonList, ".jsonl": JsonLines}
    if path.suffix not in kinds:
        raise ValueError(f"{path} must end in {' or '.join(kinds)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return kinds[path.suffix](path)


def first_of(item: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of `keys` that an item has.

    Raises:
      ValueError: it has none of them.
    """
    for key in keys:
        if key in item:
            return item[key]
    raise ValueError(f"the item has no {' or '.join(repr(key) for key in keys)}, only {sorted(item)}")


def _checked(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"a sample must be a JSON object, but this is a {type(item).__name__}")
    return item
