"""The state of a training run, created on the devices that keep it.

In: a configuration and a mesh. Out: parameters, their moving average, optimiser moments, step and random key. No device
ever holds more than its share of an array.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from lumina_jax.config import Config, ModelConfig
from lumina_jax.models.division import parameter_shardings
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.parallel.mesh import AnyMesh
from lumina_jax.seeds import key_of_seed
from lumina_jax.training.optimizer import optimizer

Parameters = dict[str, Any]
"""Nested dictionaries of arrays; `nnx.merge(graph, parameters)` is the model again."""


class TrainState(NamedTuple):
    """The arrays of a checkpoint, which holds the position in the data and the configuration as well."""

    step: Int[Array, ""]
    parameters: Parameters
    ema: Parameters
    optimizer: optax.OptState
    key: Key[Array, ""]


def split_model(model: FlagDiT) -> tuple[nnx.GraphDef, Parameters]:
    """The structure of a model and its parameters; `nnx.merge` undoes it."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def parameter_count(model: ModelConfig) -> int:
    """The number of parameter values; none is computed."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(model)[1]))


def state_shardings(config: Config, mesh: AnyMesh) -> TrainState:
    """The sharding of each array of the state: moments and average as their parameters, the rest replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    parameters = parameter_shardings(config.model, mesh)
    abstract = jax.eval_shape(lambda: _initial_state(config))
    transform = optimizer(config.optimizer, config.run.steps, config.model)
    moments = optax.tree_map_params(
        transform,
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        abstract.optimizer,
        parameters,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(replicated, parameters, parameters, moments, replicated)  # type: ignore[arg-type]


def create_state(config: Config, mesh: Mesh, parameters: Parameters | None = None) -> TrainState:
    """The state at step 0, from `run.seed`, or with given parameters, whose memory is reused."""
    shardings = state_shardings(config, mesh)
    if parameters is None:
        return jax.jit(lambda: _initial_state(config), out_shardings=shardings)()
    create = jax.jit(lambda parameters: _state(config, parameters), out_shardings=shardings, donate_argnums=0)
    return create(parameters)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, as restoring a checkpoint needs them."""
    abstract = jax.eval_shape(lambda: _initial_state(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_shardings(config, mesh),
    )


def _initial_state(config: Config) -> TrainState:
    key_model, _ = jax.random.split(key_of_seed(config.run.seed))
    return _state(config, split_model(FlagDiT(config.model, rngs=ParameterKeys(key_model)))[1])


def _state(config: Config, parameters: Parameters) -> TrainState:
    _, key_run = jax.random.split(key_of_seed(config.run.seed))
    transform = optimizer(config.optimizer, config.run.steps, config.model)
    ema = jax.tree.map(jnp.copy, parameters)
    return TrainState(jnp.zeros((), jnp.int32), parameters, ema, transform.init(parameters), key_run)
