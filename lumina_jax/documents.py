"""JSON and YAML files as typed values.

In: a file, and the type that its content must have: a dataclass, a TypedDict, `dict[str, Any]`, or anything else that
pydantic knows. Out: a value of that type, or one ValueError that names the file, the key, the rule and what came.
Unknown keys are ignored unless the type forbids them. Numbers and strings are not turned into one another.
"""

import functools
import json
from collections.abc import Callable
from os import PathLike
from typing import Any

LFS_POINTER = b"version https://git-lfs"
POINTS = (
    "is a pointer of git-LFS, which stands for the real file; fetch that with `git lfs pull` in its folder, or with "
    "`hf download`"
)
SHOWN_ERRORS, SHOWN_LETTERS = 3, 80
MOST_VALUES = 10**6
"""Of a YAML file, whose aliases count as often as they are used."""


def read_json(file: PathLike[str] | str, kind: Any) -> Any:
    """The content of a JSON file; errors as `parse_json`, and OSError when it cannot be read."""
    return parse_json(_read(file), kind, str(file))


def read_yaml(file: PathLike[str] | str, kind: Any) -> Any:
    """The content of a YAML file; errors as `parse_json`, and OSError when it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(_read(file).decode("utf-8-sig"))
        _check_size(content)
        text = json.dumps(content, default=str)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be YAML, but cannot be read as such ({_short(error)})") from None
    return parse_json(text, kind, str(file))


def parse_json(text: str | bytes, kind: Any, origin: str, migrate: Callable[[Any], Any] | None = None) -> Any:
    """A value of the type from JSON text.

    Args:
      origin: what error messages call the text, such as the name of its file.
      migrate: turns the content of an older version into that of this one.

    Raises:
      ValueError: it is not JSON, or not of that type; the message names the origin and the key.
    """
    from pydantic import ValidationError

    if isinstance(text, bytes):
        text = text.removeprefix(b"\xef\xbb\xbf")
        if text.startswith(LFS_POINTER):
            raise ValueError(f"{origin} {POINTS}")
    try:
        if migrate is not None:
            text = json.dumps(migrate(_adapter(Any).validate_json(text)))
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"{origin} {_reasons(error)}") from None


def forget_types() -> None:
    """Look at every type anew: a class was defined that may stand in a field of another."""
    _adapter.cache_clear()


def _check_size(content: Any) -> None:
    """Refuse what a few lines of aliases expand to without end."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        inner = (
            [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        )
        count += len(inner)
        if count > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values")
        waiting.extend(inner)


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # slow to import, and --help never needs it

    return TypeAdapter(kind)


def _read(file: PathLike[str] | str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


def _reasons(error: Any) -> str:
    """What pydantic found: each key with the rule and what came."""
    found = error.errors(include_url=False)
    if found[0]["type"] == "json_invalid":
        return f"must be JSON, but is not ({found[0]['msg'].removeprefix('Invalid JSON: ')})"
    shown = "; ".join(_reason(one) for one in found[:SHOWN_ERRORS])
    return f"is not as it should be: {shown}" + (
        f"; and {len(found) - SHOWN_ERRORS} more" if len(found) > SHOWN_ERRORS else ""
    )


def _reason(one: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in one["loc"]) or "the content"
    rule = one["msg"][:1].lower() + one["msg"][1:]
    return f"{key}: {rule}" + ("" if one["type"] == "missing" else f", but got {_short(repr(one['input']))}")


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= SHOWN_LETTERS else line[: SHOWN_LETTERS - 3] + "..."
