"""Some parameters train, themselves or through low-rank adapters; the base stays as it is."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import FinetuneConfig
from lumina_jax.models.adapters import (
    Factors,
    LowRank,
    adapted,
    fingerprint,
    identity,
    joined,
    merged,
    new_trained,
    scaled,
    without_adapters,
)
from lumina_jax.models.division import division
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.dropout import dropout_masks, masked
from lumina_jax.training.header import trained_line
from lumina_jax.training.state import abstract_state, create_state, initial_shapes, network_shardings, with_base
from lumina_jax.training.step import DROPOUT, NoiseAndTimes, gradient, noise_and_times, train_step
from lumina_jax.weights.modules import dotted, named_parameters
from tests.training import tiny

MESH = functools.cache(lambda: make_mesh(devices=jax.devices()[:1]))
LORA = FinetuneConfig(parameters=("attention", "feed_forward:3", "final_layer.modulation.*"), rank=2, alpha=3.0)


@functools.cache
def base_values():
    """Parameters none of which is 0, so that every one has a gradient."""
    shapes = initial_shapes(tiny.config()).parameters
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape).astype(np.float32), shapes)


def base():
    return jax.tree.map(jnp.asarray, base_values())


def nonzero(trained):
    """What trains, with factors that change something."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32), trained)


def gradients(config, parameters, frozen=None, divided=False):
    batch = tiny.packed_batch()
    random = np.random.default_rng(2)
    x0 = jnp.asarray(random.standard_normal(batch.tokens.patches.shape), jnp.float32)
    drawn = NoiseAndTimes(x0, jnp.asarray(random.uniform(0.1, 0.9, batch.present.shape), jnp.float32))
    shared = division(config, MESH(), network_shardings(config, MESH())) if divided else None
    graph = abstract_model(config.model)[0] if shared is None else shared.graph
    call = jax.jit(
        lambda *given: gradient(graph, given[0], batch, drawn, config.flow, 1, shared, given[1], config.finetune)
    )
    loss, _, found = call(parameters, frozen)
    return loss, found


@pytest.mark.parametrize("remat", ["none", "offload"])
def test_gradients_of_factors_are_those_of_their_product_by_the_chain_rule(remat):
    config = tiny.config(finetune=LORA, model={"remat": remat})
    trained = nonzero(new_trained(LORA, base(), jax.random.key(0)))
    whole = merged(adapted(base(), scaled(trained, LORA)))
    loss, full = gradients(tiny.config(), whole)
    adapter_loss, found = gradients(config, trained, base(), divided=remat == "offload")
    np.testing.assert_allclose(adapter_loss, loss, rtol=1e-5)
    of_weights = named_parameters(full)
    assert found.keys() == trained.keys()
    for name, (a, b) in trained.items():
        scale = 3.0 / (3 if ".mlp." in name else 2)
        expected = Factors(
            scale * jnp.einsum("...io,...ro->...ir", of_weights[name], b),
            scale * jnp.einsum("...ir,...io->...ro", a, of_weights[name]),
        )
        for ours, theirs in zip(found[name], expected, strict=True):
            assert np.abs(theirs).max() > 0
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * float(np.abs(theirs).max()))


