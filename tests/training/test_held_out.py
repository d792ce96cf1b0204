"""The held-out loss: against a computation of its own, for every prediction, and whatever batches it is computed in."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import FlowConfig
from lumina_jax.data.emoji_source import EMBEDDED, EmojiSource
from lumina_jax.data.sources import open_source
from lumina_jax.flow import paths
from lumina_jax.held_out import fixed_examples, held_out_loss
from lumina_jax.modalities import modality_of
from lumina_jax.tokens import Kind, tokens_of
from lumina_jax.training.held_out import batch_errors, summary
from lumina_jax.training.step import NoiseAndTimes
from tests.generation.test_pipeline import Words, new_pipeline
from tests.training.tiny import config, label_config, packed_batch

PACKED = {"row_tokens": 64, "samples_per_row": 3}


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(label_config(data=PACKED))


@pytest.fixture(scope="module")
def found(pipeline):
    return held_out_loss(pipeline)


def by_hand(pipeline, names):
    """The error [n t] of pictures of the embedded emoji, given as (name, style, label), one sample at a time."""
    model = nnx.merge(pipeline._graph, pipeline.parameters)
    call = jax.jit(lambda x, t, label: model(tokens_of(x, patch_size=8, nextline=False, nextframe=False)[0], t, label))
    errors = np.zeros((len(names), 16))
    for row, (name, style, label) in enumerate(names):
        with np.load(EMBEDDED / f"emoji_{style}_32.npz") as arrays:
            picture = arrays["X"][arrays["names"].tolist().index(name)] / 127.5 - 1
        digest = hashlib.blake2b(f"{name}, {style}".encode(), digest_size=8).digest()
        for index in range(16):
            t = (2 * index + 1) / 32
            generator = np.random.default_rng([int.from_bytes(digest, "little"), index])
            noise = generator.standard_normal((1, 32, 32, 3), np.float32)
            x = (t * picture + (1 - t) * noise).astype(np.float32)
            output = call(x[None], jnp.full((1, 1), t), jnp.array([[label]]))
            velocity = tokens_of((picture - noise)[None], patch_size=8, nextline=False, nextframe=False)[0].patches
            errors[row, index] = np.mean((np.asarray(output, np.float64) - velocity) ** 2)
    return errors


def held_out_names():
    """Name, style and label of the held-out emoji."""
    source = EmojiSource(8, "held_out")
    records = [source[index] for index in range(len(source))]
    return [(*record.name.rsplit(", ", 1), record.label) for record in records]


def test_the_loss_is_that_of_a_computation_sample_by_sample(pipeline, found):
    errors = by_hand(pipeline, held_out_names())
    assert found.samples == len(errors) == 2
    assert found.is_held_out
    assert found.loss == pytest.approx(errors.mean(), rel=1e-5)
    assert found.times == tuple((2 * index + 1) / 32 for index in range(16))
    np.testing.assert_allclose(found.curve, errors.mean(axis=0), rtol=1e-5)
    means = errors.mean(axis=1)
    assert found.standard_error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-3)  # of two samples


@pytest.mark.parametrize("name", ["linear", "gvp", "vp", "ddpm"])
def test_one_function_has_one_loss_whatever_it_predicts_on_whatever_path(name):
    """It is given on the linear path, where x is divided by alpha + sigma."""
    path, batch = paths.path(name), packed_batch(2)
    t = jnp.array([[0.1, 0.5], [0.4, 0.8]])
    drawn = NoiseAndTimes(jax.random.normal(jax.random.key(0), batch.tokens.patches.shape), t)

    def of_token(times):
        return jnp.where(batch.tokens.segment_ids == 2, times[:, 1:], times[:, :1])[..., None]

    def errors(prediction):
        def model(tokens, told, condition):
            np.testing.assert_allclose(told, path.network_time(path.time_of_share(t)), rtol=1e-5)
            c = path.coefficients(of_token(path.time_of_share(t)))
            straight = tokens.patches / (c.alpha + c.sigma)
            velocity = jnp.sin(3 * straight) + of_token(t)
            data, noise = straight + (1 - of_token(t)) * velocity, straight - of_token(t) * velocity
            outputs = {"velocity": c.d_alpha * data + c.d_sigma * noise, "score": -noise / c.sigma}
            return (outputs | {"noise": noise, "data": data})[prediction]

        return batch_errors(model, batch, drawn, FlowConfig(path=name, prediction=prediction))

    tokens = jax.tree.map(np.asarray, batch.tokens)
    times = np.asarray(of_token(t))
    x = times * tokens.patches + (1 - times) * drawn.x0
    squares = (np.sin(3 * x) + times - (tokens.patches - drawn.x0)) ** 2
    expected = [
        [squares[row, (tokens.kinds[row] == Kind.PATCH) & (tokens.segment_ids[row] == one)].mean() for one in (1, 2)]
        for row in (0, 1)
        if (tokens.segment_ids[row] == 2).any()
    ]
    rows = [row for row in (0, 1) if (tokens.segment_ids[row] == 2).any()]
    for prediction in ("noise",) if name == "ddpm" else ("velocity", "noise", "score", "data"):
        np.testing.assert_allclose(np.asarray(errors(prediction))[rows], expected, rtol=2e-3)


def test_the_loss_depends_on_neither_batch_size_nor_packing_nor_seed(pipeline, found):
    other = pipeline.config.replace(run={"seed": 5}, optimizer={"accumulate": 2})
    for data, batch in (
        ({"row_tokens": None, "samples_per_row": 1}, 5),
        ({"row_tokens": 80, "samples_per_row": 2}, None),
    ):
        pipeline.config = other.replace(data=data)
        again = held_out_loss(pipeline, batch=batch)
        assert again.loss == pytest.approx(found.loss, rel=1e-6)
        np.testing.assert_allclose(again.curve, found.curve, rtol=1e-6)
    pipeline.config = label_config(data=PACKED)


class Mute(Words):
    def encode(self, captions):
        return super().encode(["" for _ in captions])


class Deaf(Words):
    def encode(self, captions):
        found = super().encode(captions)
        lost = np.array(["noto" in caption for caption in captions])[:, None, None]
        return found._replace(features=np.where(lost, np.float32(np.nan), found.features))


def test_captions_steer_the_prediction_and_one_without_features_is_left_out():
    pipeline = new_pipeline(config(data={"caption_dropout": 0.9, "row_tokens": 48, "samples_per_row": 2}), Words())
    found = held_out_loss(pipeline)
    pipeline.encoder = Mute()
    assert held_out_loss(pipeline).loss != pytest.approx(found.loss, rel=1e-3)
    pipeline.encoder = Deaf()
    assert (found.samples, held_out_loss(pipeline).samples) == (2, 1)


def test_captions_are_never_dropped():
    settings = config(data={"caption_dropout": 0.9})
    source, modality = open_source(settings.data, settings.model), modality_of(settings)
    examples = fixed_examples(settings, source, modality, {}, 12)
    assert len(examples) == 12
    assert all(example.caption for example in examples)


def test_samples_that_were_trained_on_are_measured_if_none_is_held_out(pipeline):
    pipeline.config = label_config(data=PACKED | {"split": "all"})
    found = held_out_loss(pipeline, samples=3)
    assert (found.samples, found.is_held_out) == (3, False)
    with pytest.raises(ValueError, match=r"no sample of these data is held out; set data\.held_out"):
        held_out_loss(pipeline, part="held_out")
    pipeline.config = label_config(data=PACKED | {"split": "all", "held_out": 0.4})
    assert held_out_loss(pipeline).is_held_out
    assert not held_out_loss(pipeline, part="trained_on").is_held_out
    pipeline.config = label_config(data=PACKED)
    with pytest.raises(ValueError, match="modality='sound' must be one of those of the model"):
        held_out_loss(pipeline, modality="sound")
    with pytest.raises(ValueError, match="at least 1 sample and 1 row, but samples=0"):
        held_out_loss(pipeline, samples=0)


def test_a_summary_is_json_in_which_what_is_not_finite_is_null():
    with np.errstate(invalid="ignore"):
        found = summary(np.array([[1.0, 3.0], [2.0, np.inf]], np.float32), is_held_out=True, modality="image")
    read = json.loads(found.to_json())
    assert read["curve"] == [1.5, None]
    assert read["loss"] is None
    assert read["times"] == [0.25, 0.75]
    assert summary(np.ones((1, 2), np.float32), is_held_out=True, modality="image").standard_error is None
