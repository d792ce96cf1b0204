"""The held-out loss: against a computation of its own, for every prediction, and whatever batches it is computed in."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import EmojiConfig, FlowConfig, ModalityConfig, Part
from lumina_jax.data.emoji_source import EMBEDDED, EmojiSource
from lumina_jax.data.held_out import digest_of_name
from lumina_jax.data.sources import open_held_out, open_source
from lumina_jax.flow import paths
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.held_out import fixed_examples, held_out_loss, held_out_losses
from lumina_jax.modalities import load_autoencoders, modality_of
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.tokens import Kind, tokens_of
from lumina_jax.training.held_out import batch_errors, fixed_noise, summary
from lumina_jax.training.state import split_model
from lumina_jax.training.step import NoiseAndTimes
from tests.generation.test_pipeline import Words, new_pipeline
from tests.training.test_latent_run import latent_config
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
    assert found.middle == pytest.approx(errors[:, 2:14].mean(), rel=1e-5)  # 5/32 to 27/32
    means = errors.mean(axis=1)
    assert found.standard_error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-3)  # of two samples


CONVERSIONS = {
    "velocity": lambda path, x0, x1, x, t: (lambda c: c.d_alpha * x1 + c.d_sigma * x0)(path.coefficients(t)),
    "noise": lambda path, x0, x1, x, t: x0,
    "score": lambda path, x0, x1, x, t: -x0 / path.coefficients(t).sigma,
    "data": lambda path, x0, x1, x, t: x1,
}
"""What a network that believes in noise x0 and data x1 predicts at x and t, by definition."""


@pytest.mark.parametrize("name", ["linear", "gvp", "vp", "ddpm"])
def test_one_belief_has_one_loss_on_every_path_whatever_is_predicted(name):
    """A network that believes in the noise e(x) and in the data that go with it, on each path and prediction."""
    path, batch = paths.path(name), packed_batch(2)
    t = jnp.array([[0.1, 0.5], [0.4, 0.8]])
    drawn = NoiseAndTimes(jax.random.normal(jax.random.key(0), batch.tokens.patches.shape), t)
    believed = jnp.sin(5 * drawn.x0)

    def errors(prediction):
        def predict(tokens, t, condition):
            times = path.time_of_share(drawn.t)
            np.testing.assert_allclose(t, path.network_time(times))
            token_times = jnp.where(tokens.segment_ids == 2, times[:, 1:], times[:, :1])[..., None]
            c = path.coefficients(token_times)
            data = (tokens.patches - c.sigma * believed) / c.alpha
            return CONVERSIONS[prediction](path, believed, data, tokens.patches, token_times)

        return batch_errors(predict, batch, drawn, FlowConfig(path=name, prediction=prediction))

    row = jax.tree.map(lambda array: np.asarray(array[1]), batch.tokens)
    patches = (row.kinds == Kind.PATCH) & (row.segment_ids == 1)  # of the sample at t = 0.4
    # From x = t x1 + (1 - t) x0, an error of the noise is one of the data of -(1 - t) / t times its size.
    by_numpy = np.mean((np.asarray(believed - drawn.x0)[1][patches] / 0.4) ** 2)
    for prediction in ("noise",) if name == "ddpm" else CONVERSIONS:
        assert float(errors(prediction)[1, 0]) == pytest.approx(by_numpy, rel=2e-4)


def test_the_loss_depends_on_neither_batch_size_nor_packing_nor_seed(pipeline, found):
    other = pipeline.config.replace(run={"seed": 5}, optimizer={"accumulate": 2})
    for data, batch in (
        ({"row_tokens": None, "samples_per_row": 1}, 5),
        ({"row_tokens": 40, "samples_per_row": 3}, None),
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


@pytest.mark.slow
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


def zero_output(settings, autoencoders=None):
    """A pipeline of which the network predicts 0, as every new one does."""
    graph, parameters = split_model(FlagDiT(settings.model, rngs=nnx.Rngs(0)))
    return Pipeline(settings, graph, parameters, None, autoencoders)


def velocity_squares(settings, name, autoencoders):
    """The mean square over the values of samples, times and noise of x1 - x0: the loss of a network that predicts 0."""
    parts = [part for part in settings.data.parts if settings.model.modality_of(part.modality).name == name]
    squares = []
    for part in parts:
        modality = modality_of(settings, name)
        for example in fixed_examples(settings, open_held_out(part, settings.model), modality, autoencoders, 99):
            for time in range(16):
                noise = fixed_noise(digest_of_name(example.name), time, example.latents.shape)
                squares.append(np.mean((example.latents - noise).astype(np.float64) ** 2))
    return np.mean(squares)


@pytest.mark.slow
def test_each_modality_has_its_loss_over_the_values_of_its_patches():
    plain = label_config().model
    settings = label_config(
        model=plain.replace(others=(ModalityConfig(name="coarse", patch_size=16, channels=3),)),
        data={
            "mixture": (
                Part(source=EmojiConfig(emoji_names=8)),
                Part(source=EmojiConfig(emoji_names=16), modality="coarse"),
            ),
            "row_tokens": 24,
            "samples_per_row": 3,
        },
    )
    found = held_out_losses(zero_output(settings))
    assert {name: (one.samples, one.modality) for name, one in found.items()} == {
        "image": (2, "image"),
        "coarse": (4, "coarse"),
    }
    for name, one in found.items():
        assert one.loss == pytest.approx(velocity_squares(settings, name, {}), rel=1e-5)


@pytest.mark.slow
def test_latents_of_the_cache_are_measured_the_same_each_time(tmp_path):
    settings = latent_config(tmp_path)
    autoencoders = load_autoencoders(settings)
    found = held_out_loss(zero_output(settings, autoencoders))
    assert found == held_out_loss(zero_output(settings, autoencoders))
    assert found.loss == pytest.approx(velocity_squares(settings, "image", autoencoders), rel=1e-5)


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
