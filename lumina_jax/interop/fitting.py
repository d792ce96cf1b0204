"""A model of ours as a layout of PyTorch can hold it.

In: a checkpoint, and the name of a layout. Out: the checkpoint with the embedding of padding added or left out, as the
layout has it. Padding is masked in every attention and cut off at the end, so no output depends on its embedding.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lumina_jax.config import ModelConfig
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.sources import Source
from lumina_jax.weights.rules import Rule, listed
from lumina_jax.weights.tensors import ComputedTensors, JoinedTensors, Renamed

PAD = "pad_token"


def fitted(source: Source, layout: str) -> Source:
    """The checkpoint as a model of the layout.

    Raises:
      ValueError: the layout cannot hold it; the message says why, and which layout can.
    """
    config = dataclasses.replace(source.config, pad_token=LAYOUTS[layout].has_pad_token(source.config))
    reasons = reasons_against(source.config)
    if reason := reasons[layout]:
        able = [f"--to {name}" for name, other in reasons.items() if not other]
        remedy = f"choose {' or '.join(able)}" if able else "no code for PyTorch can run it, and only --to jax keeps it"
        raise ValueError(f"{reason}; {remedy}")
    _check_complete(source, LAYOUTS[layout].rules(config))
    if config.pad_token == source.config.pad_token:
        return source
    if not config.pad_token:
        ours = Renamed(source.ours, lambda name: None if name == PAD else name)
        note = f"left out: {PAD}, the embedding of padding, which no output depends on"
        return source._replace(config=config, ours=ours, notes=(*source.notes, note))
    shape, dtype = (config.width,), source.ours.dtype("patch_embedding.bias")
    zeros = ComputedTensors({PAD: (shape, dtype)}, lambda name: np.zeros(shape, dtype))
    note = f"added: {PAD}, the embedding of padding, as zeros; no output depends on it"
    return source._replace(config=config, ours=JoinedTensors([source.ours, zeros]), notes=(*source.notes, note))


def reasons_against(config: ModelConfig) -> Mapping[str, str]:
    """For each layout of PyTorch why it cannot hold a model of this configuration; nothing where it can."""
    return {name: _reason(config, name) for name in LAYOUTS}


def _reason(config: ModelConfig, layout: str) -> str:
    theirs = LAYOUTS[layout]
    try:
        theirs.write_config(dataclasses.replace(config, pad_token=theirs.has_pad_token(config)))
    except ValueError as error:
        return str(error)
    return ""


def _check_complete(source: Source, rules: list[Rule]) -> None:
    """Every parameter has a name in the layout, so that none is lost."""
    if lost := sorted(set(source.ours) - {rule.ours for rule in rules} - {PAD}):
        raise ValueError(f"the layout has no name for {listed(lost)}, and weights are never left out; choose --to jax")
