"""Muon, and AdamW with muP, against their formulas in float64 numpy, on a tree with every kind of parameter."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from lumina_jax.config import OptimizerConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.parametrization import parameter_rules
from lumina_jax.parallel.mesh import configured_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import muon_rate, optimizer
from lumina_jax.training.state import TrainState, abstract_state, state_shardings
from tests.training import tiny

OPTIMIZER = OptimizerConfig(
    learning_rate=0.03, beta1=0.8, beta2=0.95, momentum=0.9, eps=1e-4, weight_decay=0.1, clip_norm=3.0
)
BASE = dataclasses.replace(tiny.MODEL, layers=1, width=24)
WIDE = dataclasses.replace(BASE, width=48, parametrization="mup", base_width=24)
"""The feed-forward has exactly 8/3 of the width in both."""
MUON_MATRICES = {
    *(f"blocks.attention.{name}.kernel" for name in ("query", "key", "value", "out")),
    *(f"blocks.mlp.{name}.kernel" for name in ("gate", "up", "down")),
}
RATES = {"final_layer.linear.kernel", "time_embedding.outer.kernel", "final_layer.modulation.linear.kernel"}
RATES |= {"blocks.modulation.linear.kernel"} | MUON_MATRICES
"""Where the rate of AdamW is halved at twice the width."""


def flat(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def random_tree(model, seed):
    random = np.random.default_rng(seed)
    abstract = nnx.to_pure_dict(abstract_model(model)[1])
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), abstract)


@functools.cache
def updated(config, model, steps=3):
    """The parameters after a few steps on random gradients."""
    transform, parameters = optimizer(config, 10, model), random_tree(model, 0)
    state = transform.init(parameters)
    update = jax.jit(transform.update)
    for step in range(1, steps + 1):
        updates, state = update(random_tree(model, step), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def orthogonal(matrix):
    """Five iterations of X <- a X + (b A + c A^2) X with A = X X^T, from X of Frobenius norm 1 (Jordan 2024)."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


def numpy_muon(value, gradients, config, factor):
    """Nesterov momentum, orthogonalised layer by layer, with decoupled decay."""
    x, mean, b = value.astype(np.float64), np.zeros(value.shape), config.momentum
    for t, gradient in enumerate(gradients, start=1):
        mean = b * mean + (1 - b) * gradient
        ahead = b * mean / (1 - b ** (t + 1)) + (1 - b) * gradient / (1 - b**t)
        direction = np.stack([orthogonal(layer) for layer in ahead])
        x = x - config.learning_rate * (factor * direction + config.weight_decay * x)
    return x


def numpy_adamw(value, gradients, config, factor, eps):
    x, m, v = value.astype(np.float64), np.zeros(value.shape), np.zeros(value.shape)
    for t, gradient in enumerate(gradients, start=1):
        m = config.beta1 * m + (1 - config.beta1) * gradient
        v = config.beta2 * v + (1 - config.beta2) * gradient**2
        direction = m / (1 - config.beta1**t) / (np.sqrt(v / (1 - config.beta2**t)) + eps)
        x = x - config.learning_rate * (factor * direction + config.weight_decay * x)
    return x


def clipped(gradients, config, model):
    """The gradients as the optimiser sees them: with muP those of the output layer count less."""
    if model.parametrization == "mup":
        name = "final_layer.linear.kernel"
        gradients = gradients | {name: gradients[name] * model.base_width / model.width}
    norm = math.sqrt(sum(float(np.sum(np.asarray(g, np.float64) ** 2)) for g in gradients.values()))
    return {name: np.asarray(g, np.float64) * min(1, config.clip_norm / norm) for name, g in gradients.items()}


