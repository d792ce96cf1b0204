"""Trains a tiny model on one device and on meshes of eight, and prints how far each mesh is from the one device.

Run by test_sharded_step.py in a new process, because the number of devices is fixed when jax starts:
python eight_devices.py [mesh ...]; out: a JSON object, for each mesh the largest relative difference of each quantity,
and those of the held-out loss and of products with divided columns.
"""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.held_out import held_out_loss
from lumina_jax.models.division import parameter_shardings
from lumina_jax.parallel.columns import DividedColumns
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.state import create_state, state_shardings
from lumina_jax.training.step import batch_shardings, train_step
from tests.generation.test_pipeline import Words, random_parameters
from tests.training import tiny

MESHES = {
    "fsdp over two mesh axes, tensor": (
        {"fsdp": 4, "tensor": 2, "split": {"fsdp": (2, 2)}},
        {},
        {"remat": "none", "unroll": 2},
    ),
    "heads exchanged, key heads repeated": ({"sequence": 4, "fsdp": 2}, {}, {"remat": "dots"}),
    "ring": ({"sequence": 4, "ring": 4}, {}, {"remat": "offload"}),
    "ring, heads exchanged, tensor": ({"sequence": 4, "ring": 2, "tensor": 2}, {}, {}),
    "dit on fsdp, sequence and tensor": ({"fsdp": 2, "sequence": 2, "tensor": 2}, {}, {"block": "dit"}),
    "two slices, fsdp, sequence, micro-batches": (
        {"fsdp": 2, "sequence": 2, "slices": 2},
        {"accumulate": 2},
        {"remat": "offload"},
    ),
}
"""For each mesh its sizes, settings of the optimizer and of the model, none of which may change a number."""
STEPS = 3


def settings(optimizer, model):
    """Adam with an epsilon above the rounding of gradients: else it makes steps of full length out of rounding."""
    base = tiny.config(
        optimizer={"learning_rate": 1e-3, "eps": 1e-3, "clip_norm": 1.0} | optimizer, data={"batch_rows": 8}
    )
    network = {
        "heads": 8,
        "kv_heads": 2,
        "width": 48,
        "own_text_query": model.get("block") != "dit",
        "nextframe": False,
        "remat": "full",
    } | model
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **network))


def start(model):
    """A state of which no parameter is 0, so that every one has a gradient."""
    one = make_mesh(devices=jax.devices()[:1])
    state = jax.device_get(create_state(settings({}, model), one)._replace(key=None))
    waves = jax.tree.map(
        lambda leaf: (leaf + 0.05 * np.sin(0.7 * np.arange(leaf.size) + 1).reshape(leaf.shape)).astype(np.float32),
        state.parameters,
    )
    return state._replace(parameters=waves, ema=waves)


def trained(state, mesh, optimizer, model):
    """Losses and gradient norms of the steps, and what they leave behind."""
    config = settings(optimizer, model)
    shardings, step = batch_shardings(mesh), train_step(config, mesh)
    state = jax.device_put(state._replace(key=jax.random.key(3)), state_shardings(config, mesh))
    metrics = []
    for seed in range(STEPS):
        batch = tiny.packed_batch(8, seed)
        batch = type(batch)(*(jax.device_put(part, sharding) for part, sharding in zip(batch, shardings)))
        state, measured = step(state, batch)
        metrics.append(jax.device_get(measured))
    moments = state.optimizer[1][0]
    return jax.device_get(
        {"metrics": metrics, "gradients": moments.mu, "parameters": state.parameters, "ema": state.ema}
    )


def distance(ours, theirs):
    """The largest difference of any array, relative to its largest value, or to 1e-3 of the largest of all arrays.

    The bias of the norm of text keys has no gradient but rounding: it moves all logits of a query alike.
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(theirs)]
    floor = 1e-3 * max(np.abs(leaf).max() for leaf in leaves)
    pairs = zip(jax.tree.leaves(ours), leaves, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), floor)) for a, b in pairs)


def held_out_difference():
    """How far the held-out loss on a mesh, with packed rows in batches of another size, is from that on one device."""
    settings = tiny.config(model={"layers": 1, "heads": 8, "kv_heads": 4, "width": 48, "nextframe": False})
    parameters = random_parameters(settings.model)
    one = jax.device_put(parameters, jax.devices()[0])
    alone = held_out_loss(new_pipeline(settings, one, Words()), batch=5)
    mesh = make_mesh(fsdp=2, sequence=2, tensor=2)
    laid = jax.device_put(parameters, parameter_shardings(settings.model, mesh))
    packed = settings.replace(data={"row_tokens": 72, "samples_per_row": 3})
    together = held_out_loss(new_pipeline(packed, laid, Words(), mesh=mesh), batch=3)
    differences = [abs(a / b - 1) for a, b in zip(together.curve, alone.curve, strict=True)]
    return {"loss": abs(together.loss / alone.loss - 1), "curve": max(differences)}


def columns_difference():
    """How far products with columns that four of eight devices divide, and their gradients, are from those of whole
    matrices; none of the sizes is one."""
    random = np.random.default_rng(0)
    x, columns, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((24, 5), (2, 5, 12), (2, 12)))
    axes = ("fsdp_x", "fsdp_y")
    mesh = make_mesh(fsdp=4, split={"fsdp": (2, 2)})
    divided = DividedColumns(axes, (2, 2), ("data", *axes))

    def gradients(product):
        return jax.grad(lambda *arrays: jnp.sum(jnp.sin(product(*arrays))), argnums=(0, 1, 2))

    specs = PartitionSpec(("data", *axes)), PartitionSpec(None, None, axes), PartitionSpec()
    across = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, check_vma=False)
    found = (
        across(divided.product, out_specs=PartitionSpec(None, ("data", *axes)))(x, columns, bias),
        *across(gradients(divided.product), out_specs=specs)(x, columns, bias),
    )

    def whole(x, columns, bias):
        return jnp.einsum("ni,kio->kno", x, columns) + bias[:, None]

    return distance(found, (whole(x, columns, bias), *gradients(whole)(x, columns, bias)))


def main(names):
    found, begun = {}, {}
    for name in names or MESHES:
        mesh, optimizer, model = MESHES[name]
        block = {"block": model["block"]} if "block" in model else {}
        if str(block) not in begun:
            state = start(block)
            begun[str(block)] = state, trained(state, make_mesh(devices=jax.devices()[:1]), {}, block)
        state, alone = begun[str(block)]
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(alone["gradients"]))
        together = trained(state, make_mesh(**mesh), optimizer, model)
        found[name] = {part: distance(together[part], alone[part]) for part in alone}
    print(json.dumps(found | {"held-out loss": held_out_difference(), "divided columns": columns_difference()}))


if __name__ == "__main__":
    main(sys.argv[1:])
