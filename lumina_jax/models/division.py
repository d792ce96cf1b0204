"""How the devices of a mesh share the work of one batch, in training and in sampling.

In: a configuration and a mesh. Out: what the model needs inside `jax.shard_map`: where parameters lie, how they are
gathered and their gradients added up, and attention that crosses the devices of a row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from lumina_jax.config import Config, ModelConfig
from lumina_jax.models.attention import Attend, attend_with
from lumina_jax.models.flag_dit import Parallel, abstract_model
from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.parallel.gather import Weights, weights
from lumina_jax.parallel.mesh import axes_of, axis_size
from lumina_jax.parallel.sequence import attend_across
from lumina_jax.parallel.tensor import Tensor

BLOCKS = "blocks"
"""The name of the stacked layers among the parameters; they are gathered one by one, all others before the first."""


class Division(NamedTuple):
    """The work of each device of `mesh`."""

    mesh: Mesh
    places: Any
    """A `NamedSharding` for each parameter."""
    attend: Attend
    layers: Parallel
    rest: Weights
    """How the parameters outside the layers are gathered."""
    late: tuple[str, ...]
    """The mesh axes over which gradients are added up once, after all micro-batches."""

    @property
    def specs(self) -> Any:
        """A `PartitionSpec` for each parameter."""
        return jax.tree.map(lambda place: place.spec, self.places)

    def whole(self, shares: dict[str, Any]) -> dict[str, Any]:
        """Parameters as the model takes them: whole but for the layers."""
        rest = {name: value for name, value in shares.items() if name != BLOCKS}
        return {**self.rest.whole(rest), BLOCKS: shares[BLOCKS]}

    def over_row(self, x: Array) -> Array:
        """The sum over the devices of a row; nothing has a gradient through it."""
        return jax.lax.psum(jax.lax.stop_gradient(x), self.layers.row) if self.layers.row else x

    def finish(self, gradients: Any) -> Any:
        """Gradients of all micro-batches, added up over `late`."""
        return jax.lax.psum(gradients, self.late) if self.late else gradients


def parameter_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Where each parameter lives on the mesh."""
    return nnx.to_pure_dict(shardings(abstract_model(config)[1], mesh, FSDP_TENSOR))


def division(config: Config, mesh: Mesh, places: Any) -> Division | None:
    """How the devices of `mesh` share the work of a batch, their parameters at `places`; None when there is only one,
    unless its activations wait in the memory of the host."""
    if mesh.size == 1 and config.model.remat != "offload":
        return None
    dtype = jnp.dtype(config.model.compute_dtype)
    sum_dtype = jnp.dtype(jnp.float32) if config.optimizer.sum_dtype == "float32" else None
    # Replicas, perhaps behind a slow network, need only agree once an update.
    late = axes_of(mesh, "data") if config.optimizer.accumulate > 1 else ()
    rest = {name: value for name, value in places.items() if name != BLOCKS}
    of_layer = weights(places[BLOCKS], mesh, late=late, stacked=True, dtype=dtype, sum_dtype=sum_dtype)
    of_rest = weights(rest, mesh, late=late, stacked=False, dtype=jnp.dtype(jnp.float32), sum_dtype=sum_dtype)
    return Division(
        mesh=mesh,
        places=places,
        attend=attend_across(attend_with(config.model), mesh, config.model.attention),
        layers=Parallel(
            of_layer, Tensor(axes_of(mesh, "tensor"), axis_size(mesh, "tensor")), axes_of(mesh, "sequence")
        ),
        rest=of_rest,
        late=late,
    )
