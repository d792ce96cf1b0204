"""The state of a training run, created on the devices that keep it.

In: a configuration and a mesh. Out: parameters, their moving average, optimiser moments, step and random key. No device
ever holds more than its share of an array.

Where only some parameters train (`config.finetune`), the state has those alone, and besides them the base, the frozen
parameters of the model, of which a checkpoint holds a fingerprint.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, UInt32

from lumina_jax.config import Config, FinetuneConfig, ModelConfig
from lumina_jax.models.adapters import (
    adapted,
    adapted_shardings,
    check_base,
    fingerprint,
    new_trained,
    scaled,
    trained_shardings,
)
from lumina_jax.models.division import parameter_shardings
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.models.precision import cast, parameter_types
from lumina_jax.models.quantised import held, is_quantised
from lumina_jax.parallel.mesh import AnyMesh
from lumina_jax.seeds import key_of_seed
from lumina_jax.training.optimizer import optimizer

Parameters = dict[str, Any]
"""Nested dictionaries of arrays; `nnx.merge(graph, parameters)` is the model again."""


class Base(NamedTuple):
    """The parameters that do not train."""

    parameters: Parameters | None
    """None in a checkpoint, which does not hold them."""
    fingerprint: UInt32[Array, " 2"]


class TrainState(NamedTuple):
    """The arrays of a run. A checkpoint has those of `saved`, the position in the data and the configuration."""

    step: Int[Array, ""]
    parameters: Parameters
    """What trains: all parameters of the model, or what `models.adapters.new_trained` says."""
    ema: Parameters
    optimizer: optax.OptState
    key: Key[Array, ""]
    base: Base | None = None
    """What does not train; None: all parameters do."""

    @property
    def saved(self) -> "TrainState":
        """The arrays of a checkpoint: those of the base are not among them, but its fingerprint is."""
        return self if self.base is None else self._replace(base=self.base._replace(parameters=None))


def split_model(model: FlagDiT) -> tuple[nnx.GraphDef, Parameters]:
    """The structure of a model and its parameters; `nnx.merge` undoes it."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def parameter_count(model: ModelConfig) -> int:
    """The number of parameter values; none is computed."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(model)[1]))


def network_parameters(
    trained: Parameters,
    base: Parameters | None,
    settings: FinetuneConfig,
    norms: dict[str, Array] | None = None,
) -> Parameters:
    """What the network computes with: the parameters that train, or the base changed by them.

    Args:
      norms: of columns, see `adapted`.
    """
    return trained if base is None else adapted(base, scaled(trained, settings), norms)


def network_shardings(config: Config, mesh: AnyMesh) -> Parameters:
    """A sharding for each array of `network_parameters`."""
    state = initial_shapes(config)
    base = None if state.base is None else state.base.parameters
    network = jax.eval_shape(
        lambda trained, base: network_parameters(trained, base, config.finetune), state.parameters, base
    )
    return adapted_shardings(parameter_shardings(config.model, mesh), network)


def averaged_parameters(state: TrainState, settings: FinetuneConfig) -> Parameters:
    """What the network computes with, by the average of what trains."""
    return network_parameters(state.ema, None if state.base is None else state.base.parameters, settings)


def state_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimiser of what trains."""
    return optimizer(config.optimizer, config.run.steps, None if config.finetune.is_partial else config.model)


def state_shardings(config: Config, mesh: AnyMesh) -> TrainState:
    """The sharding of each array of the state: moments and average as their parameters, the rest replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    every = parameter_shardings(config.model, mesh)
    abstract = initial_shapes(config)
    base = None
    if abstract.base is not None:
        base = Base(adapted_shardings(every, abstract.base.parameters), replicated)  # type: ignore[arg-type]
    parameters = every if base is None else trained_shardings(every, abstract.parameters)
    moments = optax.tree_map_params(
        state_optimizer(config),
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        abstract.optimizer,
        parameters,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(replicated, parameters, parameters, moments, replicated, base)  # type: ignore[arg-type]


def create_state(config: Config, mesh: Mesh, parameters: Parameters | None = None) -> TrainState:
    """The state at step 0, from `run.seed`, or with given parameters, whose memory is reused.

    Raises:
      ValueError: `config.finetune` fits no parameter of the model.
    """
    shardings = state_shardings(config, mesh)
    if parameters is None:
        return jax.jit(lambda: _initial_state(config), out_shardings=shardings)()
    if config.finetune.is_partial:
        parameters = cast(parameters, config.model, config.finetune.base)
    create = jax.jit(lambda parameters: _state(config, parameters), out_shardings=shardings, donate_argnums=0)
    return create(parameters)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state; restoring a checkpoint needs those of `saved`."""
    abstract = initial_shapes(config)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_shardings(config, mesh),
    )


def initial_shapes(config: Config) -> TrainState:
    """Shapes and types of the state.

    Raises:
      ValueError: `config.finetune` fits no parameter of the model.
    """
    return jax.eval_shape(lambda: _initial_state(config))


def with_base(state: TrainState, parameters: Parameters, origin: str) -> TrainState:
    """A restored state with its base.

    Raises:
      ValueError: the run was begun from other parameters than these, which come from `origin`.
    """
    assert state.base is not None
    check_base(state.base.fingerprint, parameters, origin)
    return state._replace(base=state.base._replace(parameters=parameters))


def _initial_state(config: Config) -> TrainState:
    key_model, _ = jax.random.split(key_of_seed(config.run.seed))
    return _state(config, split_model(FlagDiT(config.model, rngs=ParameterKeys(key_model)))[1])


def _state(config: Config, parameters: Parameters) -> TrainState:
    key_model, key_run = jax.random.split(key_of_seed(config.run.seed))
    base, trained = None, parameters
    if config.finetune.is_partial:
        types = parameter_types(config.model, config.finetune.base)
        frozen = jax.tree.map(held, parameters, types, is_leaf=is_quantised)
        base = Base(frozen, fingerprint(parameters))
        trained = new_trained(config.finetune, frozen, key_model)
    ema = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, ema, state_optimizer(config).init(trained), key_run, base)
