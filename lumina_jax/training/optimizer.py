"""AdamW with clipping, its learning rate over the steps, and the moving average of the parameters.

In: gradients of the parameters, float32. Out: updates to add to them. The order is that of the released training code:
clip by the global norm, then AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) with

    m_t = beta1 m + (1 - beta1) g        v_t = beta2 v + (1 - beta2) g^2
    x_t = x - rate_t (m_t / (1 - beta1^t) / (sqrt(v_t / (1 - beta2^t)) + eps) + decay x)

with decay for every parameter, then the average a_t = d a + (1 - d) x_t. Steps count from 0: `rate(0)` is the rate of
the first update. Gradients are averaged over micro-batches before.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lumina_jax.config import OptimizerConfig

Tree = TypeVar("Tree")


def optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping and AdamW, with float32 moments, for a run of `total_steps` updates."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(
        learning_rate(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=jnp.float32,
    )
    return optax.chain(clip, adamw)


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
