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
from lumina_jax.tokens import TextFeatures, pack_text, tokens_of
from tests.models.random_models import random_model, random_parameters

MODEL = ModelConfig(
    layers=1, heads=2, width=16, patch_size=1, channels=5, text_width=6, text_layers=2, mlp_multiple_of=8,
    compute_dtype="float32", remat="none",
)  # fmt: skip
RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.standard_normal((length, 6)).astype(np.float32) for length in (3, 4)]


@jax.jit
def encoded(encoder, text):
    return encoder(text, attend_with(MODEL), jnp.dtype("float32"))


@pytest.fixture(scope="module")
def layers():
    encoder = random_model(MODEL).text_layers
    return lambda texts, width: encoded(encoder, jax.tree.map(jnp.asarray, pack_text([texts], width)))


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


def test_the_network_reads_what_the_layers_make_and_trains_them():
    graph, parameters = abstract_model(MODEL)[0], random_parameters(MODEL)
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
    made = encoded(nnx.merge(graph, parameters).text_layers, text)
    without_layers = nnx.merge(abstract_model(plain)[0], rest)
    by_hand = jax.jit(FlagDiT.__call__)(without_layers, tokens, times, TextFeatures(*made))
    np.testing.assert_allclose(whole, by_hand, atol=1e-5)
    # sampling computes captions once
    ahead = jax.jit(FlagDiT.encode_text)(nnx.merge(graph, parameters), text)
    np.testing.assert_allclose(whole, output(parameters, ahead), atol=1e-5)

    slopes = jax.jit(jax.grad(lambda parameters: (output(parameters, text) ** 2).sum()))(parameters)
    assert all(np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes["text_layers"]))
