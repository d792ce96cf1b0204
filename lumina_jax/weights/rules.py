"""One table of rules between two layouts of the same parameters, read both ways.

A rule names a tensor of theirs, where `{layer}` stands for the number of a layer, and a parameter of ours, in which
the layers are stacked along a new first axis. Values are never computed, only transposed, so every way there and back
is exact bit for bit. Theirs are PyTorch's layouts: a Linear's weight is [out, in] and ours [in, out]; a convolution's
is [out, in, height, width] and ours [height, width, in, out].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.weights.tensors import check_weight

Named = dict[str, np.ndarray]
MATRIX, CONVOLUTION = (1, 0), (2, 3, 1, 0)


class Rule(NamedTuple):
    """Two names of one parameter; `axes`: where each axis of ours lies in theirs, None: in the same order.

    Where theirs has two tensors for one parameter of ours, each has a rule: the first is read, both are written.
    """

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.theirs

    def their_names(self, layers: int) -> list[str]:
        """The tensors that make up the parameter of ours, in the order in which they are stacked."""
        return [self.theirs.format(layer=layer) for layer in range(layers)] if self.is_stacked else [self.theirs]

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """One tensor of theirs in our order of axes, a view."""
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def to_theirs(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`, for one layer, a view."""
        return tensor if self.axes is None else tensor.transpose(np.argsort(self.axes))


def linear(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """A linear layer: weight [out, in] against kernel [in, out], and the bias when there is one."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.kernel", MATRIX)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias")] if bias else rules


def convolution(theirs: str, ours: str) -> list[Rule]:
    """A two-dimensional convolution with its bias."""
    return [Rule(f"{theirs}.weight", f"{ours}.kernel", CONVOLUTION), Rule(f"{theirs}.bias", f"{ours}.bias")]


def norm(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """A norm: weight against weight, and the bias when there is one."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.weight")]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias")] if bias else rules


def check_names(names: Sequence[str] | Mapping, rules: Sequence[Rule], *, layers: int) -> None:
    """Every rule finds its tensors among `names`, and every name a rule.

    Raises:
      ValueError: they don't; the message lists what is missing and what is unknown.
    """
    wanted = {name for rule in rules for name in rule.their_names(layers)}
    missing, unknown = sorted(wanted - set(names)), sorted(set(names) - wanted)
    if missing or unknown:
        raise ValueError(
            f"the tensors do not match the layout of this model: missing {listed(missing)}, unknown "
            f"{listed(unknown)}; check the configuration against the checkpoint"
        )


def to_ours(theirs: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """Their tensors under our names, layers stacked along a new first axis.

    Raises:
      ValueError: a rule finds no tensor, a tensor finds no rule, or the layers differ in shape; the message lists them.
    """
    check_names(theirs, rules, layers=layers)
    return {rule.ours: parameter(theirs, rule, layers=layers) for rule in reversed(rules)}


def parameter(theirs: Mapping[str, np.ndarray], rule: Rule, *, layers: int) -> np.ndarray:
    """The parameter of ours that one rule makes of their tensors; only these are read."""
    stored = {name: theirs[name] for name in rule.their_names(layers)}
    for name, tensor in stored.items():
        check_weight(name, tensor.dtype)
    tensors = {name: rule.to_ours(tensor) for name, tensor in stored.items()}
    shapes = {tensor.shape for tensor in tensors.values()}
    if len(shapes) != 1:
        raise ValueError(
            f"every layer must have tensors of one shape, but {rule.theirs} comes in {sorted(shapes)}; "
            "the checkpoint is damaged or of another model"
        )
    return np.stack(list(tensors.values())) if rule.is_stacked else tensors[rule.theirs]


def to_theirs(ours: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """The inverse of `to_ours`, bit for bit.

    Raises:
      ValueError: a rule finds no parameter, or a parameter finds no rule; the message lists them.
    """
    wanted = {rule.ours for rule in rules}
    if wanted != ours.keys():
        raise ValueError(
            f"the parameters do not match the layout: missing {listed(sorted(wanted - ours.keys()))}, "
            f"unknown {listed(sorted(ours.keys() - wanted))}"
        )
    theirs = {}
    for rule in rules:
        value = np.asarray(ours[rule.ours])
        parts = value if rule.is_stacked else value[None]
        for name, part in zip(rule.their_names(layers), parts):
            theirs[name] = np.ascontiguousarray(rule.to_theirs(part))
    return theirs


def listed(names: Sequence[str], most: int = 12) -> str:
    """The first `most` names and how many more there are, for a message."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
