"""The published layouts of checkpoints, and loading our model from them.

In: published constructor arguments or config.json, and named tensors ("theirs"). Out: a `FlagDiT`, and the inverse.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.config import ModelConfig
from lumina_jax.interop import diffusers, lumina
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.weights.modules import load_module, named_parameters
from lumina_jax.weights.rules import Named, Rule, to_theirs


class Layout(NamedTuple):
    """A published layout of parameters and configuration."""

    name: str
    settings: Any
    """The type of the published configuration, for `documents.read_json`."""
    read_config: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], ModelConfig]
    """Returns our configuration for published arguments and tensors, which may be read lazily."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Returns published arguments for our configuration; ValueError if the layout cannot represent it."""
    rules: Callable[[ModelConfig], list[Rule]]
    has_pad_token: Callable[[ModelConfig], bool]
    """Whether the published model has an embedding of padding, which no output depends on."""


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "lumina",
            lumina.ConstructorArguments,
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
    """Return our model with published weights.

    Args:
      changes: fields of the configuration that do not affect the parameters, such as `compute_dtype`.

    Raises:
      ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
    """
    config = dataclasses.replace(config, **changes)
    return load_module(
        lambda: FlagDiT(config, rngs=ParameterKeys(0)), tensors, layout.rules(config), layers=config.layers
    )


def their_tensors(layout: Layout, config: ModelConfig, parameters: dict[str, Any]) -> Named:
    """Convert our parameters, or a tree like them such as gradients, to published tensors exactly."""
    ours = {name: np.asarray(value) for name, value in named_parameters(parameters).items()}
    return to_theirs(ours, layout.rules(config), layers=config.layers)
