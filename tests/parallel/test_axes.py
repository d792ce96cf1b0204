"""Parameters lie where the table says; what cannot lie there is refused or kept whole.

The test on eight devices runs in a new process, because the number of devices is fixed when jax starts.
"""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from lumina_jax.parallel.axes import FSDP, FSDP_TENSOR, shardings


def mesh(**axes):
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def parameters(**shapes_and_axes):
    """An abstract state with one parameter for each name=(shape, axes)."""
    return nnx.State(
        {
            name: nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
            for name, (shape, axes) in shapes_and_axes.items()
        }
    )


def specs(state, mesh, rules):
    return {name: variable.get_value().spec for name, variable in shardings(state, mesh, rules).items()}


def test_each_dimension_lies_on_the_axis_of_its_name():
    state = parameters(
        kernel=((16, 32), ("embed", "mlp")), gate=((4,), ("heads",)), text=((8, 4), ("text", None)), one=((), ())
    )
    P = PartitionSpec
    assert specs(state, mesh(fsdp=4, tensor=2), FSDP) == {
        "kernel": P("fsdp", None), "gate": P(None), "text": P("fsdp", None), "one": P()
    }  # fmt: skip
    assert specs(state, mesh(fsdp=4, tensor=2), FSDP_TENSOR) == {
        "kernel": P("fsdp", "tensor"), "gate": P("tensor"), "text": P("fsdp", None), "one": P()
    }  # fmt: skip


def test_stacked_parameters_have_a_leading_dimension_of_layers_that_is_never_cut():
    state = parameters(kernel=((8, 16, 32), ("embed", "mlp")))
    assert specs(state, mesh(fsdp=8), FSDP)["kernel"] == PartitionSpec(None, "fsdp", None)


def test_an_axis_of_the_table_is_all_mesh_axes_that_fsdp_and_sequence_run_along():
    state = parameters(kernel=((32, 16), ("embed", "mlp")))
    torus = mesh(data=2, fsdp_x=4, fsdp_y=2, sequence_ring=1, sequence_heads=2, tensor=2)
    assert specs(state, torus, FSDP_TENSOR)["kernel"] == PartitionSpec(("fsdp_x", "fsdp_y", "sequence_heads"), "tensor")


def test_what_only_some_mesh_axes_divide_is_cut_over_those_that_leave_least(caplog):
    state = parameters(kernel=((24, 16), ("embed", "mlp")))
    found = specs(state, mesh(fsdp_x=2, fsdp_y=4, fsdp_z=4, tensor=1), FSDP)
    assert found["kernel"] == PartitionSpec(("fsdp_x", "fsdp_y"), None)
    assert "32 devices" in caplog.text
    assert "(24, 16)" in caplog.text


def test_shares_of_the_last_dimension_are_wide_enough_for_tpus_where_another_can_be_cut():
    state = parameters(
        out=((8, 4096, 4096), ("heads", "embed")),
        wide=((32, 16384), ("mlp", "embed")),
        patch=((32, 4096), (None, "embed")),
        down=((8, 100, 4096), ("mlp", "embed")),
        bias=((8, 4096), ("embed",)),
    )
    P, narrow = PartitionSpec, {"fsdp_x": 4, "fsdp_y": 8}
    over = ("fsdp_x", "fsdp_y")
    assert specs(state, mesh(**narrow, tensor=1), FSDP_TENSOR) == {
        "out": P(None, over, None),
        "wide": P(None, over),
        "patch": P(None, over),
        "down": P(None, None, over),
        "bias": P(None, None),
    }
    assert specs(state, mesh(**narrow, tensor=2), FSDP_TENSOR)["out"] == P(None, "tensor", over)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    state = parameters(kernel=((16, 16), ("embed", "text")))
    with pytest.raises(ValueError, match=r"must lie on different mesh axes, but parameter kernel\S* with axes="):
        shardings(state, mesh(fsdp=2), FSDP)


def test_what_fsdp_does_not_divide_is_kept_whole_and_logged_once(caplog):
    state = parameters(a=((6, 8), ("embed", "mlp")), b=((10, 3), ("embed", None)), c=((8, 8), ("embed", "mlp")))
    with caplog.at_level(logging.WARNING):
        found = specs(state, mesh(fsdp=4, tensor=2), FSDP_TENSOR)
    P = PartitionSpec
    assert found == {"a": P(None, "tensor"), "b": P(None, None), "c": P("fsdp", "tensor")}
    (record,) = caplog.records
    message = record.getMessage()
    assert "4 devices" in message
    assert "(6, 8)" in message
    assert "(10, 3)" in message
    assert "(8, 8)" not in message


