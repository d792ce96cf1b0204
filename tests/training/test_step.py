"""The training step: what it optimises, that it compiles once, and that micro-batches don't change it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import FlowConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import step as training_step
from lumina_jax.training.state import create_state
from lumina_jax.training.step import batch_losses, gradient, noise_and_times, train_step
from tests.training.tiny import config, packed_batch


@pytest.fixture(scope="module")
def traced_once():
    """A step of the tiny configuration that fails when it is traced a second time, and its first state."""
    mesh, settings = make_mesh(devices=jax.devices()[:1]), config(optimizer={"ema_decay": 0.5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "noise_and_times", chex.assert_max_traces(noise_and_times, 1))
        yield train_step(settings, mesh), create_state(settings, mesh)
    chex.clear_trace_counter()


def copied(state):
    """The step reuses the memory of its state."""
    return jax.tree.map(jnp.copy, state)


def test_the_step_compiles_once_whatever_the_batch_holds(traced_once):
    step, state = traced_once[0], copied(traced_once[1])
    for seed in range(3):
        state, _ = step(state, packed_batch(seed=seed))
    assert int(state.step) == 3


def test_a_function_that_is_traced_again_would_be_noticed():
    noticed = jax.jit(chex.assert_max_traces(lambda x: x + 1, 1))
    noticed(jnp.ones(2))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        noticed(jnp.ones(3))


def test_the_loss_falls_on_a_batch_seen_again_and_again(traced_once):
    step, state, batch = traced_once[0], copied(traced_once[1]), packed_batch()
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:5])  # the noise does not fit through 16 values


def test_each_step_draws_its_own_noise_and_a_repeated_step_the_same(traced_once):
    step, state = traced_once
    starts = [copied(state._replace(step=state.step + number)) for number in (0, 1, 2, 1)]
    losses = [float(step(start, packed_batch())[1].loss) for start in starts]
    assert losses[1] == losses[3]
    assert len({round(loss, 3) for loss in losses}) == 3


def test_the_loss_is_the_mean_over_samples_of_the_velocity_error(traced_once):
    settings, batch = config(), packed_batch()
    model = nnx.merge(abstract_model(settings.model)[0], traced_once[1].parameters)
    drawn = noise_and_times(jax.random.key(1), batch, settings.flow)
    ours = jax.jit(batch_losses, static_argnums=3)(model, batch, drawn, settings.flow)

    tokens, t = jax.tree.map(np.asarray, batch.tokens), np.asarray(drawn.t)
    for row, segment in np.ndindex(*t.shape):
        patches = (tokens.segment_ids[row] == segment + 1) & (tokens.kinds[row] == 1)
        error = np.asarray(drawn.x0)[row, patches] - tokens.patches[row, patches]  # a new model predicts 0
        expected = np.mean(error**2) if patches.any() else 0.0
        assert float(ours.per_sample[row, segment]) == pytest.approx(expected, rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole_batch(traced_once):
    graph, batch = abstract_model(config().model)[0], packed_batch()
    moved = np.random.default_rng(0)  # so that no gate is 0
    parameters = jax.tree.map(
        lambda leaf: leaf + 0.1 * moved.normal(size=leaf.shape).astype(leaf.dtype), traced_once[1].parameters
    )
    drawn = noise_and_times(jax.random.key(1), batch, FlowConfig())
    run = jax.jit(gradient, static_argnums=(0, 4, 5))
    whole, parts = (run(graph, parameters, batch, drawn, FlowConfig(), count) for count in (1, 2))
    assert whole[1].samples.tolist() == [6.0]
    chex.assert_trees_all_close(whole, parts, rtol=2e-4, atol=1e-5)


def test_the_average_follows_the_parameters(traced_once):
    step, state = traced_once[0], copied(traced_once[1])
    before = jax.device_get(state.ema)
    state, _ = step(state, packed_batch())
    expected = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, before, state.parameters)
    chex.assert_trees_all_close(state.ema, expected, atol=1e-7)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.ema, before, atol=1e-7)


def test_seeds_that_differ_above_32_bits_give_other_parameters_and_noise():
    """That no two seeds share a key: tests/test_seeds.py."""
    mesh = make_mesh(devices=jax.devices()[:1])
    small, large = (create_state(config(run={"seed": value}), mesh) for value in (2**32 - 1, 2**64 - 1))
    assert not np.array_equal(jax.random.key_data(small.key), jax.random.key_data(large.key))
    kernels = [state.parameters["blocks"]["mlp"]["up"]["kernel"] for state in (small, large)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**20])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"run.seed=.* between 0 and"):
        config(run={"seed": seed})
