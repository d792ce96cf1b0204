"""Meshes of the devices there are, and of those there are not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lumina_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from lumina_jax.parallel.mesh import (
    axes_of,
    batch_sharding,
    check_mesh,
    check_rows,
    check_tokens,
    configured_mesh,
    make_mesh,
    token_spec,
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """All that a mesh asks of a device."""

    id: int
    coords: tuple[int, int, int] | None = None
    slice_index: int = 0
    core_on_chip: int = 0
    process_index: object = 0


def torus(x, y, z, slices=1):
    """Chips of a torus, x running fastest, as TPUs list them; four chips of the plane z = 0 are one host's."""
    coordinates = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    return [
        Chip(1000 * part + number, coords, part, process_index=(part, coords[0] // 2, coords[1] // 2, coords[2]))
        for part in range(slices)
        for number, coords in enumerate(coordinates)
    ]


def line(number):
    return [Chip(index) for index in range(number)]


def test_one_device_makes_a_mesh_of_all_axes():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "sequence_ring": 1, "sequence_heads": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert axes_of(mesh, "data", "fsdp", "sequence", "tensor") == ()


def test_rows_of_a_batch_are_spread_over_data_and_fsdp_and_tokens_over_sequence():
    mesh = make_mesh(fsdp=2, sequence=4, ring=2, devices=line(16))
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert token_spec(mesh) == PartitionSpec(("data", "fsdp"), ("sequence_ring", "sequence_heads"))
    alone = batch_sharding(make_mesh(devices=jax.devices()[:1]))
    assert jax.device_put(jnp.zeros((4, 3, 2)), alone).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((16, 16, 1), {"fsdp": 256}, {"data": 1, "fsdp_x": 16, "fsdp_y": 16}),
        ((4, 4, 4), {"fsdp": 64}, {"data": 1, "fsdp_x": 4, "fsdp_y": 4, "fsdp_z": 4}),
        ((4, 4, 4), {"fsdp": 16, "sequence": 4}, {"data": 1, "fsdp_x": 4, "fsdp_y": 4, "sequence_heads": 4}),
        (
            (16, 16, 1),
            {"fsdp": 8, "sequence": 32},
            {"data": 1, "fsdp": 8, "sequence_heads_x": 2, "sequence_heads_y": 16},
        ),
        ((4, 4, 1), {"tensor": 4}, {"data": 4, "fsdp": 1, "tensor": 4}),
    ],
)
def test_each_axis_runs_along_dimensions_of_the_torus_one_mesh_axis_for_each(shape, sizes, expected):
    mesh = make_mesh(**sizes, devices=torus(*shape))
    assert {name: size for name, size in mesh.shape.items() if size > 1 or name in expected} == expected
    coords = np.vectorize(lambda chip: chip.coords, otypes=[object])(mesh.devices)
    for axis in range(coords.ndim):
        along = np.moveaxis(coords, axis, 0).reshape(coords.shape[axis], -1)
        for group in along.T:  # devices that differ in one mesh axis lie on one line of the torus
            assert sum(len(set(values)) > 1 for values in zip(*group)) <= 1


def test_neighbours_of_the_innermost_axis_are_neighbouring_chips():
    mesh = make_mesh(fsdp=4, tensor=2, devices=torus(8, 1, 1))
    assert [chip.coords[0] for chip in mesh.devices[0, :, 0, 0, 0]] == [0, 2, 4, 6]
    assert [chip.coords[0] for chip in mesh.devices[0, 0, 0, 0, :]] == [0, 1]


def test_only_data_crosses_slices():
    mesh = make_mesh(fsdp=8, devices=torus(4, 4, 1, slices=2))
    cut = {name: size for name, size in mesh.shape.items() if size > 1}
    assert cut == {"data_slice": 2, "data_x": 2, "fsdp_x": 2, "fsdp_y": 4}
    first = mesh.axis_names.index("data_slice")
    for index, part in enumerate(np.moveaxis(mesh.devices, first, 0)):
        assert {chip.slice_index for chip in part.flat} == {index}
    with pytest.raises(ValueError, match="must fit into one slice, but is 32, and each of the 2 slices has 16 devices"):
        make_mesh(fsdp=32, devices=torus(4, 4, 1, slices=2))
    assert axes_of(make_mesh(fsdp=2, slices=2, devices=line(8)), "data") == ("data_slice", "data_x")


def test_an_axis_can_be_split_where_devices_know_no_coordinates():
    mesh = make_mesh(fsdp=8, devices=line(16), split={"fsdp": (2, 4)})
    assert axes_of(mesh, "fsdp") == ("fsdp_x", "fsdp_y")
    assert [chip.id for chip in mesh.devices.flat] == list(range(16))
    with pytest.raises(ValueError, match="must cut axes of"):
        make_mesh(fsdp=8, devices=line(8), split={"fsdp": (2, 2)})


