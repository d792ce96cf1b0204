"""The programs of `sampler.py` for one modality of a model, each compiled when it is first used with new sizes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from lumina_jax.config import SampleConfig
from lumina_jax.generation import sampler
from lumina_jax.generation.guided import Task
from lumina_jax.parallel.compiler_options import compiler_options


class Programs(NamedTuple):
    """They take the settings as `fixed` gives them, and what `sampler.py` says."""

    draw: Any
    invert: Any
    density: Any


def programs(task: Task, device: jax.Device) -> Programs:
    """The programs for a task, on devices such as this one."""
    options = compiler_options(device.device_kind, trains=False)
    compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=options)
    every = (sampler.draw, sampler.invert, sampler.density)
    return Programs(*(compiled(functools.partial(program, task)) for program in every))


def fixed(settings: SampleConfig) -> SampleConfig:
    """The settings that shape a program; those that are inputs of it are set to fixed values."""
    return dataclasses.replace(settings, guidance=1.0, time_shift=1.0, negative="", negative_scale=None)
