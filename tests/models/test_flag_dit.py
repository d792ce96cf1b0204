"""Properties of Flag-DiT for any weights: packing, text, grouped heads, and the ways to compute it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.models.attention import attend_with
from lumina_jax.models.flag_dit import FlagDiT, Parallel, abstract_model
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.models.presets import SIZES, preset
from lumina_jax.models.rope import RopeScaling
from lumina_jax.tokens import TextFeatures, pack, pack_text, tokens_of, unpack, unpatchify
from tests.models.random_models import random_model, random_parameters

CONFIG = ModelConfig(
    layers=2,
    heads=4,
    width=32,
    kv_heads=2,
    patch_size=2,
    channels=3,
    text_width=12,
    mlp_multiple_of=16,
    compute_dtype="float32",
    remat="none",
)
LAYOUT = {"patch_size": 2, "nextline": True, "nextframe": True}

run = jax.jit(FlagDiT.__call__, static_argnames="base_length")
encode_text = jax.jit(FlagDiT.encode_text)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


def samples(seed=0):
    """Three latents of different sizes, one of them a video, with captions and times."""
    random = np.random.default_rng(seed)
    shapes = [(1, 4, 6, 3), (2, 4, 4, 3), (1, 8, 2, 3)]
    latents = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    captions = [random.standard_normal((length, 12)).astype(np.float32) for length in (3, 5, 2)]
    return latents, captions, np.array([0.2, 0.5, 0.9], np.float32)


def alone(model, latent, caption, t):
    tokens, grid = tokens_of(jnp.asarray(latent[None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[caption]], 6))
    return unpatchify(run(model, tokens, jnp.full((1, 1), t), text), grid, 2)[0]


def packed(model, latents, captions, times, row_tokens=64):
    tokens, grids = pack([latents], row_tokens=row_tokens, **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([captions], 16))
    output = run(model, jax.tree.map(jnp.asarray, tokens), jnp.asarray(times)[None], text)
    return unpack(output, grids, patch_size=2)[0]


@pytest.fixture(scope="module")
def packed_gradient():
    """The samples in one packed row, and the gradient of the sum of their squares."""
    return value_and_gradient(CONFIG)


def value_and_gradient(config, forward=packed):
    def loss(parameters):
        outputs = forward(nnx.merge(abstract_model(config)[0], parameters), *samples())
        return sum(jnp.sum(output**2) for output in outputs), outputs

    (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(random_parameters(config))
    return outputs, gradient


def test_packed_rows_equal_separate_rows_and_have_their_gradient(packed_gradient):
    def separate(model, *samples):
        return [alone(model, *sample) for sample in zip(*samples)]

    outputs, gradient = value_and_gradient(CONFIG, separate)
    chex.assert_trees_all_close(packed_gradient[0], outputs, atol=1e-5)
    chex.assert_trees_all_close(packed_gradient[1], gradient, atol=1e-6 * largest(gradient), rtol=1e-4)


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_a_token_of_another_sample_changes_nothing(model):
    latents, captions, times = samples()
    before = packed(model, latents, captions, times)
    changed = [latents[0], latents[1] + 1, latents[2]]
    after = packed(model, changed, [captions[0], captions[1] * 2, captions[2]], times)
    for index in (0, 2):
        np.testing.assert_allclose(before[index], after[index], atol=1e-6)
    assert np.abs(before[1] - after[1]).max() > 1e-2


def test_text_encoded_ahead_gives_the_same_output(model):
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    np.testing.assert_allclose(run(model, tokens, t, text), run(model, tokens, t, encode_text(model, text)), atol=3e-6)


def test_the_caption_and_the_time_matter(model):
    latents, captions, _ = samples()
    base = alone(model, latents[0], captions[0], 0.3)
    assert np.abs(base - alone(model, latents[0], captions[1], 0.3)).max() > 1e-2
    assert np.abs(base - alone(model, latents[0], captions[0], 0.7)).max() > 1e-2


def test_a_new_model_predicts_zero_and_ignores_its_text():
    model = FlagDiT(CONFIG, rngs=nnx.Rngs(0))
    latents, captions, _ = samples()
    assert not np.any(alone(model, latents[0], captions[0], 0.5))
    assert not np.any(model.blocks.text.gate[...])


def test_initial_values_are_those_of_the_keys_of_flax():
    ours, theirs = (
        jax.jit(lambda keys=keys: nnx.state(FlagDiT(CONFIG, rngs=keys(7))))() for keys in (ParameterKeys, nnx.Rngs)
    )
    assert any(np.any(value) for value in jax.tree.leaves(ours))
    chex.assert_trees_all_equal(ours, theirs)


def test_ways_to_compute_give_one_result_and_one_gradient(packed_gradient):
    """Remat and unrolling alone are compared in test_stack.py."""
    other = value_and_gradient(dataclasses.replace(CONFIG, remat="dots", unroll=2, attention="reference"))
    chex.assert_trees_all_close(packed_gradient, other, rtol=1e-4, atol=1e-6 * largest(other))


def test_grouped_key_heads_equal_repeated_ones():
    config = dataclasses.replace(CONFIG, kv_heads=None, qk_norm=False)
    grouped = random_model(dataclasses.replace(config, kv_heads=2))

    def repeated(kernel):
        split = kernel.reshape(*kernel.shape[:-1], 2, 8)
        return jnp.repeat(split, 2, axis=-2).reshape(*kernel.shape[:-1], 32)

    graph, values, source = abstract_model(config)[0], random_parameters(config), nnx.to_pure_dict(nnx.state(grouped))
    values.update({name: value for name, value in source.items() if name != "blocks"})
    for part in ("modulation", "attention_norm", "mlp_norm", "mlp"):
        values["blocks"][part] = source["blocks"][part]
    for module in ("attention", "text"):
        for name, value in source["blocks"][module].items():
            is_key_or_value = name in ("key", "value")
            values["blocks"][module][name] = {"kernel": repeated(value["kernel"])} if is_key_or_value else value
    latents, captions, _ = samples()
    np.testing.assert_allclose(
        alone(grouped, latents[0], captions[0], 0.4),
        alone(nnx.merge(graph, values), latents[0], captions[0], 0.4),
        atol=1e-5,
    )


def test_proportional_attention_at_the_base_length_changes_nothing(model):
    latents, captions, _ = samples()
    tokens, grid = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    plain = run(model, tokens, t, text)
    np.testing.assert_allclose(run(model, tokens, t, text, base_length=grid.length), plain, atol=1e-5)
    assert np.abs(run(model, tokens, t, text, base_length=3) - plain).max() > 1e-3


def test_rotary_scalings_may_be_traced_and_change_the_output(model):
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    scaled = [run(model, tokens, t, text, rope=RopeScaling(1.0, ntk)) for ntk in (1.0, 4.0)]
    np.testing.assert_allclose(scaled[0], run(model, tokens, t, text), atol=1e-5)
    assert np.abs(scaled[1] - scaled[0]).max() > 1e-3


def test_bfloat16_stays_near_float32(model):
    latents, captions, _ = samples()
    exact = alone(model, latents[0], captions[0], 0.4)
    rounded = alone(random_model(dataclasses.replace(CONFIG, compute_dtype="bfloat16")), latents[0], captions[0], 0.4)
    assert rounded.dtype == jnp.float32
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max() + 0.02


@pytest.mark.parametrize(("size", "billions"), [("600M", 0.6), ("3B", 4.2), ("7B", 7.6)])
def test_published_label_models_have_about_their_published_size(size, billions):
    config = preset(size, conditioning="label", nextline=False, nextframe=False)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(config)[1]))
    assert count / 1e9 == pytest.approx(billions, rel=0.15)


def test_every_published_size_can_be_built_for_text_and_labels():
    for size in SIZES:
        for conditioning in ("text", "label"):
            abstract_model(preset(size, conditioning=conditioning))


def test_text_features_of_padding_do_not_matter(model):
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    noisy = TextFeatures(jnp.where(text.segment_ids[..., None] > 0, text.features, 7.0), text.segment_ids)
    t = jnp.full((1, 1), 0.3)
    np.testing.assert_allclose(run(model, tokens, t, text), run(model, tokens, t, noisy), atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_attention_is_told_how_many_samples_share_a_row(count):
    told = []

    def attend(q, k, v, *, segments, **_):
        told.append(segments)
        return q

    latents, captions, times = (part[:count] for part in samples())
    graph = abstract_model(CONFIG, Parallel(attend=attend))[0]
    tokens, _ = pack([latents], row_tokens=64, **LAYOUT)
    inputs = jax.tree.map(jnp.asarray, (tokens, times[None], pack_text([captions], 16)))
    jax.eval_shape(lambda parameters: nnx.merge(graph, parameters)(*inputs), abstract_model(CONFIG)[1])
    assert set(told) == {count}


def test_rows_that_attention_would_lengthen_are_lengthened_once_for_all_layers(packed_gradient, monkeypatch):
    asked, seen = [], []

    def row_length(sizes, *, auto):
        asked.append((sizes.length, sizes.text, sizes.heads, sizes.width))
        return sizes.length + 7

    def attend(q, *arguments, segments, **settings):
        seen.append(q.shape[1])
        return plain(q, *arguments, segments=segments, **settings)

    monkeypatch.setattr("lumina_jax.models.flag_dit.row_length", row_length)
    plain = attend_with(CONFIG)
    monkeypatch.setattr("lumina_jax.models.flag_dit.attend_with", lambda config: attend)
    found = value_and_gradient(dataclasses.replace(CONFIG, unroll=2))  # not yet compiled
    assert set(asked) == {(64, 16, CONFIG.heads, CONFIG.head_width)}
    assert set(seen) == {71}
    chex.assert_trees_all_close(found[0], packed_gradient[0], atol=1e-5)
    chex.assert_trees_all_close(found[1], packed_gradient[1], atol=1e-6 * largest(found[1]), rtol=1e-4)
