"""What an evaluation found: a line to read, and the numbers in it.

In: nothing. Out: the type that the judges of modalities yield.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NONE: Mapping[str, float] = MappingProxyType({})


class Finding(NamedTuple):
    """A line of a report, and its numbers by name."""

    text: str
    numbers: Mapping[str, float] = NONE
