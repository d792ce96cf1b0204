"""What Flag-DiT must do whatever its weights: packing, text, grouped heads, and the ways to compute it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.presets import SIZES, preset
from lumina_jax.models.rope import RopeScaling
from lumina_jax.tokens import TextFeatures, pack, pack_text, tokens_of, unpack, unpatchify

CONFIG = ModelConfig(
    layers=3,
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


def random_model(config=CONFIG, seed=0):
    """A model in which nothing is zero, so that nothing can hide."""
    graph, state = nnx.split(FlagDiT(config, rngs=nnx.Rngs(seed)))
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(state))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    filled = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return nnx.merge(graph, jax.tree.unflatten(tree, filled))


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


def test_packed_rows_equal_separate_rows():
    model = random_model()
    latents, captions, times = samples()
    together = packed(model, latents, captions, times)
    for latent, caption, t, ours in zip(latents, captions, times, together):
        np.testing.assert_allclose(ours, alone(model, latent, caption, t), atol=1e-5)


def test_packed_rows_have_the_gradient_of_separate_rows():
    graph, state = nnx.split(random_model())
    parameters = nnx.to_pure_dict(state)
    latents, captions, times = samples()

    def loss_packed(parameters):
        outputs = packed(nnx.merge(graph, parameters), latents, captions, times)
        return sum(jnp.mean(output**2) for output in outputs)

    def loss_alone(parameters):
        model = nnx.merge(graph, parameters)
        return sum(jnp.mean(alone(model, *sample) ** 2) for sample in zip(latents, captions, times))

    ours, theirs = jax.jit(jax.grad(loss_packed))(parameters), jax.jit(jax.grad(loss_alone))(parameters)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_token_of_another_sample_changes_nothing():
    model = random_model()
    latents, captions, times = samples()
    before = packed(model, latents, captions, times)
    changed = [latents[0], latents[1] + 1, latents[2]]
    after = packed(model, changed, [captions[0], captions[1] * 2, captions[2]], times)
    for index in (0, 2):
        np.testing.assert_allclose(before[index], after[index], atol=1e-6)
    assert np.abs(before[1] - after[1]).max() > 1e-2


def test_text_encoded_ahead_gives_the_same_output():
    model = random_model()
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    np.testing.assert_allclose(run(model, tokens, t, text), run(model, tokens, t, model.encode_text(text)), atol=3e-6)


def test_the_caption_and_the_time_matter():
    model = random_model()
    latents, captions, _ = samples()
    base = alone(model, latents[0], captions[0], 0.3)
    assert np.abs(base - alone(model, latents[0], captions[1], 0.3)).max() > 1e-2
    assert np.abs(base - alone(model, latents[0], captions[0], 0.7)).max() > 1e-2


def test_a_new_model_predicts_zero_and_ignores_its_text():
    model = FlagDiT(CONFIG, rngs=nnx.Rngs(0))
    latents, captions, _ = samples()
    assert not np.any(alone(model, latents[0], captions[0], 0.5))
    assert not np.any(model.blocks.text.gate[...])


def value_and_gradient(config):
    latents, captions, times = samples()
    graph, state = nnx.split(random_model(config))

    def loss(parameters):
        outputs = packed(nnx.merge(graph, parameters), latents, captions, times)
        return sum(jnp.sum(output**2) for output in outputs)

    return jax.jit(jax.value_and_grad(loss))(nnx.to_pure_dict(state))


def test_ways_to_compute_give_one_result_and_one_gradient():
    ours = value_and_gradient(CONFIG)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(ours))
    for change in ({"remat": "full"}, {"remat": "dots"}, {"unroll": 3}, {"attention": "reference"}):
        theirs = value_and_gradient(dataclasses.replace(CONFIG, **change))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest, err_msg=str(change))


def test_grouped_key_heads_equal_repeated_ones():
    grouped = random_model()
    config = dataclasses.replace(CONFIG, kv_heads=None, qk_norm=False)
    grouped = random_model(dataclasses.replace(config, kv_heads=2))
    full = random_model(config)

    def repeated(kernel):
        split = kernel.reshape(*kernel.shape[:-1], 2, 8)
        return jnp.repeat(split, 2, axis=-2).reshape(*kernel.shape[:-1], 32)

    graph, state = nnx.split(full)
    values, source = nnx.to_pure_dict(state), nnx.to_pure_dict(nnx.state(grouped))
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


def test_proportional_attention_at_the_base_length_changes_nothing():
    model = random_model()
    latents, captions, _ = samples()
    tokens, grid = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    plain = run(model, tokens, t, text)
    np.testing.assert_allclose(run(model, tokens, t, text, base_length=grid.length), plain, atol=1e-5)
    assert np.abs(run(model, tokens, t, text, base_length=3) - plain).max() > 1e-3


def test_rotary_scalings_may_be_traced_and_change_the_output():
    model = random_model()
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    t = jnp.full((1, 1), 0.3)
    scaled = [run(model, tokens, t, text, rope=RopeScaling(1.0, ntk)) for ntk in (1.0, 4.0)]
    np.testing.assert_allclose(scaled[0], run(model, tokens, t, text), atol=1e-5)
    assert np.abs(scaled[1] - scaled[0]).max() > 1e-3


def test_bfloat16_stays_near_float32():
    latents, captions, _ = samples()
    exact = alone(random_model(), latents[0], captions[0], 0.4)
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


def test_text_features_of_padding_do_not_matter():
    model = random_model()
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    text = jax.tree.map(jnp.asarray, pack_text([[captions[0]]], 6))
    noisy = TextFeatures(jnp.where(text.segment_ids[..., None] > 0, text.features, 7.0), text.segment_ids)
    t = jnp.full((1, 1), 0.3)
    np.testing.assert_allclose(run(model, tokens, t, text), run(model, tokens, t, noisy), atol=1e-6)
