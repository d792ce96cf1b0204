"""The settings of `lumina sample` that few drawings need, which the page keeps in a fold and shows where they matter.

In: a run, and the values of fields or of a picture. Out: values of `SampleConfig` by their names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from lumina_jax.config import SampleConfig
from lumina_jax.config.sample import ANCESTRAL
from lumina_jax.config.section import check_type
from lumina_jax.demo.field_values import number_of, number_or_none, whole_of
from lumina_jax.demo.runs import ShownRun
from lumina_jax.flow.sde import STOCHASTIC
from lumina_jax.flow.solvers import SOLVERS

TYPES = {field.name: field.type for field in dataclasses.fields(SampleConfig)}


class Group(NamedTuple):
    """Settings that matter together."""

    matters: Callable[[ShownRun, str], bool]
    """Whether they change what a run draws with a solver."""
    labels: dict[str, str]
    """By their names in `SampleConfig`."""


GROUPS = (
    Group(
        lambda run, solver: True,
        {
            "negative_scale": "Scale of the negative prompt (empty: guidance leads away from it)",
            "guided_channels": "Guided channels (empty: all)",
            "time_shift": "Time shift",
        },
    ),
    Group(
        lambda run, solver: True,
        {
            "rope_factor": "Rotary scaling (empty: as the size needs)",
            "rope_watershed": "Time until which positions are squeezed",
            "rope_frequency_aware": "Slow all waves that are longer than pictures of training",
            "proportional_attention": "Sharpen attention to more tokens than in training",
            "merge_tokens": "Side of the squares of patches that attention sees as one (1: each patch)",
            "merge_until": "Time until which it does",
        },
    ),
    Group(
        lambda run, solver: run.trained_shape.frames > 1,
        {
            "loop": "End as it begins",
            "window_frames": "Frames of latents that the network sees at once (empty: all)",
        },
    ),
    Group(
        lambda run, solver: solver == "implicit_adams" or (solver in SOLVERS and SOLVERS[solver].adaptive),
        {"rtol": "Relative tolerance", "atol": "Absolute tolerance"},
    ),
    Group(
        lambda run, solver: solver in STOCHASTIC,
        {
            "diffusion": "Noise over time",
            "diffusion_norm": "Factor of the noise",
            "last_step": "Last step",
            "last_step_size": "Length of the last step",
        },
    ),
    Group(
        lambda run, solver: solver in ANCESTRAL,
        {"eta": "Noise of ddim, from 0 to 1", "data_limit": "Limit of the data on the way (empty: none)"},
    ),
)
LABELS = {name: label for group in GROUPS for name, label in group.labels.items()}


def settings_of_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as typed, by their names.

    Raises:
      ValueError: a field holds no number or choice, or is empty but must not be.
    """
    found = {name: _setting(name, value) for name, value in values.items()}
    _check_types(found)
    return found


def is_optional(name: str) -> bool:
    """Whether a setting may be None."""
    return type(None) in get_args(TYPES[name])


def _setting(name: str, value: Any) -> Any:
    kinds, words = get_args(TYPES[name]) or (TYPES[name],), name.replace("_", " ")
    if is_optional(name):
        value = number_or_none(words, value)
        if value is None:
            return None
    return whole_of(words, value) if int in kinds else number_of(words, value) if float in kinds else value


def settings_in_picture(every: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the fold among all settings that a picture carries.

    Raises:
      ValueError: one is of another type.
    """
    found = {name: every[name] for name in LABELS if name in every}
    _check_types(found)
    return found


def _check_types(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        check_type(name.replace("_", " "), value, TYPES[name])
