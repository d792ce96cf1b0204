"""Adapters trained on 4 devices as on one, and drawn with on devices that divide heads; run by test_parallel_adapters.

The base is held as the first argument says. Prints the largest differences as JSON.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.models.adapters import adapted, merged, new_trained, scaled
from lumina_jax.models.division import parameter_shardings
from lumina_jax.models.precision import parameter_types
from lumina_jax.models.quantised import held
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.state import create_state, initial_shapes
from lumina_jax.training.step import batch_shardings, train_step
from tests.training import tiny
from tests.training.test_quantised_base import dequantised

FINETUNE = {"parameters": ("attention:2", "modulation:3", "feed_forward:2", "biases", "embeddings"), "alpha": 3.0}


def base(config):
    """Parameters none of which is 0, so that every one has a gradient."""
    shapes = initial_shapes(config.replace(finetune={"parameters": (), "base": "float32"})).parameters
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape).astype(np.float32), shapes)


def trained(config, mesh):
    parameters = jax.device_put(base(config), parameter_shardings(config.model, mesh))
    state, step, shardings = create_state(config, mesh, parameters), train_step(config, mesh), batch_shardings(mesh)
    for seed in range(3):
        batch = tiny.packed_batch(4, seed)
        state, _ = step(state, type(batch)(*(jax.device_put(part, to) for part, to in zip(batch, shardings))))
    return jax.device_get((state.parameters, state.base.parameters, state.base.fingerprint))


def distance(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main():
    """Rows over 2 devices and parameters over 2, then heads over 2."""
    kind = sys.argv[1]
    finetune = FINETUNE | {"base": kind}
    config = tiny.config(finetune=finetune, optimizer={"eps": 1e-3}, model={"heads": 4, "width": 32})
    alone, before, words = trained(config, make_mesh(devices=jax.devices()[:1]))
    together, after, again = trained(config, make_mesh(fsdp=2))
    found = {
        "trained": distance(together, alone),
        "base": distance(after, before),
        "words": int((words != again).sum()),
    }
    label = tiny.label_config(model={"heads": 4, "width": 32})
    settings = config.finetune.replace(parameters=("attention:2", "feed_forward:2"))
    parameters = jax.tree.map(jnp.asarray, base(label))
    changes = jax.tree.map(lambda leaf: leaf + 0.1, new_trained(settings, parameters, jax.random.key(0)))
    parameters = jax.tree.map(held, parameters, parameter_types(label.model, kind))
    network = adapted(parameters, scaled(changes, settings))
    plain = new_pipeline(label, merged(adapted(dequantised(parameters), scaled(changes, settings))), None)
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:2]) if kind == "nf4" else make_mesh(tensor=2, fsdp=2)
    divided = new_pipeline(label, network, None, mesh=mesh)
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, 16, 16, 3)), jnp.float32)
    expected, drawn = (one.latents(noise, ["1", "2"], label.sample) for one in (plain, divided))
    found["drawn"] = distance(jax.device_get(drawn), jax.device_get(expected))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
