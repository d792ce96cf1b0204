"""A training step, timed on the devices that are here.

In: a configuration. Out: the compiled step of `training/step.py`, a state and a batch for it, and the seconds of each
step. The batch is random and stays on the devices, so that reading data takes no time.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lumina_jax.aot.flops import Load
from lumina_jax.aot.plan import abstract_batch, batch_load
from lumina_jax.config import Config
from lumina_jax.parallel.mesh import check_mesh, check_tokens, configured_mesh
from lumina_jax.tokens import TextFeatures
from lumina_jax.training.state import create_state
from lumina_jax.training.step import TrainBatch, train_step


class TimedProgram(NamedTuple):
    """A program that is compiled, and what it works on."""

    compiled: Any
    """The compiled program, for its memory and its text."""
    once: Callable[[], None]
    """Runs it and waits for its end."""
    load: Load
    mesh: Mesh
    compile_seconds: float


def prepared_step(config: Config) -> TimedProgram:
    """The training step of a configuration, compiled.

    Raises:
      ValueError: the batch cannot be divided over the devices.
    """
    mesh = configured_mesh(config.mesh)
    check_mesh(config, mesh)
    load = batch_load(config)
    check_tokens(load.tokens, mesh)
    state, batch = create_state(config, mesh), random_batch(config, load, mesh)
    step: Any = train_step(config, mesh)
    began = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    seconds = time.perf_counter() - began

    def once() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return TimedProgram(compiled, once, load, mesh, seconds)


def random_batch(config: Config, load: Load, mesh: Mesh) -> TrainBatch:
    """Rows that are full of samples of equal length, with random patches and captions, on the devices of the mesh."""
    random = np.random.default_rng(config.run.seed)
    abstract = abstract_batch(config, load, mesh)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.device_put(np.zeros(leaf.shape, np.int32), leaf.sharding)
        return jax.device_put(random.standard_normal(leaf.shape, np.float32), leaf.sharding)

    def segments(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """Segment ids from 1, each for an equal part of the row."""
        length, samples = leaf.shape[1], load.samples
        ids = 1 + np.arange(length) // -(-length // samples)
        return jax.device_put(np.broadcast_to(ids.astype(np.int32), leaf.shape), leaf.sharding)

    batch: TrainBatch = jax.tree.map(filled, abstract)
    tokens = batch.tokens._replace(
        kinds=segments(abstract.tokens.kinds) * 0 + 1, segment_ids=segments(abstract.tokens.segment_ids)
    )
    condition, wanted = batch.condition, abstract.condition
    if isinstance(condition, TextFeatures) and isinstance(wanted, TextFeatures):
        condition = condition._replace(segment_ids=segments(wanted.segment_ids))
    present = jax.device_put(np.ones(abstract.present.shape, np.float32), abstract.present.sharding)
    return TrainBatch(tokens, condition, present)


def timed(once: Callable[[], None], steps: int, warmup: int) -> list[float]:
    """Seconds of each of `steps` runs, after `warmup` others."""
    for _ in range(warmup):
        once()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return times
