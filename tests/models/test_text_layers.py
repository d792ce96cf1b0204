"""The text encoder that is trained with the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.models.attention import attend_with
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.text_layers import TextLayers
from lumina_jax.tokens import TextFeatures, pack_text, tokens_of

MODEL = ModelConfig(
    layers=1, heads=2, width=16, patch_size=1, channels=5, text_width=6, text_layers=2, mlp_multiple_of=8,
    compute_dtype="float32", remat="none",
)  # fmt: skip
RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.standard_normal((length, 6)).astype(np.float32) for length in (3, 4)]


def scrambled(module):
    """The same module with random parameters, of which none is zero."""
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    values = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return nnx.merge(graph, jax.tree.unflatten(tree, values))


@pytest.fixture(scope="module")
def layers():
    encoder = scrambled(TextLayers(nnx.Rngs(0), MODEL))
    return lambda texts, width: encoder(
        jax.tree.map(jnp.asarray, pack_text([texts], width)), attend_with(MODEL), jnp.dtype("float32")
    )


def test_texts_of_a_row_are_read_as_if_each_were_alone(layers):
    together = layers(TEXTS, 9)
    assert together.features.shape == (1, 9, 16)
    np.testing.assert_array_equal(together.segment_ids[0], [1, 1, 1, 2, 2, 2, 2, 0, 0])
    for text, start in zip(TEXTS, (0, 3)):
        alone = layers([text], len(text)).features[0]
        np.testing.assert_allclose(together.features[0, start : start + len(text)], alone, atol=1e-5)


def test_each_symbol_knows_the_others_and_their_order(layers):
    whole = np.asarray(layers([TEXTS[1]], 4).features[0])
    changed = TEXTS[1].copy()
    changed[3] += 1
    assert np.abs(np.asarray(layers([changed], 4).features[0])[0] - whole[0]).max() > 1e-3
    swapped = np.asarray(layers([TEXTS[1][[0, 2, 1, 3]]], 4).features[0])
    assert np.abs(swapped[[0, 2, 1, 3]] - whole).max() > 1e-3


def parameters_of(config):
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(abstract_model(config)[1]))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


def test_the_network_reads_what_the_layers_make_and_trains_them():
    graph, parameters = abstract_model(MODEL)[0], parameters_of(MODEL)
    tokens, _ = tokens_of(
        jnp.asarray(RANDOM.standard_normal((1, 1, 1, 7, 5)), jnp.float32), patch_size=1, nextline=True, nextframe=False
    )
    text = jax.tree.map(jnp.asarray, pack_text([[TEXTS[0]]], 3))
    times = jnp.full((1, 1), 0.3)

    @jax.jit
    def output(parameters, condition):
        return FlagDiT.__call__(nnx.merge(graph, parameters), tokens, times, condition)

    whole = output(parameters, text)
    # the same network without layers, given what the layers make
    plain = dataclasses.replace(MODEL, text_layers=0, text_width=16)
    rest = {name: value for name, value in parameters.items() if name != "text_layers"}
    layers = nnx.merge(graph, parameters).text_layers
    made = layers(text, attend_with(MODEL), jnp.dtype("float32"))
    graph_of_plain = abstract_model(plain)[0]
    by_hand = FlagDiT.__call__(nnx.merge(graph_of_plain, rest), tokens, times, TextFeatures(*made))
    np.testing.assert_allclose(whole, by_hand, atol=1e-5)
    # sampling computes captions once
    encoded = nnx.merge(graph, parameters).encode_text(text)
    np.testing.assert_allclose(whole, output(parameters, encoded), atol=1e-5)

    slopes = jax.grad(lambda parameters: (output(parameters, text) ** 2).sum())(parameters)
    assert all(np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes["text_layers"]))
