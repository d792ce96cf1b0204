"""The heads of a trained model by their gates for the text, and the model without its most closed ones.

In: parameters nested as by `nnx.to_pure_dict`, and the configuration. Out: tanh(gate) by layer and head, or the
parameters and the configuration of a model whose first heads alone attend to the text (`model.text_heads`).

The function of a layer does not depend on the order of its heads, if all their weights are in the same order: columns
of the projections to queries, keys and values, rows of the output projection, and the weights of the norms. So each
layer is sorted by its gates, and what belongs to the text of the last heads is cut off. Every layer keeps the same
number of heads, because layers are stacked, and heads that share keys are kept together or not at all.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lumina_jax.config import ModelConfig
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.models.division import BLOCKS_NAME
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.weights.modules import dotted
from lumina_jax.weights.tensors import resized

Parameters = dict[str, Any]
HEADS = ("heads", "kv_heads")
"""The logical axes along which the values of all heads lie."""


def check_gates(config: ModelConfig) -> None:
    """Raises ValueError if the model has no gates for the text."""
    if not config.has_gates:
        raise ValueError(
            f"gates belong to attention to the text beside self-attention, but this model has "
            f"model.conditioning={config.conditioning!r} and model.block={config.block!r}; name a text-conditional "
            "Flag-DiT or Next-DiT"
        )


def text_gates(parameters: Parameters, config: ModelConfig) -> Float[np.ndarray, "n h"]:
    """tanh(gate) of each layer and head; 0 for heads that do not attend to the text.

    Raises:
      ValueError: the model has no gates.
    """
    check_gates(config)
    gates = np.tanh(np.asarray(parameters[BLOCKS_NAME]["text"]["gate"], np.float32))
    return resized(gates, (config.layers, config.heads))


def openness(gates: Float[np.ndarray, "n h"], config: ModelConfig) -> Float[np.ndarray, "n k"]:
    """The largest |tanh(gate)| of the heads that share a key head."""
    return np.abs(gates).reshape(config.layers, config.key_heads, -1).max(axis=-1)


def heads_for_share(config: ModelConfig, share: int | float) -> int:
    """The least number of heads a layer that is at least this share of them.

    Raises:
      ValueError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of heads to keep must be above 0 and at most 1, but is {share}")
    group = config.heads // config.key_heads
    return group * max(1, int(np.ceil(round(share * config.key_heads, 6))))


def heads_above(gates: Float[np.ndarray, "n h"], config: ModelConfig, threshold: int | float) -> int:
    """The least number of heads a layer that keeps every head whose |tanh(gate)| is at least the threshold.

    Raises:
      ValueError: the threshold is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of |tanh(gate)| must be above 0 and at most 1, but is {threshold}")
    group = config.heads // config.key_heads
    return group * max(1, int((openness(gates, config) >= threshold).sum(axis=1).max()))


def kept(gates: Float[np.ndarray, "n h"], config: ModelConfig, text_heads: int) -> Int[np.ndarray, "n g"]:
    """The heads of each layer that a model with `text_heads` keeps, in order."""
    group, count = config.heads // config.key_heads, text_heads * config.key_heads // config.heads
    first = _order(gates, config, count)[:, :count]
    return (group * first[:, :, None] + np.arange(group)).reshape(config.layers, -1)


def closed(parameters: Parameters, config: ModelConfig, text_heads: int) -> Parameters:
    """The parameters with closed gates where a model with `text_heads` has no text: the same function.

    Args:
      text_heads: 0 closes all gates.
    """
    gates = text_gates(parameters, config)
    is_kept = np.zeros(gates.shape, bool)
    np.put_along_axis(is_kept, kept(gates, config, text_heads), True, axis=1)
    blocks = parameters[BLOCKS_NAME]
    gate: Array = blocks["text"]["gate"]
    open_gate = jax.device_put(np.where(is_kept[:, : gate.shape[1]], np.asarray(gate), 0.0), gate.sharding)
    return {**parameters, BLOCKS_NAME: {**blocks, "text": {**blocks["text"], "gate": open_gate}}}


def pruned(parameters: Parameters, config: ModelConfig, text_heads: int) -> tuple[Parameters, ModelConfig]:
    """The parameters, in the memory of the host, and the configuration of a model without the text of other heads.

    With all heads nothing changes. Layers of a model that is pruned already are pruned further, or back to its size.

    Raises:
      ValueError: the model has no gates, or cannot have this number of heads with text.
    """
    gates = text_gates(parameters, config)
    model = config.replace(text_heads=None if text_heads == config.heads else text_heads)
    order = _order(gates, config, model.text_key_heads)
    axes = {name: found for name, found in _axes(config).items() if name.startswith(f"{BLOCKS_NAME}.")}
    whole, wanted = parameter_shapes(config.replace(text_heads=None)), parameter_shapes(model)

    def one(path: tuple[Any, ...], value: Array | np.ndarray) -> np.ndarray:
        name = dotted(path)
        found = resized(np.asarray(value), whole[name])
        for axis, called in enumerate(axes.get(name, ())):
            if called in HEADS:
                found = _sorted(found, axis, order)
        return np.ascontiguousarray(resized(found, wanted[name]))

    return jax.tree_util.tree_map_with_path(one, parameters), model


def _order(gates: Float[np.ndarray, "n h"], config: ModelConfig, count: int) -> Int[np.ndarray, "n k"]:
    """The key heads of each layer: first the `count` most open ones, then the others; both in the order they had."""
    strongest = np.argsort(-openness(gates, config), axis=1, kind="stable")
    return np.concatenate([np.sort(strongest[:, :count]), np.sort(strongest[:, count:])], axis=1)


def _sorted(value: np.ndarray, axis: int, order: Int[np.ndarray, "n k"]) -> np.ndarray:
    """Heads along an axis of [n ...] in the order of the key heads that they belong to."""
    layers, key_heads = order.shape
    split = value.reshape(*value.shape[:axis], key_heads, -1, *value.shape[axis + 1 :])
    index = order.reshape(layers, *(key_heads if other == axis else 1 for other in range(1, split.ndim)))
    return np.take_along_axis(split, index, axis).reshape(value.shape)


def _axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical name of each dimension of each parameter, "layers" for that which stacking adds."""
    found, _ = jax.tree_util.tree_flatten_with_path(
        abstract_model(config)[1], is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    names = {dotted(path): variable for path, variable in found}
    return {
        name: (*("layers",) * (len(one.shape) - len(one.get_metadata()["axes"])), *one.get_metadata()["axes"])
        for name, one in names.items()
    }
