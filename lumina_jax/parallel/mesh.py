"""The devices of a run as one mesh of named axes, and how a batch lies on it.

In: how many devices share each parameter (`fsdp`) and each matrix product (`tensor`). Out: a `jax.sharding.Mesh` with
the axes (data, fsdp, tensor). Rows of a batch are spread over data and fsdp; parameters are spread over fsdp and
tensor by the table of `parallel/axes.py`.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are spread."""


def make_mesh(*, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all `devices` (default: every device of the run); the axis `data` takes what the others leave.

    Raises:
      ValueError: `fsdp` times `tensor` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    group = fsdp * tensor
    if fsdp < 1 or tensor < 1 or len(devices) % group:
        raise ValueError(
            f"mesh.fsdp x mesh.tensor must divide the number of devices, but {fsdp=} x {tensor=} is {group} "
            f"and there are {len(devices)} devices; choose a product from {_divisors(len(devices))}"
        )
    shape = (len(devices) // group, fsdp, tensor)
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(shape), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, its first dimension, spread over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Refuse a batch whose rows do not spread evenly over the mesh.

    Raises:
      ValueError: `rows` is not a multiple of the devices along data and fsdp.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % devices:
        raise ValueError(
            f"the rows of a batch must be a multiple of the {devices} devices along data and fsdp, but {rows=}; "
            f"set data.batch_rows (divided by optimizer.accumulate) to {max(devices, rows - rows % devices)}"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