def test_dora_changes_nothing_at_first_and_then_the_directions_and_lengths_of_columns():
    settings = LORA.replace(dora=True)
    fresh = new_trained(settings, base(), jax.random.key(0))
    chex.assert_trees_all_close(merged(adapted(base(), scaled(fresh, settings))), base(), rtol=1e-5, atol=1e-6)
    trained = nonzero(fresh)
    found = named_parameters(merged(adapted(base(), scaled(trained, settings))))
    for name, (a, b, length) in trained.items():
        weight = named_parameters(base())[name] + settings.scale(a.shape[-1]) * a @ b
        expected = length[..., None, :] * weight / jnp.sqrt(jnp.sum(weight**2, axis=-2, keepdims=True))
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
        x = jnp.ones((3, a.shape[-2]))
        leaf = functools.reduce(
            lambda node, key: node[key], name.split("."), adapted(base(), scaled(trained, settings))
        )
        leaf, expected = jax.tree.map(operator.itemgetter((0,) if a.ndim == 3 else ()), (leaf, expected))
        np.testing.assert_allclose(x @ leaf, x @ expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_gradients_of_dora_are_those_of_its_weight_whose_norms_are_constants():
    settings = LORA.replace(dora=True, last_layers=1)
    trained = nonzero(new_trained(settings, base(), jax.random.key(0)))
    config = tiny.config(finetune=settings)
    scales = {name: settings.scale(value.a.shape[-1]) for name, value in trained.items()}

    def weights(trained):
        named = named_parameters(base())
        for name, (a, b, length) in trained.items():
            old = named[name][-len(a) :] if a.ndim == 3 else named[name]
            changed = old + scales[name] * a @ b
            norm = jax.lax.stop_gradient(jnp.linalg.norm(changed, axis=-2, keepdims=True))
            new = length[..., None, :] * changed / norm
            named[name] = jnp.concatenate([named[name][: -len(a)], new]) if a.ndim == 3 else new
        return jax.tree.map_with_path(lambda path, _: named[dotted(path)], base())

    loss, of_weights = gradients(tiny.config(), weights(trained))
    expected = jax.vjp(weights, trained)[1](of_weights)[0]
    for remat in ("none", "offload"):
        settings_of = config.replace(model={"remat": remat})
        ours, found = gradients(settings_of, trained, base(), divided=remat == "offload")
        np.testing.assert_allclose(ours, loss, rtol=1e-5)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.abs(other).max() > 0
            np.testing.assert_allclose(one, other, rtol=5e-4, atol=5e-4 * float(np.abs(other).max()))


def test_parameters_that_train_themselves_have_the_gradients_of_full_training():
    settings = FinetuneConfig(parameters=("biases", "attention"), last_layers=1)
    trained = new_trained(settings, base(), jax.random.key(0))
    full = named_parameters(gradients(tiny.config(), base())[1])
    found = gradients(tiny.config(finetune=settings), trained, base())[1]
    assert {"final_layer.linear.bias", "blocks.attention.query.kernel"} <= found.keys()
    for name, value in found.items():
        expected = full[name][-1:] if name.startswith("blocks.") else full[name]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_only_what_trains_has_moments_and_an_average_and_the_base_stays_bit_for_bit():
    config = tiny.config(finetune=LORA)
    state, step = create_state(config, MESH(), base()), train_step(config, MESH())
    for seed in range(2):
        state, metrics = step(state, tiny.packed_batch(seed=seed))
    assert float(metrics.gradient_norm) > 0
    chex.assert_trees_all_equal(state.base.parameters, base())
    assert state.ema.keys() == state.parameters.keys()
    sizes = named_parameters(base())
    expected = sum(
        (3 if ".mlp." in name else 2) * (value.shape[-2] + value.shape[-1]) * (value.shape[0] if value.ndim == 3 else 1)
        for name, value in sizes.items()
        if (name.startswith(("blocks.attention.", "blocks.mlp.")) and name.endswith("kernel") and ".text_" not in name)
        or name == "final_layer.modulation.linear.kernel"
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(state.parameters)) == expected
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert moments == 2 * expected
    assert f"take {(3 * expected * 4 + 8) / 1e6:.3g} MB" in trained_line(config)
    assert all(np.abs(factors.b).max() > 0 for factors in state.parameters.values())


def test_dropout_leaves_out_other_inputs_of_adapters_at_each_step_and_the_others_count_more():
    share = 0.4
    config = tiny.config(finetune=FinetuneConfig(rank=2, dropout=share), optimizer={"beta1": 0.0})
    state, step = create_state(config, MESH(), base()), train_step(config, MESH())
    state, batch = state._replace(parameters=nonzero(state.parameters)), tiny.packed_batch()
    graph, kept = abstract_model(config.model)[0], []
    loss = jax.jit(lambda *given: gradient(graph, given[0], batch, given[1], config.flow, 1, None, *given[2:])[0])
    for _ in range(2):
        before, key = jax.device_get(state.parameters), jax.random.fold_in(state.key, state.step)
        masks = dropout_masks(state.parameters, jax.random.fold_in(key, DROPOUT), share)
        drawn = noise_and_times(key, batch, config.flow)
        expected = loss(masked(state.parameters, masks), drawn, state.base.parameters)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
        moved = {name: (value.a != before[name].a).any(axis=-1) for name, value in state.parameters.items()}
        chex.assert_trees_all_equal(moved, {name: np.asarray(mask[..., 0] > 0) for name, mask in masks.items()})
        kept.append(np.concatenate([one.ravel() for one in moved.values()]))
        values = np.concatenate([np.asarray(mask).ravel() for mask in masks.values()])
        np.testing.assert_allclose(np.unique(values), [0, 1 / (1 - share)], rtol=1e-6)
        assert abs(values.mean() - 1) < 5 * values.std() / np.sqrt(values.size)
    assert (kept[0] != kept[1]).mean() > 0.3


def test_a_run_of_adapters_resumes_bit_for_bit_and_refuses_another_base(tmp_path):
    config = tiny.config(finetune=LORA)
    step, batches = train_step(config, MESH()), [tiny.packed_batch(seed=seed) for seed in range(3)]
    state = create_state(config, MESH(), base())
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for number, batch in enumerate(batches, start=1):
            if number == 2:
                checkpoints.save(1, state.saved, {}, config.to_json())
            state, _ = step(state, batch)
        checkpoints.wait()
        restored = checkpoints.restore(1, abstract_state(config, MESH()).saved)
    other = base() | {"patch_embedding": jax.tree.map(lambda leaf: leaf * 1.01, base()["patch_embedding"])}
    with pytest.raises(ValueError, match="adapters change the weights they were trained for, whose fingerprint is"):
        with_base(restored, other, "other")
    again = with_base(restored, base(), "base")
    for batch in batches[1:]:
        again, _ = step(again, batch)
    chex.assert_trees_all_equal(jax.device_get(again._replace(key=None)), jax.device_get(state._replace(key=None)))


def test_a_weight_with_an_adapter_multiplies_as_the_merged_weight_in_any_number_of_adapters():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    x, weight = draw(4, 5), draw(5, 6)
    one, two = {"w": Factors(draw(5, 2), draw(2, 6))}, {"w": Factors(draw(5, 3), draw(3, 6))}
    factors = joined([one, two])["w"]
    expected = x @ (weight + one["w"].a @ one["w"].b + two["w"].a @ two["w"].b)
    np.testing.assert_allclose(x @ LowRank(weight, *factors), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x @ merged({"w": LowRank(weight, *factors)})["w"], expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_its_adapters_is_its_base_in_the_same_program():
    network = adapted(base(), scaled(nonzero(new_trained(LORA, base(), jax.random.key(0))), LORA))
    again = without_adapters(network, base())
    assert jax.tree.structure(again) == jax.tree.structure(network)
    chex.assert_trees_all_equal(merged(again), base())


def test_adapters_of_different_last_layers_are_joined_with_zeros():
    one, two = Factors(jnp.ones((3, 4, 1)), jnp.ones((3, 1, 5))), Factors(jnp.ones((1, 4, 2)), jnp.ones((1, 2, 5)))
    a, b = joined([{"w": one}, {"w": two}])["w"]
    assert [float(product[0, 0]) for product in a @ b] == [1, 1, 3]


def test_groups_share_all_parameters_but_the_final_projection_among_them():
    names = list(named_parameters(base()))
    groups = ("attention", "text_attention", "feed_forward", "modulation", "embeddings")
    fitting = [set(FinetuneConfig(parameters=(group,)).ranks(names)) for group in groups]
    assert sum(map(len, fitting)) == len(set.union(*fitting))
    rest = set(names) - set.union(*fitting)
    assert all(name.startswith("final_layer.linear.") or "_norm." in name for name in rest), rest
    assert FinetuneConfig(rank=4, alpha=8.0).scale(4) == 2.0
    assert FinetuneConfig(rank=4, alpha=8.0, scaling="rslora").scale(4) == 4.0
    assert FinetuneConfig(parameters=("attention:3", "layers")).ranks(names)["blocks.attention.query.kernel"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": ("atention",)}, "has 'atention', which fits no parameter of this model"),
        ({"parameters": ("biases",), "rank": 2}, "has 'biases', which fits no matrix of this model"),
        ({"last_layers": 3}, "last_layers=3 must be at most the 2 layers"),
    ],
)
def test_settings_that_fit_no_parameter_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        new_trained(FinetuneConfig(**settings), base(), jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "dropout": 1.0}, r"dropout=1.0 must be at least 0 and below 1"),
        ({"last_layers": 1, "dropout": 0.1}, "dropout=0.1 is for adapters, which need a rank"),
    ],
)
def test_a_dropout_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)


def test_a_fingerprint_tells_models_apart_but_not_the_types_of_their_weights():
    values = {"blocks": {"w": jnp.arange(24.0).reshape(2, 3, 4)}, "v": jnp.arange(3.0)}
    same = identity(fingerprint(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), values)))
    assert identity(fingerprint(values)) == same
    swapped = values | {"v": jnp.asarray([1.0, 0.0, 2.0])}
    moved = {"blocks": {"w": values["blocks"]["w"].at[0, 0, 1].set(1.5)}, "v": values["v"]}
    assert len({same, identity(fingerprint(swapped)), identity(fingerprint(moved))}) == 3
