"""AdamW and Muon with clipping, their learning rate over the steps, and the moving average of the parameters.

In: gradients of the parameters, float32. Out: updates to add to them. The order is that of the released training code:
clip by the global norm, then AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) with

    m_t = beta1 m + (1 - beta1) g        v_t = beta2 v + (1 - beta2) g^2
    x_t = x - rate_t (f m_t / (1 - beta1^t) / (sqrt(v_t / (1 - beta2^t)) + eps) + decay x)

with decay for every parameter, then the average a_t = d a + (1 - d) x_t. Steps count from 0: `rate(0)` is the rate of
the first update. Gradients are averaged over micro-batches before.

f is 1, or with muP the factor of the parameter. It does not change the decay, so that a step shrinks every parameter by
the same share at every width. eps falls as 1 / width, as gradients do (`models/parametrization.py`).

Muon replaces the fraction, for each matrix of attention and feed-forward of each layer, by the product of orthogonal
matrices that is nearest to its momentum, of which Newton-Schulz iterations find an approximation (Jordan, Muon, 2024).
It is scaled by 0.2 sqrt(max(inputs, outputs)), so that its entries have the size of those of AdamW and both share one
rate and one decay (Liu et al., arXiv 2502.16982, equation 4).
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lumina_jax.config import ModelConfig, OptimizerConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.parametrization import ParameterRule, parameter_rules

Tree = TypeVar("Tree")

MUON_RMS = 0.2
"""The root mean square of the entries of an update of Muon, over the rate."""


def optimizer(
    config: OptimizerConfig, total_steps: int, model: ModelConfig | None = None
) -> optax.GradientTransformation:
    """Clipping and AdamW or Muon, with float32 moments, for a run of `total_steps` updates.

    Args:
      model: whose parameters are trained; None: AdamW in the standard parametrization, for any tree of parameters.

    Raises:
      ValueError: `learning_rate` refuses the schedule.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    if model is None or (config.name == "adamw" and model.parametrization == "standard"):
        adamw = optax.adamw(
            learning_rate(config, total_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=jnp.float32,
        )
        return optax.chain(clip, adamw)
    rules = parameter_rules(abstract_model(model)[1], model)
    eps = config.eps * (model.base_width or model.width) / model.width
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=eps, mu_dtype=jnp.float32)
    direction = adam if config.name == "adamw" else _muon_with(adam, config, rules)
    return optax.chain(
        _scaled(rules, lambda rule: rule.gradient),
        clip,
        direction,
        _scaled(rules, muon_rate if config.name == "muon" else lambda rule: rule.rate),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, total_steps)),
    )


def muon_rate(rule: ParameterRule) -> float:
    """The factor on the rate of a parameter where Muon trains the hidden matrices.

    At the base width that of equation 4 of arXiv 2502.16982; with muP the spectral norm of an update grows from there
    as sqrt(outputs / inputs) (arXiv 2310.17813, condition 1).
    """
    if rule.matrix is None:
        return rule.rate
    inputs, outputs = rule.matrix
    base = MUON_RMS * math.sqrt(max(inputs / rule.inputs, outputs / rule.outputs))
    return base * math.sqrt(rule.outputs / rule.inputs)


def _muon_with(
    adam: optax.GradientTransformation, config: OptimizerConfig, rules: dict[str, Any]
) -> optax.GradientTransformation:
    """Orthogonal directions for hidden matrices, layer by layer of a stack, and those of AdamW for the others."""
    # The last two dimensions are the matrix; all others are a batch of matrices.
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    muon = optax.contrib.scale_by_muon(
        beta=config.momentum,
        mu_dtype=jnp.float32,
        weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: numbers, updates),
    )
    labels = jax.tree.map(lambda rule: "adamw" if rule.matrix is None else "muon", rules, is_leaf=_is_rule)
    return optax.partition({"adamw": adam, "muon": muon}, labels)


def _scaled(rules: dict[str, Any], factor: Any) -> optax.GradientTransformation:
    """Updates times the factor of their parameter, a number of Python, so that a factor of 1 changes nothing."""
    factors = jax.tree.map(factor, rules, is_leaf=_is_rule)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, by: update * by, updates, factors))


def _is_rule(node: Any) -> bool:
    return isinstance(node, ParameterRule)


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of each step: a linear warmup, then constant or down to 0 after the last step.

    Step k of a warmup of n steps has (k + 1) / n of the rate, so that no step has a rate of 0.

    Raises:
      ValueError: the warmup leaves no step for a schedule that decays.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = total_steps - warmup
    if config.schedule != "constant" and decay_steps < 1:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be less than run.steps={total_steps} when the schedule is "
            f"{config.schedule!r}; shorten the warmup or lengthen the run"
        )
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, decay_steps)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, after], [warmup])


def ema_decay(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The decay d of the average after the update of `step`; with warmup, min(ema_decay, (1 + step) / (10 + step))."""
    decay = jnp.float32(config.ema_decay)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if config.ema_warmup else decay


def ema_update(ema: Tree, parameters: Tree, decay: Float[Array, ""] | float) -> Tree:
    """The next average, d a + (1 - d) x."""
    return jax.tree.map(lambda average, value: decay * average + (1.0 - decay) * value, ema, parameters)
