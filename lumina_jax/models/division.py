"""How the devices of a mesh share the work of one batch, in training and in sampling.

In: a configuration and a mesh. Out: where parameters lie, and what runs inside `jax.shard_map`: the model, which
gathers its weights layer by layer and attends across the devices of a row, and the sums over devices that follow it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from lumina_jax.config import Config, ModelConfig
from lumina_jax.models.attention import attend_with
from lumina_jax.models.flag_dit import FlagDiT, Parallel, abstract_model
from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.parallel.columns import divided_columns
from lumina_jax.parallel.gather import ShardedWeights, weights
from lumina_jax.parallel.mesh import AnyMesh, axes_of, axis_size
from lumina_jax.parallel.sequence import attend_across
from lumina_jax.parallel.tensor import Tensor

BLOCKS_NAME = "blocks"
"""The name of the stacked layers among the parameters; they are gathered one by one, all others before the first."""

MODULATION_NAME = "modulation"
"""The name of the matrices of adaLN among those of the layers; they are not gathered (`parallel/columns.py`)."""


class Division(NamedTuple):
    """The work of each device of `mesh`."""

    mesh: Mesh
    shardings: Any
    """A `NamedSharding` for each parameter."""
    graph: nnx.GraphDef
    """The structure of a model that knows the devices which compute it together."""
    rest: ShardedWeights
    """How the parameters outside the layers are gathered."""
    row: tuple[str, ...]
    """The mesh axes over which the tokens of a row are divided."""
    late: tuple[str, ...]
    """The mesh axes over which gradients are added up once, after all micro-batches."""

    @property
    def specs(self) -> Any:
        """A `PartitionSpec` for each parameter."""
        return jax.tree.map(lambda sharding: sharding.spec, self.shardings)

    def model(self, shares: dict[str, Any]) -> FlagDiT:
        """The model around this device's shares of the parameters; all but those of the layers are gathered at once."""
        rest = {name: value for name, value in shares.items() if name != BLOCKS_NAME}
        return nnx.merge(self.graph, {**self.rest.whole(rest), BLOCKS_NAME: shares[BLOCKS_NAME]})

    def over_row(self, x: Array) -> Array:
        """The sum over the devices of a row, through which no gradient flows."""
        return jax.lax.psum(jax.lax.stop_gradient(x), self.row) if self.row else x

    def finish(self, gradients: Any) -> Any:
        """Gradients of all micro-batches, added up over `late`."""
        return jax.lax.psum(gradients, self.late) if self.late else gradients


def parameter_shardings(config: ModelConfig, mesh: AnyMesh) -> dict[str, Any]:
    """A `NamedSharding` for each parameter."""
    return nnx.to_pure_dict(shardings(abstract_model(config)[1], mesh, FSDP_TENSOR))


def one_device_shardings(config: ModelConfig, device: jax.sharding.SingleDeviceSharding) -> dict[str, Any]:
    """That sharding for each parameter."""
    return jax.tree.map(lambda _: device, nnx.to_pure_dict(abstract_model(config)[1]))


def division(config: Config, mesh: Mesh, shardings: Any) -> Division | None:
    """How the devices of `mesh` share the work of a batch.

    None for a single device, unless its activations are offloaded to the memory of the host, or the job has other
    devices, over which XLA might divide a program that is not divided by hand.

    Args:
      shardings: of the parameters, as `parameter_shardings` returns them.
    """
    if mesh.size == 1 and jax.device_count() == 1 and config.model.remat != "offload":
        return None
    dtype = jnp.dtype(config.model.compute_dtype)
    sum_dtype = jnp.dtype(jnp.float32) if config.optimizer.sum_dtype == "float32" else None
    # Replicas, perhaps behind a slow network, need only agree once an update.
    late = axes_of(mesh, "data") if config.optimizer.accumulate > 1 else ()
    rest = {name: value for name, value in shardings.items() if name != BLOCKS_NAME}
    row, layers = axes_of(mesh, "sequence"), dict(shardings[BLOCKS_NAME])
    modulation = divided_columns(layers[MODULATION_NAME]["linear"]["kernel"], mesh, late=late)
    if modulation is not None:
        del layers[MODULATION_NAME]
    parallel = Parallel(
        attend=attend_across(attend_with(config.model), mesh, config.model.attention),
        layer=weights(layers, mesh, late=late, stacked=True, dtype=dtype, sum_dtype=sum_dtype),
        modulation=modulation,
        tensor=Tensor(axes_of(mesh, "tensor"), axis_size(mesh, "tensor")),
        row=row,
    )
    return Division(
        mesh=mesh,
        shardings=shardings,
        graph=abstract_model(config.model, parallel)[0],
        rest=weights(rest, mesh, late=late, stacked=False, dtype=jnp.dtype(jnp.float32), sum_dtype=sum_dtype),
        row=row,
        late=late,
    )
