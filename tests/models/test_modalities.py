"""One network, several modalities: each has its own projections, and shares all other parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    FlowConfig,
    ModalityConfig,
    ModelConfig,
    Part,
    PictureConfig,
    PreparedConfig,
    SampleConfig,
)
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.modalities import Shape
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.tokens import TextFeatures, pack, pack_text, tokens_of, unpatchify
from lumina_jax.training.step import TrainBatch, gradient, noise_and_times
from tests.compiled import compiled
from tests.models.random_models import random_parameters

MODEL = ModelConfig(
    layers=2, heads=2, width=16, patch_size=2, channels=3, text_width=6, mlp_multiple_of=8, compute_dtype="float32",
    remat="none",
    others=(
        ModalityConfig(name="video", patch_size=4, channels=3), ModalityConfig(name="sound", patch_size=1, channels=20),
    ),
)  # fmt: skip
SHAPES = [(1, 4, 6, 3), (2, 8, 4, 3), (1, 1, 5, 20)]
RANDOM = np.random.default_rng(0)
LATENTS = [RANDOM.standard_normal(shape).astype(np.float32) for shape in SHAPES]
CAPTIONS = [RANDOM.standard_normal((length, 6)).astype(np.float32) for length in (3, 4, 2)]
TIMES = np.array([0.2, 0.5, 0.9], np.float32)
run = jax.jit(FlagDiT.__call__)


def packed():
    tokens, _ = pack(
        [LATENTS], row_tokens=40, patch_size=[2, 4, 1], nextline=True, nextframe=True, modalities=[[0, 1, 2]],
        patch_values=MODEL.patch_values,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, tokens)


def test_patches_of_all_modalities_share_rows_as_wide_as_the_widest():
    assert MODEL.patch_values == 48
    tokens = packed()
    kinds = "11121112" + "12123" * 2 + "111112"
    assert "".join(map(str, tokens.kinds[0].tolist())).rstrip("0") == kinds
    assert tokens.modalities[0].tolist() == [0] * 8 + [1] * 10 + [2] * 6 + [0] * 16
    assert np.abs(tokens.patches[0, :8, 12:]).max() == 0
    assert np.abs(tokens.patches[0, 18:24, 20:]).max() == 0
    assert np.abs(tokens.patches[0, 8]).min() > 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_modality_is_computed_as_by_a_model_of_it_alone(index):
    graph, _ = abstract_model(MODEL)
    parameters = random_parameters(MODEL)
    text = jax.tree.map(jnp.asarray, pack_text([CAPTIONS], 12))
    together = run(nnx.merge(graph, parameters), packed(), jnp.asarray(TIMES)[None], text)

    modality = MODEL.modalities[index]
    single = dataclasses.replace(
        MODEL, patch_size=modality.patch_size, channels=modality.channels, modality=modality.name, others=()
    )
    single_parameters = {**parameters, "final_layer": dict(parameters["final_layer"])}
    embeddings = [parameters["patch_embedding"], *single_parameters.pop("other_embeddings").values()]
    outputs = [parameters["final_layer"]["linear"], *single_parameters["final_layer"].pop("others").values()]
    single_parameters["patch_embedding"], single_parameters["final_layer"]["linear"] = embeddings[index], outputs[index]
    model = nnx.merge(abstract_model(single)[0], single_parameters)
    tokens, grid = tokens_of(
        jnp.asarray(LATENTS[index][None]), patch_size=modality.patch_size, nextline=True, nextframe=True
    )
    alone = run(model, tokens, TIMES[None, None, index], jax.tree.map(jnp.asarray, pack_text([[CAPTIONS[index]]], 6)))

    start = [0, 8, 18][index]
    ours = together[:, start : start + grid.length, : modality.patch_values]
    np.testing.assert_allclose(
        unpatchify(ours, grid, modality.patch_size), unpatchify(alone, grid, modality.patch_size), atol=1e-5
    )
    rest = together[:, start : start + grid.length, modality.patch_values :]
    assert rest.size == 0 or np.abs(rest).max() == 0


def test_losses_and_gradients_count_each_modality_s_own_values():
    graph, _ = abstract_model(MODEL)
    parameters = random_parameters(MODEL)
    tokens, text = packed(), jax.tree.map(jnp.asarray, pack_text([CAPTIONS], 12))
    batch = TrainBatch(tokens, text, jnp.ones((1, 3)))
    drawn = noise_and_times(jax.random.key(1), batch, FlowConfig())
    compute = jax.jit(gradient, static_argnums=(0, 4, 5))
    loss, totals, gradients = compute(graph, parameters, batch, drawn, FlowConfig(), 1)
    np.testing.assert_array_equal(totals.samples, [1, 1, 1])
    np.testing.assert_allclose(np.sum(totals.losses) / 3, loss, rtol=1e-6)

    t = np.array(drawn.t)[0]
    own_time = jnp.asarray(np.repeat(t, [8, 10, 6]))[None, :, None]
    x1, x0 = tokens.patches[:, :24], drawn.x0[:, :24]
    noised = tokens._replace(patches=tokens.patches.at[:, :24].set(own_time * x1 + (1 - own_time) * x0))
    prediction = np.asarray(run(nnx.merge(graph, parameters), noised, drawn.t, text))
    for index, (start, end) in enumerate([(0, 8), (8, 18), (18, 24)]):
        values = MODEL.modalities[index].patch_values
        patches = np.array(tokens.kinds[0, start:end]) == 1
        wrong = (prediction - np.asarray(tokens.patches - drawn.x0))[0, start:end, :values][patches]
        np.testing.assert_allclose(totals.losses[index], np.mean(wrong**2), rtol=1e-4)

    sound_gradients = jax.tree.leaves(gradients["other_embeddings"][1])
    assert all(np.abs(leaf).max() > 0 for leaf in sound_gradients)


class Silence:
    """A text encoder that says nothing."""

    width, max_tokens, fingerprint = 6, 2, "silence"

    def encode(self, captions):
        return TextFeatures(np.ones((len(captions), 2, 6), np.float32), np.ones((len(captions), 2), np.int32))


def test_each_modality_is_drawn_in_its_own_shape_and_padding_changes_nothing(caplog):
    parts = (
        Part(media=PictureConfig(image_size=8)),
        Part(source=PreparedConfig(path="clips"), media=ClipConfig(image_size=8, frames=2), modality="video"),
        Part(source=PreparedConfig(path="sounds"), media=PictureConfig(image_size=8), modality="sound"),
    )
    config = Config(model=MODEL, data=DataConfig(mixture=parts))
    pipeline = Pipeline(config, abstract_model(MODEL)[0], random_parameters(MODEL), Silence())
    settings = SampleConfig(solver="euler", steps=2, guidance=2.0)
    noise = RANDOM.standard_normal((1, 1, 1, 7, 20)).astype(np.float32)
    with compiled(caplog) as programs:
        clips = pipeline(["a"], settings, seed=0, shape=Shape(8, 12, 3), batch=1, modality="video")
        pictures = pipeline(["a"], settings, seed=0, shape=Shape(8, 8), batch=1)
        sounds = pipeline.latents(noise, ["a"], settings, modality="sound")
    assert clips[0].shape == (3, 8, 12, 3)
    assert pictures[0].shape == (1, 8, 8, 3)
    assert sounds.shape == noise.shape
    assert np.isfinite(sounds).all()
    assert programs.count("draw") == 3
    with pytest.raises(ValueError, match="must be one of those of the model: image, video, sound"):
        pipeline(["a"], settings, seed=0, shape=Shape(8, 8), batch=1, modality="smell")


def test_modalities_need_names_of_their_own():
    with pytest.raises(ValueError, match="need different names"):
        dataclasses.replace(MODEL, modality="sound")