@pytest.mark.parametrize("model", [BASE, WIDE], ids=["standard", "mup"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_updates_equal_their_formula_in_numpy(name, model):
    config = dataclasses.replace(OPTIMIZER, name=name)
    found, before = flat(updated(config, model)), flat(random_tree(model, 0))
    gradients = [clipped(flat(random_tree(model, step)), config, model) for step in (1, 2, 3)]
    eps = config.eps / 2 if model is WIDE else config.eps
    for parameter, value in before.items():
        own = [one[parameter] for one in gradients]
        if name == "muon" and parameter in MUON_MATRICES:
            factor = 0.2 * math.sqrt(max(value.shape[1:]) / (2 if model is WIDE else 1))
            expected = numpy_muon(np.asarray(value), own, config, factor)
        else:
            factor = 0.5 if model is WIDE and parameter in RATES else 1.0
            expected = numpy_adamw(np.asarray(value), own, config, factor, eps)
        np.testing.assert_allclose(found[parameter], expected, rtol=2e-4, atol=2e-4, err_msg=parameter)


@pytest.mark.slow
def test_at_the_base_width_updates_are_those_of_the_standard_parametrization_bit_for_bit():
    same = dataclasses.replace(BASE, parametrization="mup", base_width=BASE.width)
    for name in ("adamw", "muon"):
        config = dataclasses.replace(OPTIMIZER, name=name)
        expected, found = flat(updated(config, BASE)), flat(updated(config, same))
        for parameter, value in expected.items():
            np.testing.assert_array_equal(found[parameter], value, err_msg=parameter)


def test_the_spectral_norm_of_an_update_of_muon_grows_as_sqrt_outputs_over_inputs_with_mup_alone():
    def norms(model):
        return muon_rate(parameter_rules(abstract_model(model)[1], model)["blocks"]["attention"]["query"]["kernel"])

    wide = dataclasses.replace(BASE, width=96, heads=8)
    assert norms(BASE) == pytest.approx(0.2 * math.sqrt(24))
    assert norms(wide) == pytest.approx(0.2 * math.sqrt(96))
    assert norms(dataclasses.replace(wide, parametrization="mup", base_width=24)) == pytest.approx(0.2 * math.sqrt(24))


def test_moments_of_muon_lie_where_their_parameters_lie():
    config = tiny.config(optimizer={"name": "muon"})
    mesh = AbstractMesh((8, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    found = {name: sharding.spec for name, sharding in flat(state_shardings(config, mesh).optimizer).items()}
    mean = [spec for name, spec in found.items() if name.endswith("muon.inner_state.mu.blocks.mlp.up.kernel")]
    assert mean == [PartitionSpec(None, "fsdp", None)]
    square = [spec for name, spec in found.items() if name.endswith("adamw.inner_state.nu.patch_embedding.kernel")]
    assert square == [PartitionSpec(None, "fsdp")]


@pytest.mark.slow
def test_a_checkpoint_of_muon_continues_bit_for_bit(tmp_path):
    config = tiny.config(optimizer={"name": "muon"}, model=WIDE)
    mesh = configured_mesh(config.mesh)
    transform, parameters = optimizer(config.optimizer, config.run.steps, config.model), random_tree(config.model, 0)
    step = jax.jit(transform.update)
    _, moments = step(random_tree(config.model, 1), transform.init(parameters), parameters)
    state = TrainState(jnp.ones((), jnp.int32), parameters, parameters, moments, jax.random.key(0))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {}, config.to_json())
        checkpoints.wait()
        restored = checkpoints.restore(1, abstract_state(config, mesh))
    expected, _ = step(random_tree(config.model, 2), moments, parameters)
    found, _ = step(random_tree(config.model, 2), restored.optimizer, restored.parameters)
    for parameter, value in flat(expected).items():
        np.testing.assert_array_equal(flat(found)[parameter], value, err_msg=parameter)


@pytest.mark.slow
def test_muon_with_mup_learns_the_same_on_eight_devices():
    code = """
import numpy as np
from tests.training import tiny
from tests.training.test_muon import WIDE
from lumina_jax.parallel.mesh import configured_mesh
from lumina_jax.training.state import create_state
from lumina_jax.training.step import train_step
import jax
found = []
for count, sizes in ((1, {}), (8, {"fsdp": 4, "tensor": 2})):
    config = tiny.config(optimizer={"name": "muon"}, model=WIDE, mesh=sizes)
    mesh = configured_mesh(config.mesh, jax.devices()[:count])
    state, step = create_state(config, mesh), train_step(config, mesh)
    for seed in range(4):
        state, metrics = step(state, tiny.packed_batch(rows=4, seed=seed))
    found.append(jax.device_get(state.parameters))
one, eight = map(jax.tree.leaves, found)
for a, b in zip(one, eight):
    np.testing.assert_allclose(a, b, atol=2e-4)
print("same")
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | flags,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("same"), run.stderr[-3000:]
