"""Converting weights from one layout to another, one layer at a time.

In: tensors in a published layout ("theirs"), and the rules between it and ours. Out: the same weights in our layout
with stacked layers, each of which can be read separately (`Restacked`); and plans for `write_tensors` in either layout.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lumina_jax.weights.rules import Rule, check_names, parameter
from lumina_jax.weights.tensors import Tensors, check_weight
from lumina_jax.weights.writer import Planned

STACKED_PREFIX = "blocks."
"""The prefix of our stacked parameters."""


class Restacked(Tensors):
    """Published tensors in our layout, which are read on access.

    Raises:
      ValueError: tensors are missing or unknown, or layers differ in shape or type; the message lists them.
    """

    def __init__(self, theirs: Tensors, rules: Sequence[Rule], *, layers: int):
        check_names(list(theirs), rules, layers=layers)
        self.rules: dict[str, Rule] = {}
        for rule in rules:
            self.rules.setdefault(rule.ours, rule)
        self._theirs, self._layers = theirs, layers
        self._stored = {name: self._shape_and_type(rule) for name, rule in self.rules.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return parameter(self._theirs, self.rules[name], layers=self._layers)

    def part(self, name: str, index: Any) -> np.ndarray:
        rule = self.rules[name]
        if rule.is_stacked and isinstance(index, int):
            return rule.to_ours(self._theirs[rule.their_names(self._layers)[index]])
        return self[name][index]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name][0]

    def dtype(self, name: str) -> np.dtype:
        return self._stored[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def _shape_and_type(self, rule: Rule) -> tuple[tuple[int, ...], np.dtype]:
        """Return the shape and the type of our parameter."""
        names = rule.their_names(self._layers)
        for name in names:
            check_weight(name, self._theirs.dtype(name))
        shapes, dtypes = {self._theirs.shape(name) for name in names}, {self._theirs.dtype(name) for name in names}
        if len(shapes) != 1 or len(dtypes) != 1:
            raise ValueError(
                f"all layers must have tensors of the same shape and type, but {rule.theirs} has {sorted(shapes)} and "
                f"{sorted(map(str, dtypes))}; the checkpoint is damaged or belongs to another model"
            )
        [shape], [dtype] = shapes, dtypes
        if rule.axes is not None and len(rule.axes) != len(shape):
            raise ValueError(
                f"{rule.theirs} must have {len(rule.axes)} axes, but its shape is {shape}; the checkpoint is damaged"
            )
        ours = shape if rule.axes is None else tuple(shape[axis] for axis in rule.axes)
        return ((self._layers, *ours) if rule.is_stacked else ours), dtype


def plan_ours(ours: Tensors, dtype: np.dtype | None = None) -> list[Planned]:
    """Plan to write every parameter in our layout, in its stored type or in `dtype`."""

    def pieces(name: str) -> Iterator[np.ndarray]:
        if not name.startswith(STACKED_PREFIX):
            yield ours[name]
            return
        for layer in range(ours.shape(name)[0]):
            yield ours.part(name, layer)

    return [
        Planned(name, ours.shape(name), dtype or ours.dtype(name), lambda name=name: pieces(name))  # type: ignore[misc]
        for name in ours
    ]


def plan_theirs(ours: Tensors, rules: Sequence[Rule], dtype: np.dtype | None = None) -> list[Planned]:
    """Plan to write our parameters in a published layout, in their stored type or in `dtype`."""

    def piece(rule: Rule, layer: int) -> Iterator[np.ndarray]:
        yield rule.to_theirs(ours.part(rule.ours, layer) if rule.is_stacked else ours[rule.ours])

    planned = []
    for rule in rules:
        shape, layers = ours.shape(rule.ours), 1
        if rule.is_stacked:
            layers, *shape = shape  # type: ignore[assignment]
        theirs = rule.to_theirs(np.broadcast_to(np.float32(0), shape)).shape
        for layer, name in enumerate(rule.their_names(layers)):
            source = lambda rule=rule, layer=layer: piece(rule, layer)  # noqa: E731
            planned.append(Planned(name, theirs, dtype or ours.dtype(rule.ours), source))
    return planned
