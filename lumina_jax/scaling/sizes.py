"""Sizes of a model: layers, width and heads, given or chosen for a number of parameters.

In: a configuration, and sizes such as 3M or 4x128. Out: `ModelSize`s, and the configuration with one of them.

The rule for a number of parameters: the width of a head stays that of the configuration, and the heads follow from the
width. Of all models whose parameters are within 25 % of the number, take the one for which

    the factor by which width / layers differs from the configuration x (the factor by which parameters differ)^2

is least; if no model is within 25 %, the nearest in parameters.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from lumina_jax.config import Config, ModelConfig
from lumina_jax.config.section import require
from lumina_jax.training.state import parameter_count

NEAR = 0.25
"""The share by which the parameters of a model may differ from those asked for."""
SEARCHED = 4
"""Widths that are tried on each side of the one that fits best."""
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
FIELDS = ("layers", "width", "heads", "kv_heads", "attention_width", "text_heads")
"""The fields of ModelConfig that a size decides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The shape of a model."""

    layers: int
    width: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


def parse_size(word: str, model: ModelConfig) -> ModelSize:
    """The size that a word names.

    Args:
      word: LAYERSxWIDTH, such as 4x128; or LAYERSxWIDTHxHEADS; or a number of parameters, such as 300K, 1.5M or 3e6.
      model: gives the width of a head, and the ratio of width to layers.

    Raises:
      ValueError: the word is none of these, or no model has such a size.
    """
    if shape := re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", word):
        layers, width = int(shape[1]), int(shape[2])
        heads = int(shape[3]) if shape[3] else _heads(model, width)
        size = ModelSize(layers=layers, width=width, heads=heads)
        try:
            sized(model, size)
        except ValueError as error:
            raise ValueError(
                f"no model has the size {word!r}: {error}; the width of a head is kept, so choose widths that are "
                f"multiples of {_unit(model)}, or name the heads: LAYERSxWIDTHxHEADS"
            ) from None
        return size
    number = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+]?\d+)?)([KMB]?)", word)
    require(
        number is not None,
        f"a size is a number of parameters, such as 300K or 1.5M, or LAYERSxWIDTH, such as 4x128, but got {word!r}",
    )
    assert number is not None
    return size_for(model, float(number[1]) * UNITS[number[2]])


def size_for(model: ModelConfig, parameters: int | float) -> ModelSize:
    """The size for a number of parameters, by the rule of this file.

    Raises:
      ValueError: every model of this shape has more than twice, or less than half, the parameters.
    """
    units = _units(model, parameters)
    around = [(size, count) for apart in range(SEARCHED) for size, count in _deep(model, units + apart, parameters)]
    around += [
        (size, count)
        for apart in range(1, min(SEARCHED, units))
        for size, count in _deep(model, units - apart, parameters)
    ]
    near = [(size, count) for size, count in around if abs(count / parameters - 1) <= NEAR]
    if near:
        aspect = model.width / model.layers
        return min(near, key=lambda one: _ratio(one[0].width / one[0].layers, aspect) + 2 * _ratio(one[1], parameters))[
            0
        ]
    size, count = min(around, key=lambda found: _ratio(found[1], parameters))
    require(
        _ratio(count, parameters) <= math.log(2),
        f"no model with heads of {model.head_width} has {parameters:g} parameters: the nearest, {size}, has {count:,}; "
        f"choose another number, or narrower heads with a larger --model.heads than {model.heads}",
    )
    return size


def _units(model: ModelConfig, parameters: int | float) -> int:
    """The least width, in widths of a head, at which models of this many parameters are wider for their layers than
    `model`."""
    aspect = model.width / model.layers

    def is_wide(units: int) -> bool:
        one, more = _counts(model, units)
        return units * model.head_width / aspect >= (parameters - one) / more + 1

    low, high = 0, 1
    while not is_wide(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_wide(middle) else (middle, high)
    return high


def _deep(model: ModelConfig, units: int, parameters: int | float) -> Iterator[tuple[ModelSize, int]]:
    """The two numbers of layers of this width whose parameters lie on both sides of the number, and their counts."""
    width = units * model.head_width
    one, more = _counts(model, units)
    below = max(1, 1 + math.floor((parameters - one) / more))
    for layers in (below, below + 1):
        yield ModelSize(layers=layers, width=width, heads=_heads(model, width)), one + (layers - 1) * more


@functools.lru_cache(maxsize=1024)
def _counts(model: ModelConfig, units: int) -> tuple[int, int]:
    """The parameters of a model of this width with one layer, and those of each further layer."""
    width = units * model.head_width
    one, two = (
        parameter_count(sized(model, ModelSize(layers=layers, width=width, heads=_heads(model, width))))
        for layers in (1, 2)
    )
    return one, two - one


def sized(model: ModelConfig, size: ModelSize) -> ModelConfig:
    """The model with another size. Heads that share keys do so in groups of the same number, where that is possible,
    and the same share of them attends to the text.

    Raises:
      ValueError: no model can have this size.
    """
    group = math.gcd(model.heads // model.key_heads, size.heads)
    open_groups = max(1, round(model.text_query_heads / model.heads * size.heads / group))
    return model.replace(
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        kv_heads=None if model.kv_heads is None else size.heads // group,
        attention_width=None if model.attention_width is None else size.heads * model.head_width,
        text_heads=None if model.text_heads is None else group * open_groups,
    )


def with_size(config: Config, size: ModelSize) -> Config:
    """The configuration with a model of this size."""
    return config.replace(model=sized(config.model, size))


def _heads(model: ModelConfig, width: int) -> int:
    """Heads of a model of this width, whose heads are as wide as those of `model`."""
    return max(1, round(width * model.heads_width / model.width / model.head_width))


def _unit(model: ModelConfig) -> int:
    return model.head_width if model.attention_width is None else 2


def _ratio(one: int | float, other: int | float) -> float:
    return abs(math.log(one / other))
