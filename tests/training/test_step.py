"""The training step: what it optimises, that it compiles once, and that micro-batches don't change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import FlowConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.state import create_state
from lumina_jax.training.step import batch_losses, draw, gradient, train_step
from tests.training.tiny import config, packed_batch


def test_the_step_compiles_once_whatever_the_batch_holds():
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = config()
    state, step = create_state(settings, mesh), train_step(settings, mesh)
    for seed in range(3):
        state, _ = step(state, packed_batch(seed=seed))
    assert step._cache_size() == 1
    assert int(state.step) == 3


def test_the_loss_falls_on_a_batch_seen_again_and_again():
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = config(optimizer={"learning_rate": 1e-2})
    state, step, batch = create_state(settings, mesh), train_step(settings, mesh), packed_batch()
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:5])  # the noise does not fit through 16 values


def test_each_step_draws_its_own_noise_and_a_repeated_step_the_same():
    mesh = make_mesh(devices=jax.devices()[:1])
    settings, batch = config(optimizer={"learning_rate": 1e-30}), packed_batch()
    step, runs = train_step(settings, mesh), []
    for _ in range(2):
        state, losses = create_state(settings, mesh), []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss))
        runs.append(losses)
    assert runs[0] == runs[1]
    assert len({round(loss, 3) for loss in runs[0]}) == 3


def test_the_loss_is_the_mean_over_samples_of_the_velocity_error():
    settings, batch = config(), packed_batch()
    state = create_state(settings, make_mesh(devices=jax.devices()[:1]))
    model = nnx.merge(abstract_model(settings.model)[0], state.parameters)
    drawn = draw(jax.random.key(1), batch, settings.flow)
    ours = batch_losses(model, batch, drawn, settings.flow)

    tokens, t = jax.tree.map(np.asarray, batch.tokens), np.asarray(drawn.t)
    for row, segment in np.ndindex(*t.shape):
        own = (tokens.segment_ids[row] == segment + 1) & (tokens.kinds[row] == 1)
        error = np.asarray(drawn.x0)[row, own] - tokens.patches[row, own]  # a new model predicts 0
        expected = np.mean(error**2) if own.any() else 0.0
        assert float(ours.per_sample[row, segment]) == pytest.approx(expected, rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    settings, batch = config(), packed_batch()
    graph, _ = abstract_model(settings.model)
    parameters = jax.tree.map(
        lambda leaf: leaf + 0.1, create_state(settings, make_mesh(devices=jax.devices()[:1])).parameters
    )
    drawn = draw(jax.random.key(1), batch, FlowConfig())
    run = jax.jit(gradient, static_argnums=(0, 4, 5))
    whole, parts = (run(graph, parameters, batch, drawn, FlowConfig(), count) for count in (1, 2))
    assert whole[1].samples.tolist() == [6.0]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_the_average_follows_the_parameters():
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = config(optimizer={"ema_decay": 0.5})
    state, step = create_state(settings, mesh), train_step(settings, mesh)
    before = jax.device_get(state.ema)
    state, _ = step(state, packed_batch())
    expected = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, before, jax.device_get(state.parameters))
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert not all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.ema)))


@pytest.mark.parametrize("seed", [2**32, 2**40, 2**63, 2**64 - 1])
def test_seeds_that_differ_above_32_bits_give_other_parameters_and_noise(seed):
    mesh = make_mesh(devices=jax.devices()[:1])
    small, large = (create_state(config(run={"seed": value}), mesh) for value in (seed % 2**32, seed))
    assert not np.array_equal(jax.random.key_data(small.key), jax.random.key_data(large.key))
    kernels = [state.parameters["blocks"]["mlp"]["up"]["kernel"] for state in (small, large)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**20])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"run.seed=.* between 0 and"):
        config(run={"seed": seed})
