"""Limits of the published layouts: the ranges of settings, and fields with a fixed value."""

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval

from lumina_jax.config import ModelConfig

Size = Annotated[int, Interval(ge=1, le=2**20)]
"""A number of layers, heads or channels. A larger number is a mistake, which would otherwise be found too late."""
Factor = Annotated[float, Interval(gt=0, le=2**20)]


def layer_fields(config: ModelConfig, block: str) -> dict[str, Any]:
    """The fields for `check_fields` of a model with this block, RMSNorm and rotary embeddings, as all layouts have."""
    wanted: dict[str, Any] = {"block": block}
    if config.norm_kind != "rms":
        wanted["norm"] = "rms"
    if config.position_kind != "rope":
        wanted["positions"] = "rope"
    return wanted


def check_fields(config: ModelConfig, expected: Mapping[str, Any], what: str) -> None:
    """Check the fields that a layout does not store, and that must have fixed values.

    Raises:
      ValueError: fields have other values; the message lists them.
    """
    other = [
        f"{name}={value!r}, but the model has {getattr(config, name)!r}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]
    if other:
        raise ValueError(f"{what} needs {'; '.join(other)}")
