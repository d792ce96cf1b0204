"""JSON and YAML files as typed values.

In: a file and the type of its content, such as a dataclass, a TypedDict, `dict[str, Any]`, or another type that
pydantic supports. Out: a value of that type, or a ValueError with the file, the key, the rule and the value. Unknown
keys are ignored unless the type forbids them. Numbers and strings are not converted to each other. And back: JSON text
of plain values.
"""

import functools
import json
import math
from collections.abc import Callable
from os import PathLike
from typing import Any

LFS_POINTER = b"version https://git-lfs"
LFS_REMEDY = (
    "is a git-LFS pointer instead of the file itself; download the file with `git lfs pull` in its folder, or with "
    "`hf download`"
)
MAX_ERRORS, MAX_CHARACTERS = 3, 80
"""How many errors a message lists, and how long the text of each may be."""
MAX_VALUES = 10**6
"""The greatest number of values in a YAML file, counting an alias each time that it is used."""


def read_json(file: PathLike[str] | str, kind: Any) -> Any:
    """Read a JSON file. It raises the errors of `parse_json`, and OSError if the file is not readable."""
    return parse_json(_read(file), kind, str(file))


def read_yaml(file: PathLike[str] | str, kind: Any) -> Any:
    """Read a YAML file. It raises the errors of `parse_json`, and OSError if the file is not readable."""
    import yaml

    try:
        content = yaml.safe_load(_read(file).decode("utf-8-sig"))
        _check_size(content)
        text = json.dumps(content, default=str)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be a YAML file, but is not valid ({_short(error)}); correct it") from None
    return parse_json(text, kind, str(file))


def parse_json(text: str | bytes, kind: Any, origin: str, migrate: Callable[[Any], Any] | None = None) -> Any:
    """Parse JSON text as a value of a type.

    Args:
      origin: the source of the text for error messages, such as the path of its file.
      migrate: turns the content of an older version into that of this one.

    Raises:
      ValueError: the text is not JSON, or its value does not have the type; the message names the origin and the key.
    """
    from pydantic import ValidationError

    if isinstance(text, bytes):
        text = text.removeprefix(b"\xef\xbb\xbf")
        if text.startswith(LFS_POINTER):
            raise ValueError(f"{origin} {LFS_REMEDY}")
    try:
        if migrate is not None:
            text = json.dumps(migrate(_adapter(Any).validate_json(text)))
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"{origin} {_reasons(error)}") from None


def json_text(value: Any) -> str:
    """Plain values as indented JSON with a line feed; numbers that are not finite, which JSON lacks, are null."""
    return json.dumps(_finite(value), indent=2) + "\n"


def forget_types() -> None:
    """Clear the cached types, because a new class may be a field of another one."""
    _adapter.cache_clear()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_size(content: Any) -> None:
    """Refuse YAML aliases that expand to too many values, or without end."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        inner = (
            [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        )
        count += len(inner)
        if count > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        waiting.extend(inner)


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # slow to import, and not needed for --help

    return TypeAdapter(kind)


def _read(file: PathLike[str] | str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


def _reasons(error: Any) -> str:
    """Describe the errors that pydantic found: each key with the rule and the value."""
    found = error.errors(include_url=False)
    if found[0]["type"] == "json_invalid":
        return f"must be JSON, but is not ({found[0]['msg'].removeprefix('Invalid JSON: ')})"
    shown = "; ".join(_reason(one) for one in found[:MAX_ERRORS])
    return f"has wrong values: {shown}" + (f"; and {len(found) - MAX_ERRORS} more" if len(found) > MAX_ERRORS else "")


def _reason(one: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in one["loc"]) or "the content"
    rule = one["msg"][:1].lower() + one["msg"][1:]
    return f"{key}: {rule}" + ("" if one["type"] == "missing" else f", but got {_short(repr(one['input']))}")


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 3] + "..."
