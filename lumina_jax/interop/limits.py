"""What a layout of other people can hold: types of its settings, and fields that its code fixes."""

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval

from lumina_jax.config import ModelConfig

Size = Annotated[int, Interval(ge=1, le=2**20)]
"""A number of layers, heads, channels or values; more than the limit is a mistake and would take hours to refuse."""
Factor = Annotated[float, Interval(gt=0, le=2**20)]


def check_fields(config: ModelConfig, expected: Mapping[str, Any], what: str) -> None:
    """The fields of a configuration have the values that a layout cannot write.

    Raises:
      ValueError: some have others; the message names them.
    """
    other = [
        f"{name}={value!r} and the model has {getattr(config, name)!r}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]
    if other:
        raise ValueError(f"{what} needs {'; '.join(other)}")
