"""How initial values and learning rates follow from the width of a model: the maximal update parametrization (muP).

In: the logical axes of a parameter, and how many times larger than in the base model each of its dimensions is. Out:
factors on its initial values and on the updates of its optimiser. At the base width each factor is 1, so that muP is
the standard parametrization there; at other widths every activation, and its change in a step, keeps the size that it
has at the base. A block needs no code for it: a matrix has its inputs first and its outputs last.

With i and o, how many times larger the inputs and outputs of a matrix are, the spectral norm of its values and of an
update is to grow as sqrt(o / i) (Yang, Simon & Bernstein, arXiv 2310.17813, condition 1). Hence

    deviation of initial values     i^-1/2 min(1, sqrt(o / i))  times that at the base
    rate of AdamW                   1 / i
    rate of Muon                    sqrt(o / i)

For hidden (o = i), input (i = 1) and output matrices (o = 1) that is table 3 of Tensor Programs V (arXiv 2203.03466),
which holds for diffusion transformers as it is (arXiv 2505.15270, theorem 3.1). A vector has i = 1. That paper also
writes the parametrization with a factor 1 / i on the output of the network (table 8); here this factor is part of the
initial values and of the rate (lemma J.1), so that a trained model is computed, sampled and exported as any other.
"""

import math
from typing import Any, NamedTuple

import jax
from flax import nnx

from lumina_jax.config import ModelConfig

HIDDEN = frozenset({"embed", "heads", "kv_heads", "mlp"})
"""The axes between the input and the output of the network, without those of time and caption."""


class ParameterRule(NamedTuple):
    """What the shape and the axes of a parameter say about its training."""

    inputs: float
    """How many times more inputs than at the base width."""
    outputs: float
    matrix: tuple[int, int] | None
    """Inputs and outputs of a hidden matrix; None: the parameter is no matrix, or lies at an end of the network."""

    @property
    def rate(self) -> float:
        """The factor on updates of AdamW, whose entries do not shrink with the gradient."""
        return 1 / self.inputs

    @property
    def gradient(self) -> float:
        """The factor on the gradient in the norm that is clipped: that of table 8, where the gradients of the output
        layer do not outgrow those of the hidden ones."""
        return min(1.0, self.outputs / self.inputs)


def width_ratios(config: ModelConfig) -> dict[str | None, float]:
    """How many times larger than at `model.base_width` a dimension is, by its logical axis; 1 without a base.

    Heads and key heads have their width flattened, and grow with the model in number or in width. The embedding of time
    and caption grows up to `model.condition_limit`, and caption features and patches have a fixed size.
    """
    base = config.base_width or config.width
    width = config.width / base
    return {
        "embed": width,
        "heads": width,
        "kv_heads": width,
        "mlp": config.mlp_width / config.mlp_width_at(base),
        "modulation": width,
        "condition": config.condition_width / config.condition_width_at(base),
        "text": 1.0,
        "patch": 1.0,
        "vocab": 1.0,
        None: 1.0,
    }


def parameter_rules(state: Any, config: ModelConfig) -> dict[str, Any]:
    """The rule of each parameter, nested as by `nnx.to_pure_dict`.

    Args:
      state: the parameters of a model, abstract or real, with their axes.
    """
    ratios = width_ratios(config)

    def rule(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(_rule(variable, ratios))

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(rule, state, is_leaf=is_variable))


def scale_initial_values(model: nnx.Module, config: ModelConfig) -> None:
    """Give the parameters of a new model the deviations that they have at its width.

    Raises:
      ValueError: muP does not know how the values of a matrix were drawn.
    """
    if config.parametrization == "standard":
        return
    ratios = width_ratios(config)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        rule = _rule(variable, ratios)
        factor = _initial_factor(".".join(map(str, path)), variable, rule)
        if factor != 1:
            variable[...] = variable[...] * factor


def _rule(variable: nnx.Variable, ratios: dict[str | None, float]) -> ParameterRule:
    axes = variable.get_metadata()["axes"]
    if len(axes) < 2:
        return ParameterRule(1.0, ratios[axes[0]] if axes else 1.0, None)
    sizes = (variable.shape[-2], variable.shape[-1])
    return ParameterRule(ratios[axes[-2]], ratios[axes[-1]], sizes if HIDDEN.issuperset(axes) else None)


def _initial_factor(name: str, variable: nnx.Variable, rule: ParameterRule) -> float:
    """The factor from the values as they were drawn to those of the rule."""
    axes, spread = variable.get_metadata()["axes"], variable.get_metadata()["spread"]
    if len(axes) < 2:
        return 1.0
    wanted = rule.inputs**-0.5 * min(1.0, math.sqrt(rule.outputs / rule.inputs))
    if spread == "fixed":
        return wanted
    if spread != "xavier":
        raise ValueError(
            f"model.parametrization='mup' must know how the deviation of initial values depends on the shape, but not "
            f"for {name}; add its initialiser to SPREADS in models/layers.py"
        )
    inputs, outputs = variable.shape[-2:]
    return wanted * math.sqrt((inputs + outputs) / (inputs / rule.inputs + outputs / rule.outputs))
