"""Models whose most closed heads do not attend to the text, against the whole models that they come from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.aot.flops import Load, forward_flops
from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.pruning.heads import closed, heads_above, heads_for_share, kept, pruned, text_gates
from lumina_jax.tokens import TextFeatures, Tokens
from tests.aot.test_flops import prediction, traced_flops
from tests.models.random_models import random_parameters

FLAG = ModelConfig(
    layers=2,
    heads=4,
    width=32,
    text_width=6,
    mlp_multiple_of=8,
    remat="none",
    compute_dtype="float32",
    attention="xla",
)
MODELS = {
    "everything": FLAG.replace(block="next", own_text_query=True, heads=8, kv_heads=4, rope_axes=2),
    "without QK-norm": FLAG.replace(qk_norm=False),
    "flag": FLAG,
    "reference": FLAG.replace(attention="reference"),
    "grouped": FLAG.replace(kv_heads=2, heads=8, attention_width=48),
    "queries of its own": FLAG.replace(block="next", own_text_query=True, qk_norm=False),
}
EVERY_MODEL = [name if name == "everything" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
ROWS, TOKENS, TEXT = 2, 12, 5


def with_gates(config, gates):
    """Random parameters with these values as gates, before their tanh."""
    parameters = random_parameters(config)
    parameters["blocks"]["text"]["gate"] = jnp.asarray(gates, jnp.float32)
    return parameters


def half_closed(config):
    """Random parameters; in each layer other heads have gates of 0, half of those with different keys."""
    random = np.random.default_rng(3)
    gates = random.uniform(0.3, 1.0, (config.layers, config.key_heads, config.heads // config.key_heads))
    for layer in range(config.layers):
        gates[layer, random.permutation(config.key_heads)[: config.key_heads // 2]] = 0
    return with_gates(config, gates.reshape(config.layers, config.heads))


@functools.cache
def compiled(config):
    graph = abstract_model(config)[0]
    return jax.jit(lambda parameters, *inputs: nnx.merge(graph, parameters)(*inputs))


def predicted(config, parameters):
    random = np.random.default_rng(0)
    ids = jnp.asarray([[1] * (TOKENS // 2) + [2] * (TOKENS // 2)] * ROWS)
    positions = jnp.asarray(random.integers(0, 9, (ROWS, TOKENS, 4)))
    patches = jnp.asarray(random.standard_normal((ROWS, TOKENS, config.patch_values)), jnp.float32)
    text = jnp.asarray(random.standard_normal((ROWS, TEXT, config.text_width)), jnp.float32)
    condition = TextFeatures(text, jnp.asarray([[1, 1, 2, 2, 0]] * ROWS))
    tokens = Tokens(patches, jnp.ones_like(ids), positions, ids)
    return np.asarray(compiled(config)(parameters, tokens, jnp.asarray([[0.2, 0.7]] * ROWS), condition))


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_heads_whose_gates_are_zero_are_left_out_without_a_change(name):
    config = MODELS[name]
    parameters = half_closed(config)
    before = predicted(config, parameters)
    small, model = pruned(parameters, config, config.heads // 2)
    assert model.text_heads == config.heads // 2
    np.testing.assert_allclose(predicted(model, small), before, rtol=2e-5, atol=2e-5 * np.abs(before).max())
    open_gates = small["blocks"]["text"]["gate"]
    assert open_gates.shape == (config.layers, config.heads // 2)
    assert (open_gates != 0).all()


def test_all_heads_kept_are_the_same_model_bit_for_bit():
    for config in (MODELS["everything"], MODELS["without QK-norm"]):
        parameters = random_parameters(config)
        again, model = pruned(parameters, config, config.heads)
        assert model == config
        jax.tree.map(np.testing.assert_array_equal, again, parameters)


@pytest.mark.slow
def test_that_all_heads_have_text_may_be_said():
    named = FLAG.replace(text_heads=FLAG.heads)
    parameters = random_parameters(FLAG)
    np.testing.assert_array_equal(predicted(named, parameters), predicted(FLAG, parameters))


def test_closed_gates_stand_for_heads_that_are_left_out():
    config = MODELS["everything"]
    parameters = random_parameters(config)
    small, model = pruned(parameters, config, 4)
    theirs = predicted(config, closed(parameters, config, 4))
    np.testing.assert_allclose(predicted(model, small), theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())
    assert np.abs(theirs - predicted(config, parameters)).max() > 1e-3 * np.abs(theirs).max()
    assert not np.asarray(closed(parameters, config, 0)["blocks"]["text"]["gate"]).any()


@pytest.mark.slow
def test_a_pruned_model_is_pruned_further_and_back_to_its_size():
    parameters = random_parameters(FLAG)
    once, model = pruned(parameters, FLAG, 2)
    twice, least = pruned(once, model, 1)
    at_once, _ = pruned(parameters, FLAG, 1)
    theirs = predicted(least, at_once)
    np.testing.assert_allclose(predicted(least, twice), theirs, atol=2e-5 * np.abs(theirs).max())
    back, whole = pruned(once, model, 4)
    assert whole == FLAG
    theirs = predicted(FLAG, closed(parameters, FLAG, 2))
    np.testing.assert_allclose(predicted(FLAG, back), theirs, atol=2e-5 * np.abs(theirs).max())


def test_each_layer_keeps_its_most_open_heads_and_heads_that_share_keys_stay_together():
    config = FLAG.replace(layers=2)
    parameters = with_gates(config, [[0.1, -0.9, 0.2, 0.05], [0.4, 0.0, -0.3, 0.1]])
    gates = text_gates(parameters, config)
    np.testing.assert_allclose(gates[0], np.tanh([0.1, -0.9, 0.2, 0.05]), rtol=1e-6)
    assert kept(gates, config, 2).tolist() == [[1, 2], [0, 2]]
    np.testing.assert_allclose(pruned(parameters, config, 2)[0]["blocks"]["text"]["gate"], [[-0.9, 0.2], [0.4, -0.3]])
    assert heads_above(gates, config, 0.15) == 2
    assert heads_above(gates, config, 0.99) == 1
    grouped = config.replace(kv_heads=2)
    assert kept(gates, grouped, 2).tolist() == [[0, 1], [0, 1]]
    assert heads_above(gates, grouped, 0.15) == 4  # one of each pair of the second layer is open
    assert [heads_for_share(grouped, share) for share in (0.01, 0.5, 0.51, 1)] == [2, 2, 4, 4]


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_flops_are_those_of_every_product_of_a_pruned_network(name):
    config = MODELS[name].replace(text_heads=MODELS[name].heads // 2)
    load = Load(rows=2, tokens=24, text_tokens=10)
    predict, parameters = prediction(config, load)
    traced = traced_flops(jax.make_jaxpr(predict)(parameters).jaxpr)
    pooling = 2 * load.rows * load.text_tokens * config.text_width
    assert forward_flops(config, load).total == traced - pooling
    assert forward_flops(config, load).total < forward_flops(MODELS[name], load).total


def test_text_heads_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"text_heads=2 chooses among heads with gates.*conditioning='label'"):
        FLAG.replace(conditioning="label", text_heads=2)
    with pytest.raises(ValueError, match="block='dit' has none"):
        FLAG.replace(block="dit", text_heads=2)
    for heads in (0, 5):
        with pytest.raises(ValueError, match=r"multiple of 1, .*up to 4"):
            FLAG.replace(text_heads=heads)
    with pytest.raises(ValueError, match="multiple of 2"):
        FLAG.replace(kv_heads=2, text_heads=3)
    label = dataclasses.replace(FLAG, conditioning="label")
    with pytest.raises(ValueError, match="gates belong to attention to the text"):
        text_gates({}, label)
    for share in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            heads_for_share(FLAG, share)
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            heads_above(np.zeros((3, 4)), FLAG, share)
