"""Numbers and seeds as they come from the fields of a page, which may hold anything.

In: the value of a field. Out: what it says, or a ValueError that names the field.
"""

import math
from typing import Any


def whole_of(name: str, value: Any) -> int:
    """A whole number of a field."""
    number = number_of(name, value)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, but is {value}")
    return int(number)


def number_of(name: str, value: Any) -> float:
    """A finite number of a field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e15:
        raise ValueError(f"{name} must be a number, but is {'empty' if value is None else repr(value)[:40]}")
    return float(value)


def number_or_none(name: str, value: Any) -> float | None:
    """A finite number of a field for text, where Gradio's for numbers would make 0 of nothing; empty is None."""
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return None
    try:
        return number_of(name, float(text) if isinstance(text, str) else text)
    except ValueError:
        raise ValueError(f"{name} must be a number or empty, but is {repr(value)[:40]}") from None


def whole_or_none(name: str, value: Any) -> int | None:
    """A whole number of a field for text; empty is None."""
    number = number_or_none(name, value)
    return None if number is None else whole_of(name, number)


def seed_of(words: str | None) -> int:
    """A seed; empty is 0."""
    text = (words or "").strip() or "0"
    if not text.isdecimal() or len(text) > 30:
        raise ValueError(f"the seed must be a whole number from 0 to 2**64 - 1, but is {text[:40]!r}")
    return int(text)


def seeds_after(seed: int, count: int) -> str:
    """As many seeds as samples, from one on, as `--seeds` has them."""
    return ",".join(f"{(seed + index) % 2**64}" for index in range(count))


def lines_in(text: str | None) -> list[str]:
    """The lines of a field that are not empty."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]
