"""What the sections of a configuration have in common: rules, and numbers that can be computed with.

In: the fields of a section. Out: one ValueError that names the field, the rule and what came, or nothing.
"""

import dataclasses
import math
import numbers
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

Same = TypeVar("Same", bound="Section")

LARGEST_INTEGER = 2**31 - 1
LARGEST, SMALLEST = 3e38, 2e-38
"""Of the numbers that float32 holds, by their magnitude."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


RUNTIME_TYPES: dict[Any, type] = {
    int: numbers.Integral,
    float: numbers.Real,
    bool: bool,
    str: str,
    type(None): type(None),
}
"""What may stand in a field of a plain type. Files of Python code are the only source that nothing else checks."""


def check_type(name: str, value: object, declared: Any) -> None:
    """Refuse a value of another plain type than the declared one, and one that is none of its alternatives."""
    if typing.get_origin(declared) is Literal:
        choices = typing.get_args(declared)
        require(value in choices, f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
        return
    is_plain = declared in RUNTIME_TYPES or typing.get_origin(declared) in (types.UnionType, typing.Union)
    plain = (typing.get_args(declared) or (declared,)) if is_plain else ()
    if plain and all(one in RUNTIME_TYPES for one in plain):
        allowed = " or ".join(one.__name__ for one in plain).replace("NoneType", "None")
        is_allowed = isinstance(value, tuple(RUNTIME_TYPES[one] for one in plain))
        require(is_allowed, f"{name}={value!r} must be of the type {allowed}, but is {type(value).__name__}")


def check_number(name: str, value: object) -> None:
    """Refuse a float that float32 holds as infinite, as no number or as 0, and an integer of more than 32 bits."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        require(math.isfinite(value), f"{name}={value} must be a finite number")
        is_held = value == 0 or SMALLEST <= abs(float(value)) <= LARGEST
        require(is_held, f"{name}={value} must be a number that float32 holds, from {SMALLEST} to {LARGEST}")
    elif isinstance(value, numbers.Integral):
        require(
            abs(int(value)) <= LARGEST_INTEGER,
            f"{name}={value} must be an integer of 32 bits, at most {LARGEST_INTEGER}",
        )


def require_between(
    name: str, value: int | float | None, least: int | float, most: int | float, remedy: str = ""
) -> None:
    """Refuse a number below `least` or above `most`; None passes, for fields that may be left out."""
    is_between = value is None or least <= value <= most
    require(is_between, f"{name}={value} must be between {least:g} and {most:g}" + (f"; {remedy}" if remedy else ""))


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings whose numbers are all finite."""

    called: ClassVar[str] = ""
    """What stands before the names of its fields, such as "model."."""
    wide: ClassVar[frozenset[str]] = frozenset()
    """Integers that may have more than 32 bits, because other rules limit them."""
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = f"{self.called}{field.name}", getattr(self, field.name)
            check_type(name, value, field.type)
            if field.name not in self.wide:
                check_number(name, value)

    def replace(self: Same, **changed: Any) -> Same:
        """A copy with settings changed."""
        return dataclasses.replace(self, **changed)

    def settings(self) -> dict[str, Any]:
        """Each setting under the name of its flag."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