def test_what_tensor_does_not_divide_is_refused():
    state = parameters(kernel=((8, 6), ("embed", "mlp")))
    with pytest.raises(ValueError, match=r"mesh.tensor=4 must divide dimension 'mlp' of parameter kernel"):
        shardings(state, mesh(tensor=4), FSDP_TENSOR)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((4,), ("width",), r"must have names of the rules table, but parameter p\S* has \['width'\]; choose from"),
        ((4, 4, 4), ("embed",), "must name each dimension except a stacked first one"),
        ((4,), ("embed", "mlp"), "must name each dimension except a stacked first one"),
    ],
)
def test_a_parameter_with_wrong_names_is_refused(shape, axes, message):
    with pytest.raises(ValueError, match=message):
        shardings(parameters(p=(shape, axes)), mesh(fsdp=1), FSDP)


def test_a_parameter_without_names_is_refused():
    state = nnx.State({"p": nnx.Param(jax.ShapeDtypeStruct((4,), jnp.float32))})
    with pytest.raises(ValueError, match="must name its dimensions, but p has no axes"):
        shardings(state, mesh(fsdp=1), FSDP)


def test_the_tables_name_at_most_fifteen_dimensions_and_know_the_same():
    assert len(FSDP) <= 15
    assert FSDP.keys() == FSDP_TENSOR.keys()
    assert set(FSDP.values()) == {None, "fsdp"}
    assert set(FSDP_TENSOR.values()) == {None, "fsdp", "tensor"}


ON_EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from lumina_jax.parallel.axes import FSDP_TENSOR, shardings
from lumina_jax.parallel.mesh import batch_sharding, check_rows, make_mesh

class Block(nnx.Module):
    def __init__(self, *, rngs):
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Param(init(rngs.params(), (16, 32), jnp.float32), axes=("embed", "mlp"))
        self.down = nnx.Param(init(rngs.params(), (32, 16), jnp.float32), axes=("mlp", "embed"))

class Stack(nnx.Module):
    def __init__(self, rngs):
        keys = jax.random.split(rngs.params(), 3)
        self.blocks = jax.vmap(lambda key: Block(rngs=nnx.Rngs(key)))(keys)

def init(key):
    return Stack(nnx.Rngs(key))

def apply(stack, x):
    body = lambda x, block: (x + jax.nn.silu(x @ block.up[...]) @ block.down[...], None)
    return jax.lax.scan(body, x, stack.blocks)[0]

mesh = make_mesh(fsdp=2, tensor=2)
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence_ring": 1, "sequence_heads": 1, "tensor": 2}, mesh
for fsdp, tensor in ((3, 1), (4, 4)):
    try:
        make_mesh(fsdp=fsdp, tensor=tensor)
    except ValueError as error:
        assert "this run has 8; add --mesh.fsdp" in str(error), error
    else:
        raise SystemExit("a mesh that does not fill the devices was not refused")
try:
    check_rows(6, mesh)
except ValueError as error:
    assert "multiple of the 4 devices" in str(error) and "to 4" in str(error), error
else:
    raise SystemExit("uneven rows were not refused")

key = jax.random.key(0)
wanted = shardings(jax.eval_shape(init, key), mesh, FSDP_TENSOR)
stack = jax.jit(init, out_shardings=wanted)(key)
assert {shard.data.shape for shard in stack.blocks.up[...].addressable_shards} == {(3, 8, 16)}
assert {shard.data.shape for shard in stack.blocks.down[...].addressable_shards} == {(3, 16, 8)}
x = jax.random.normal(jax.random.key(1), (8, 16))
rows = jax.device_put(x, batch_sharding(mesh))
assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 16)}
alone = jax.device_put(jax.tree.map(np.asarray, stack), jax.devices()[0])
np.testing.assert_allclose(jax.jit(apply)(stack, rows), apply(alone, x), rtol=1e-5, atol=1e-6)
print("passed")
"""


def test_on_eight_devices_each_holds_its_share_and_the_network_computes_the_same():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.getcwd(),
    }
    run = subprocess.run([sys.executable, "-c", ON_EIGHT_DEVICES], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "passed", run.stderr
