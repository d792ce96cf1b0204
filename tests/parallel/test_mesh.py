"""Meshes of the devices there are, and of those there are not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from lumina_jax.parallel.mesh import batch_sharding, check_rows, make_mesh


def test_one_device_makes_a_mesh_of_all_axes():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_rows_of_a_batch_are_spread_over_data_and_fsdp():
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    assert sharding.spec == PartitionSpec(("data", "fsdp"))
    assert jax.device_put(jnp.zeros((4, 3, 2)), sharding).shape == (4, 3, 2)


@pytest.mark.parametrize(("fsdp", "tensor"), [(2, 1), (1, 3), (0, 1), (1, -1)])
def test_a_mesh_that_the_devices_do_not_fill_is_refused(fsdp, tensor):
    message = rf"must divide the number of devices, but fsdp={fsdp} x tensor={tensor} .* 1 devices; choose .*\[1\]"
    with pytest.raises(ValueError, match=message):
        make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[:1])


def test_any_number_of_rows_fits_on_one_device():
    check_rows(7, make_mesh(devices=jax.devices()[:1]))
