"""The layouts of other people's checkpoints, and our model made of their tensors.

In: constructor arguments or config.json of theirs, and named tensors. Out: a `FlagDiT`, and the way back.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.interop import diffusers, lumina
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.weights.modules import load_module, named_parameters
from lumina_jax.weights.rules import Named, Rule, to_theirs


class Layout(NamedTuple):
    """One way to name the parameters of a model."""

    name: str
    settings: Any
    """The type of their configuration, for `documents.read_json`."""
    read_config: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], ModelConfig]
    """Our configuration, of their arguments and their tensors (which may be read lazily)."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Their arguments, of our configuration: the inverse, for what a layout can carry; else a ValueError."""
    rules: Callable[[ModelConfig], list[Rule]]
    has_pad_token: Callable[[ModelConfig], bool]
    """Whether their model has an embedding of padding, which no output depends on."""


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "lumina",
            lumina.Arguments,
            lumina.model_config,
            lumina.their_config,
            lumina.flag_dit_rules,
            lumina.has_pad_token,
        ),
        Layout(
            "diffusers",
            diffusers.Settings,
            diffusers.model_config,
            diffusers.their_config,
            diffusers.rules,
            lambda config: True,
        ),
    )
}


def load_model(layout: Layout, config: ModelConfig, tensors: Mapping[str, np.ndarray], **changes: Any) -> FlagDiT:
    """Our model with their weights.

    Args:
      changes: fields of the configuration that don't concern the parameters, such as `compute_dtype`.

    Raises:
      ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
    """
    config = dataclasses.replace(config, **changes)
    return load_module(lambda: FlagDiT(config, rngs=nnx.Rngs(0)), tensors, layout.rules(config), layers=config.layers)


def their_tensors(layout: Layout, config: ModelConfig, parameters: dict[str, Any]) -> Named:
    """A tree of our parameters, or of anything of their shape such as gradients, under their names, bit for bit."""
    ours = {name: np.asarray(value) for name, value in named_parameters(parameters).items()}
    return to_theirs(ours, layout.rules(config), layers=config.layers)
