"""Comparison with recorded training of the text-conditional Flag-DiT: losses, gradients, AdamW steps and average.

In: a golden file of a few steps on a list of pictures with fixed noise and times. Out: comparisons of the losses and of
all gradients of the first step, of the losses and gradient norms of all steps, and of the final and averaged
parameters.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lumina_jax.config import FlowConfig, OptimizerConfig
from lumina_jax.interop.layouts import LAYOUTS, their_tensors
from lumina_jax.parity.golden import Comparison, Golden, Pair, compare
from lumina_jax.parity.models import packed_list, read_condition, released_model
from lumina_jax.training.optimizer import ema_update, optimizer
from lumina_jax.training.state import split_model
from lumina_jax.training.step import NoiseAndTimes, TrainBatch, batch_losses, gradient

LOSS, GRADIENT, TRAJECTORY = 1e-4, 1e-3, 1e-3
FLOW = FlowConfig(times="uniform")


def run(golden: Golden) -> Iterator[Comparison]:
    """Compare every call of the file."""
    for case, call in golden.calls.items():
        try:
            parts = _train(golden, case, call["kwargs"])
        except Exception as error:  # the other cases must still run
            yield Comparison(case, math.inf, 0.0, False, f"{type(error).__name__}: {error}")
            continue
        for part, pairs in parts.items():
            yield compare(f"{case} {part}", pairs)


def _train(golden: Golden, case: str, arguments: dict[str, Any]) -> dict[str, list[Pair]]:
    model = released_model(golden)
    graph, parameters = split_model(model)
    inputs, outputs = golden.inputs(case), golden.outputs(case)
    x1, _ = packed_list(model, inputs["x1"])
    x0, _ = packed_list(model, inputs["x0"])
    count = jnp.ones((len(inputs["x1"]), 1))
    batch = TrainBatch(jax.tree.map(jnp.asarray, x1), read_condition(model, inputs), count)
    drawn = NoiseAndTimes(jnp.asarray(x0.patches), jnp.asarray(inputs["t"])[:, None])
    per_item = batch_losses(model, batch, drawn, FLOW).per_sample[:, 0]

    transform = optimizer(_optimizer_config(arguments), total_steps=arguments["steps"])
    moments, ema = transform.init(parameters), parameters
    losses, norms, first = [], [], None

    @jax.jit
    def step(parameters: dict, moments: Any, ema: dict) -> tuple:
        loss, _, gradients = gradient(graph, parameters, batch, drawn, FLOW, 1)
        updates, moments = transform.update(gradients, moments, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return loss, gradients, parameters, moments, ema_update(ema, parameters, arguments["ema_decay"])

    for _ in range(arguments["steps"]):
        loss, gradients, parameters, moments, ema = step(parameters, moments, ema)
        first = gradients if first is None else first
        losses.append(float(loss))
        norms.append(float(optax.global_norm(gradients)))

    config = model.config
    return {
        "losses": [("per_item", per_item, outputs["per_item"], LOSS, LOSS)],
        "gradients": _named_pairs(golden, "grad/", their_tensors(LAYOUTS["lumina"], config, first or {}), GRADIENT),
        "trajectory": [
            ("losses", losses, outputs["losses"], 0.0, TRAJECTORY),
            ("grad_norms", norms, outputs["grad_norms"], 0.0, TRAJECTORY),
        ],
        "parameters": _named_pairs(golden, "final/", their_tensors(LAYOUTS["lumina"], config, parameters), TRAJECTORY),
        "ema": _named_pairs(golden, "ema/", their_tensors(LAYOUTS["lumina"], config, ema), TRAJECTORY),
    }


def _optimizer_config(arguments: dict[str, Any]) -> OptimizerConfig:
    """Return a constant learning rate, the constants of torch's AdamW, and clipping by norm."""
    return OptimizerConfig(
        learning_rate=arguments["lr"],
        weight_decay=arguments["wd"],
        clip_norm=arguments["clip"],
        ema_decay=arguments["ema_decay"],
    )


def _named_pairs(golden: Golden, prefix: str, ours: dict[str, np.ndarray], relative: float) -> list[Pair]:
    """Pair each recorded tensor with ours, with a tolerance of `relative` times its largest element.

    The tolerance is at least a millionth of the largest element of all tensors, because the gradient of the bias of a
    key is zero except for rounding: softmax does not depend on that bias.
    """
    theirs = {name.removeprefix(prefix): value for name, value in golden.raw.items() if name.startswith(prefix)}
    largest = {name: float(np.abs(value).max()) for name, value in theirs.items()}
    floor = 1e-6 * max(largest.values(), default=0.0)
    return [(name, ours[name], value, max(relative * largest[name], floor), 0.0) for name, value in theirs.items()]
