"""One table of rules between two layouts of the same parameters, read both ways.

A rule names a tensor of theirs, where `{layer}` stands for the number of a layer, and a parameter of ours, in which
the layers are stacked. A linear's weight is transposed: theirs is [out, in], ours is [in, out].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Named = dict[str, np.ndarray]


class Rule(NamedTuple):
    """`theirs` and `ours` are names of one parameter; `transposed`: a matrix, stored the other way round."""

    theirs: str
    ours: str
    transposed: bool


def linear(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """A linear layer: weight [out, in] against kernel [in, out], and the bias when there is one."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.kernel", True)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias", False)] if bias else rules


def norm(theirs: str, ours: str, *, bias: bool) -> list[Rule]:
    """A norm: weight against weight, and the bias when there is one."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.weight", False)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias", False)] if bias else rules


def to_ours(theirs: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """Their tensors under our names, layers stacked along a new first axis.

    Raises:
      ValueError: a rule finds no tensor, or a tensor finds no rule; the message lists them.
    """
    wanted = {name for rule in rules for name in _their_names(rule, layers)}
    missing, unknown = sorted(wanted - theirs.keys()), sorted(theirs.keys() - wanted)
    if missing or unknown:
        raise ValueError(
            f"the tensors do not match the layout of this model: missing {missing or 'none'}, "
            f"unknown {unknown or 'none'}; check the configuration against the checkpoint"
        )
    ours = {}
    for rule in rules:
        tensors = [theirs[name].T if rule.transposed else theirs[name] for name in _their_names(rule, layers)]
        ours[rule.ours] = np.stack(tensors) if "{layer}" in rule.theirs else tensors[0]
    return ours


def to_theirs(ours: Mapping[str, np.ndarray], rules: Sequence[Rule], *, layers: int) -> Named:
    """The inverse of `to_ours`, bit for bit.

    Raises:
      ValueError: a rule finds no parameter, or a parameter finds no rule; the message lists them.
    """
    wanted = {rule.ours for rule in rules}
    if wanted != ours.keys():
        raise ValueError(
            f"the parameters do not match the layout: missing {sorted(wanted - ours.keys()) or 'none'}, "
            f"unknown {sorted(ours.keys() - wanted) or 'none'}"
        )
    theirs = {}
    for rule in rules:
        value = np.asarray(ours[rule.ours])
        parts = value if "{layer}" in rule.theirs else value[None]
        for name, part in zip(_their_names(rule, layers), parts):
            theirs[name] = np.ascontiguousarray(part.T if rule.transposed else part)
    return theirs


def _their_names(rule: Rule, layers: int) -> list[str]:
    if "{layer}" not in rule.theirs:
        return [rule.theirs]
    return [rule.theirs.format(layer=layer) for layer in range(layers)]
