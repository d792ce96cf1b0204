"""The programs of `sampler.py` for one modality of a model, each compiled when it is first used with new sizes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lumina_jax.config import SampleConfig
from lumina_jax.generation import sampler
from lumina_jax.generation.guided import Task
from lumina_jax.models.adapters import adapted_shardings
from lumina_jax.models.division import division, parameter_shardings
from lumina_jax.parallel.compiler_options import compiler_options


class Programs(NamedTuple):
    """They take the settings as `fixed` gives them, and what `sampler.py` says."""

    draw: Any
    invert: Any
    density: Any


def programs(task: Task, mesh: Mesh | None) -> Programs:
    """The programs for a task, on the devices of a mesh, or on one, where alone its follower is told of samples."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    options = compiler_options(device.device_kind, trains=False)
    compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=options)
    unfollowed = task._replace(follower=None)
    every = ((sampler.draw, task), (sampler.invert, unfollowed), (sampler.density, unfollowed))
    return Programs(*(compiled(_on_devices(program, of_task, mesh)) for program, of_task in every))


def _on_devices(program: Callable[..., Any], task: Task, mesh: Mesh | None) -> Callable[..., Any]:
    """A program whose devices share the work as the parameters lie on them, those of adapters included."""

    def call(settings: SampleConfig, parameters: dict, *arguments: Any) -> Any:
        if mesh is None:
            return program(task, settings, parameters, *arguments)
        shardings = adapted_shardings(parameter_shardings(task.config.model, mesh), parameters)
        shared = task._replace(division=division(task.config, mesh, shardings))
        return program(shared, settings, parameters, *arguments)

    call.__name__ = program.__name__
    return call


def fixed(settings: SampleConfig) -> SampleConfig:
    """The settings that shape a program; those that are inputs of it are set to fixed values."""
    return dataclasses.replace(settings, guidance=1.0, time_shift=1.0, negative="", negative_scale=None)
