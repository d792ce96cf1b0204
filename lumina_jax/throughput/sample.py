"""The drawing of a batch of samples, timed on the devices that are here.

In: a configuration. Out: the compiled program of `generation/sampler.py`, with random parameters, noise and captions.
Text encoders and autoencoders are not part of it.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lumina_jax.aot.plan import batch_load, drawn_load, trained_extent
from lumina_jax.config import Config
from lumina_jax.generation.guided import Prompt, Task
from lumina_jax.generation.sampler import draw
from lumina_jax.models.adapters import adapted_shardings
from lumina_jax.models.division import division, parameter_shardings
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.precision import cast
from lumina_jax.parallel.compiler_options import compiler_options
from lumina_jax.parallel.mesh import batch_sharding, check_rows, configured_mesh
from lumina_jax.throughput.train import TimedProgram, random_batch
from lumina_jax.training.state import create_state


def prepared_sampler(config: Config) -> TimedProgram:
    """The drawing of data.batch_rows samples of the size of training with the settings of `sample`, compiled.

    Raises:
      ValueError: the samples cannot be divided over the devices.
    """
    config = config.replace(data={"samples_per_row": 1})
    mesh = configured_mesh(config.mesh)
    check_rows(config.data.batch_rows, mesh)
    load, extent = drawn_load(config), trained_extent(config)
    parameters = cast(create_state(config, mesh).ema, config.model, config.sample.weights)
    condition = random_batch(config, batch_load(config), mesh).condition
    rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    key = jax.random.key(config.run.seed)
    noise = jax.device_put(jax.random.normal(key, (load.rows, *extent, config.model.channels)), rows)
    keys = jax.device_put(jax.random.split(key, load.rows), rows)
    scale, shift = (
        jax.device_put(jnp.float32(value), everywhere) for value in (config.sample.guidance, config.sample.time_shift)
    )
    negative = config.sample.negative_scale
    of_negative = () if negative is None else (condition, jax.device_put(jnp.float32(negative), everywhere))
    prompt = Prompt(condition, condition, scale, shift, *of_negative)
    shardings = adapted_shardings(parameter_shardings(config.model, mesh), parameters)
    task = Task(abstract_model(config.model)[0], config, extent, division=division(config, mesh, shardings))
    options = compiler_options(mesh.devices.flat[0].device_kind, trains=False)
    program: Any = jax.jit(functools.partial(draw, task, config.sample), compiler_options=options)
    began = time.perf_counter()
    compiled = program.lower(parameters, noise, keys, prompt).compile()
    seconds = time.perf_counter() - began

    def once() -> None:
        jax.block_until_ready(compiled(parameters, noise, keys, prompt))

    return TimedProgram(compiled, once, load, mesh, seconds)
