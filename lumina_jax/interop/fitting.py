"""Adapting a model to a PyTorch layout.

In: a checkpoint, and the name of a layout. Out: the checkpoint with the embedding of padding added or removed, as the
layout requires. Padding is masked in every attention and removed at the end, so no output depends on its embedding.

PyTorch layouts have text attention for all heads. A model that has it for the first ones only (`model.text_heads`) is
written with gates of 0, whose tanh is 0, and zeros for the values of the others, and read again as what it was.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lumina_jax.config import ModelConfig
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.sources import WeightSource
from lumina_jax.weights.rules import Rule, listed
from lumina_jax.weights.tensors import ComputedTensors, JoinedTensors, Renamed, Resized

PAD_TOKEN = "pad_token"


def fitted(source: WeightSource, layout: str) -> WeightSource:
    """Adapt a checkpoint to a layout.

    Raises:
      ValueError: the layout cannot represent it; the message gives the reason, and the layouts that can.
    """
    source = _with_all_text_heads(source)
    config = dataclasses.replace(source.config, pad_token=LAYOUTS[layout].has_pad_token(source.config))
    reasons = reasons_against(source.config)
    if reason := reasons[layout]:
        possible = [f"--to {name}" for name, other in reasons.items() if not other]
        remedy = (
            f"choose {' or '.join(possible)}" if possible else "no PyTorch layout can represent it, so choose --to jax"
        )
        raise ValueError(f"{reason}; {remedy}")
    _check_complete(source, LAYOUTS[layout].rules(config))
    if config.pad_token == source.config.pad_token:
        return source
    if not config.pad_token:
        ours = Renamed(source.ours, lambda name: None if name == PAD_TOKEN else name)
        note = f"removed: {PAD_TOKEN}, the embedding of padding, which no output depends on"
        return source._replace(config=config, ours=ours, notes=(*source.notes, note))
    shape, dtype = (config.width,), source.ours.dtype("patch_embedding.bias")
    zeros = ComputedTensors({PAD_TOKEN: (shape, dtype)}, lambda name: np.zeros(shape, dtype))
    note = f"added: {PAD_TOKEN}, the embedding of padding, filled with zeros; no output depends on it"
    return source._replace(config=config, ours=JoinedTensors([source.ours, zeros]), notes=(*source.notes, note))


def _with_all_text_heads(source: WeightSource) -> WeightSource:
    """The checkpoint with closed gates for heads that do not attend to the text."""
    config = source.config
    if config.text_heads is None:
        return source
    whole = dataclasses.replace(config, text_heads=None)
    note = f"added: closed gates of {config.heads - config.text_heads} of {config.heads} heads in each layer"
    return source._replace(
        config=whole, ours=Resized(source.ours, parameter_shapes(whole)), notes=(*source.notes, note)
    )


def reasons_against(config: ModelConfig) -> Mapping[str, str]:
    """Return for each PyTorch layout why it cannot represent the model, or an empty string if it can."""
    return {name: _reason(config, name) for name in LAYOUTS}


def _reason(config: ModelConfig, layout: str) -> str:
    theirs = LAYOUTS[layout]
    try:
        theirs.write_config(dataclasses.replace(config, pad_token=theirs.has_pad_token(config)))
    except ValueError as error:
        return str(error)
    return ""


def _check_complete(source: WeightSource, rules: list[Rule]) -> None:
    """Check that every parameter has a name in the layout, so that none is lost."""
    if lost := sorted(set(source.ours) - {rule.ours for rule in rules} - {PAD_TOKEN}):
        raise ValueError(f"the layout has no name for {listed(lost)}, and weights are never dropped; choose --to jax")
