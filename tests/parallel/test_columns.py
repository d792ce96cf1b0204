"""Which matrices stay where they are while rows travel; `eight_devices.py` tests what the products are."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lumina_jax.models.adapters import LowRank
from lumina_jax.parallel.axes import FSDP, shardings
from lumina_jax.parallel.columns import DividedColumns, divided_columns

MESH = AbstractMesh((2, 4, 8, 2), ("data", "fsdp_x", "fsdp_y", "tensor"), axis_types=(AxisType.Auto,) * 4)


def sharding(*axes):
    return NamedSharding(MESH, PartitionSpec(*axes))


def test_matrices_of_adaln_are_divided_so_that_they_need_no_gather():
    """That their shares are narrow is no reason to divide them along another dimension: no gradient is scattered."""
    stacked = nnx.Param(jax.ShapeDtypeStruct((3, 64, 192), jnp.float32), axes=("condition", "modulation"))
    found = shardings(nnx.State({"kernel": stacked}), MESH, FSDP)["kernel"].get_value()
    columns = divided_columns(found, MESH, late=("data",))
    assert columns == DividedColumns(("fsdp_x", "fsdp_y"), (4, 8), ("fsdp_x", "fsdp_y"))


def test_gradients_are_added_up_over_replicas_unless_that_is_done_later():
    found = divided_columns(sharding(None, None, "fsdp_x"), MESH, late=())
    assert found == DividedColumns(("fsdp_x",), (4,), ("data", "fsdp_x", "fsdp_y"))


@pytest.mark.parametrize(
    "other",
    [
        sharding(),
        sharding(None, "fsdp_x", None),
        LowRank(sharding(None, None, "fsdp_x"), sharding(), sharding()),
    ],
    ids=["whole", "divided by rows", "with an adapter"],
)
def test_other_matrices_are_treated_like_all_of_a_layer(other):
    assert divided_columns(other, MESH, late=()) is None
