"""Rules that convert parameters between a published layout ("theirs") and that of lumina_jax ("ours"), both ways.

A rule consists of the name of a published tensor, in which `{layer}` stands for the index of a layer, and the name of
our parameter, in which layers are stacked along a new first axis. Values are only transposed and stacked, so that a
round trip is exact. The published layouts are those of PyTorch: the weight of a Linear is [out, in] there and [in, out]
here; that of a convolution is [out, in, height, width] there and [height, width, in, out] here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.weights.tensors import check_weight

Named = dict[str, np.ndarray]
MATRIX, CONVOLUTION = (1, 0), (2, 3, 1, 0)


class Rule(NamedTuple):
    """The two names of a parameter.

    `axes` has the position of each of our axes in the published tensor; None: the order is the same. If there are two
    published tensors for one of our parameters, each has a rule: only the first is read, and both are written.
    """

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.theirs

    def their_names(self, layers: int) -> list[str]:
        """Return the published tensors of the parameter, in the order in which they are stacked."""
        return [self.theirs.format(layer=layer) for layer in range(layers)] if self.is_stacked else [self.theirs]

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Return a view of a published tensor with our order of axes."""
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def to_theirs(self, tensor: np.ndarray) -> np.ndarray:
        """Return a view of one layer with the published order of axes, the inverse of `to_ours`."""
        return tensor if self.axes is None else tensor.transpose(np.argsort(self.axes))


def linear(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """Return the rules of a linear layer: weight [out, in] and kernel [in, out], and an optional bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.kernel", MATRIX)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias")] if bias else rules


def convolution(theirs: str, ours: str) -> list[Rule]:
    """Return the rules of a two-dimensional convolution with a bias."""
    return [Rule(f"{theirs}.weight", f"{ours}.kernel", CONVOLUTION), Rule(f"{theirs}.bias", f"{ours}.bias")]


def norm(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """Return the rules of a norm with a weight and an optional bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.weight")]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias")] if bias else rules


def check_names(names: Sequence[str] | Mapping, rules: Sequence[Rule], *, layers: int) -> None:
    """Check that `names` are exactly the published tensors of the rules.

    Raises:
      ValueError: they are not; the message lists missing and unknown names.
    """
    wanted = {name for rule in rules for name in rule.their_names(layers)}
    missing, unknown = sorted(wanted - set(names)), sorted(set(names) - wanted)
    if missing or unknown:
        raise ValueError(
            f"the tensors do not match the layout of this model: missing {listed(missing)}, unknown "
            f"{listed(unknown)}; check that the configuration belongs to the checkpoint"
        )


def to_ours(theirs: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """Convert published tensors to our parameters, with layers stacked along a new first axis.

    Raises:
      ValueError: tensors are missing or unknown, or layers differ in shape; the message lists them.
    """
    check_names(theirs, rules, layers=layers)
    return {rule.ours: parameter(theirs, rule, layers=layers) for rule in reversed(rules)}


def parameter(theirs: Mapping[str, np.ndarray], rule: Rule, *, layers: int) -> np.ndarray:
    """Convert the published tensors of one rule to our parameter. No other tensor is read."""
    stored = {name: theirs[name] for name in rule.their_names(layers)}
    for name, tensor in stored.items():
        check_weight(name, tensor.dtype)
    tensors = {name: rule.to_ours(tensor) for name, tensor in stored.items()}
    shapes = {tensor.shape for tensor in tensors.values()}
    if len(shapes) != 1:
        raise ValueError(
            f"all layers must have tensors of the same shape, but {rule.theirs} has {sorted(shapes)}; the checkpoint "
            "is damaged or belongs to another model"
        )
    return np.stack(list(tensors.values())) if rule.is_stacked else tensors[rule.theirs]


def to_theirs(ours: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """Convert our parameters to published tensors: the exact inverse of `to_ours`.

    Raises:
      ValueError: parameters are missing or unknown; the message lists them.
    """
    wanted = {rule.ours for rule in rules}
    if wanted != ours.keys():
        raise ValueError(
            f"the parameters do not match this layout: missing {listed(sorted(wanted - ours.keys()))}, "
            f"unknown {listed(sorted(ours.keys() - wanted))}; choose another layout"
        )
    theirs = {}
    for rule in rules:
        value = np.asarray(ours[rule.ours])
        parts = value if rule.is_stacked else value[None]
        for name, part in zip(rule.their_names(layers), parts):
            theirs[name] = np.ascontiguousarray(rule.to_theirs(part))
    return theirs


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first `most` names and the number of further ones, for a message."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