@pytest.mark.parametrize(("fsdp", "tensor", "ring"), [(0, 1, 1), (1, -1, 1), (1, 1, 2)])
def test_axes_of_no_device_and_a_ring_of_more_than_the_sequence_are_refused(fsdp, tensor, ring):
    message = rf"must be at least 1, .* {fsdp=}, sequence=1, {ring=}, {tensor=}; choose mesh.ring from \[1\]"
    with pytest.raises(ValueError, match=message):
        make_mesh(fsdp=fsdp, tensor=tensor, ring=ring, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 64}, "= 64 x 1 x 1 = 64 needs at least 64 devices, but this run has 8; add --mesh.fsdp 8, or"),
        ({"fsdp": 2, "tensor": 3}, "= 2 x 1 x 3 = 6 needs a multiple of 6 devices, .* has 8; add --mesh.tensor 1, or"),
        ({"fsdp": 16, "sequence": 4, "ring": 4}, "add --mesh.fsdp 2, or"),
        ({"fsdp": None, "sequence": 16, "ring": 16}, "add --mesh.sequence 8 --mesh.ring 8, or"),
    ],
)
def test_a_mesh_that_the_devices_do_not_fill_is_refused_with_the_flags_that_help(mesh, message):
    with pytest.raises(ValueError, match=message) as error:
        configured_mesh(MeshConfig(**mesh), line(8))
    words = str(error.value).split("add ")[1].split(",")[0].split()
    flags = {name.removeprefix("--mesh."): int(size) for name, size in zip(words[::2], words[1::2])}
    assert configured_mesh(MeshConfig(**mesh | flags), line(8)).size == 8


@pytest.mark.parametrize(
    ("devices", "sizes", "expected"),
    [
        (line(1), {}, {}),
        (line(8), {}, {"fsdp": 8}),
        (line(8), {"sequence": 2, "tensor": 2}, {"fsdp": 2, "sequence_heads": 2, "tensor": 2}),
        (torus(4, 4, 1, slices=2), {}, {"data": 2, "fsdp_x": 4, "fsdp_y": 4}),
    ],
)
def test_an_open_fsdp_takes_the_devices_of_a_slice_that_the_other_axes_leave(devices, sizes, expected):
    mesh = configured_mesh(MeshConfig(fsdp=None, **sizes), devices)
    assert {name: size for name, size in mesh.shape.items() if size > 1} == expected


def test_one_device_is_told_every_flag_that_makes_a_mesh_of_it():
    with pytest.raises(ValueError, match=r"this run has 1; add --mesh.fsdp 1 --mesh.sequence 1, or"):
        configured_mesh(MeshConfig(fsdp=16, sequence=4), line(1))


def test_any_number_of_rows_and_tokens_fits_on_one_device():
    mesh = make_mesh(devices=jax.devices()[:1])
    check_rows(7, mesh)
    check_tokens(13, mesh)


def test_tokens_that_the_sequence_axis_does_not_divide_are_refused_with_the_next_length_that_it_does():
    with pytest.raises(ValueError, match=r"multiple of mesh.sequence=8, but there are 273; set data.row_tokens=280"):
        check_tokens(273, make_mesh(sequence=8, ring=2, devices=line(8)))


@pytest.mark.parametrize(
    ("mesh", "model", "rows", "message"),
    [
        (
            {"fsdp": 8},
            {},
            12,
            "multiple of the 8 devices along data and fsdp, but data.batch_rows is 12; set it to 8",
        ),
        ({"tensor": 8}, {}, 8, r"mesh.tensor=8 must divide model.heads=4; choose from \[1, 2, 4\]"),
        ({"tensor": 4}, {"kv_heads": 2}, 8, r"mesh.tensor=4 must divide model.kv_heads=2"),
        ({"tensor": 2}, {"mlp_multiple_of": 171}, 8, r"mesh.tensor=2 must divide the width of the MLP=171"),
        ({"sequence": 8}, {}, 8, "= 8 devices exchange the 4 query heads .* set mesh.ring to 2"),
        ({"sequence": 4, "tensor": 2}, {}, 8, "= 4 devices exchange the 2 query heads .* set mesh.ring to 2"),
        ({"sequence": 2}, {"heads": 6, "width": 96, "kv_heads": 3}, 8, "divide the 3 key heads .* set mesh.ring to 2"),
    ],
)
def test_a_model_that_the_mesh_cannot_divide_is_refused_by_the_name_of_the_setting(mesh, model, rows, message):
    settings = {"layers": 1, "heads": 4, "width": 64} | model
    config = Config(model=ModelConfig(**settings), data=DataConfig(batch_rows=rows), mesh=MeshConfig(**mesh))
    with pytest.raises(ValueError, match=message):
        check_mesh(config, configured_mesh(config.mesh, line(8)))


def test_micro_batches_must_spread_evenly_too():
    message = "the 8 devices along data and fsdp x optimizer.accumulate = 32, but data.batch_rows is 40; set it to 32"
    with pytest.raises(ValueError, match=message):
        check_rows(40, make_mesh(fsdp=8, devices=line(8)), 4)


def test_a_ring_needs_no_heads_and_key_heads_may_be_fewer_than_devices():
    for mesh, kv_heads in ((MeshConfig(sequence=8, ring=8), None), (MeshConfig(sequence=4), 2)):
        config = Config(
            model=ModelConfig(layers=1, heads=4, width=64, kv_heads=kv_heads), data=DataConfig(batch_rows=8), mesh=mesh
        )
        check_mesh(config, configured_mesh(mesh, line(8)))


def test_a_ring_that_is_no_part_of_the_sequence_axis_is_refused():
    with pytest.raises(ValueError, match=r"mesh.ring=3 must divide mesh.sequence=4"):
        MeshConfig(sequence=4, ring=3)
