"""Latents of pictures: what the cache holds, and what training draws from it."""

import pickle

import numpy as np
import pytest

from lumina_jax.config import DataConfig, PictureConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import Record
from lumina_jax.data.preparation import Preparation
from lumina_jax.modalities import modality_of_source
from lumina_jax.modalities.decoding.media import LatentDistribution
from lumina_jax.tokens import Kind, pixels_to_unit
from tests.data.cached_pictures import DATA, FACTOR, MODEL, PICTURES, SIDE, encode, encode_pictures, in_latents
from tests.data.numbered import LABEL, Numbered, assert_same, small, take

pytestmark = pytest.mark.usefixtures("few_samples_in_a_part")


def cropped(source, index):
    """The picture as training on pixels crops it."""
    prepare = Preparation(modality_of_source(DATA, LABEL), LABEL, 0)
    return prepare((index, source[index]))[1].latents


def test_cached_latents_are_those_of_the_cropped_picture_in_the_trained_scale(source, vae, tmp_path):
    encoded = encode(source, vae, tmp_path)
    assert len(encoded) == PICTURES
    for index in (0, 3, 6):
        record = encoded[index]
        mean, log_variance = (np.asarray(half) for half in vae.encode(cropped(source, index)))
        assert record.media.mean.shape == (1, SIDE // FACTOR, SIDE // FACTOR, 4)
        np.testing.assert_allclose(record.media.mean, mean * 0.13025, atol=1e-6)
        np.testing.assert_allclose(record.media.deviation, np.exp(log_variance / 2) * 0.13025, atol=1e-6)
        assert (record.caption, record.label) == (f"picture {index}", index)


def test_buckets_keep_the_size_that_fits_best_and_need_no_other_row(source, vae, tmp_path):
    data = DataConfig(media=PictureConfig(image_size=32, crop="buckets"), batch_rows=2, caption_dropout=0.0, prefetch=2)
    encoded = encode_pictures(Numbered(5, size=(90, 40)), vae, data, MODEL, tmp_path)
    pictures = in_latents(data)
    height, width = encoded[0].media.mean.shape[1:3]
    assert (1, height, width) in pictures.latent_extents
    assert (width, height) == (10, 4)  # of what has at most 4 x 4 patches, nearest to 90 : 40
    with Stream(encoded, data, MODEL, seed=0, modalities=[pictures]) as stream:
        assert next(stream).present.sum() == 2


def test_each_visit_draws_anew_and_the_seed_decides_what(source, vae, tmp_path):
    encoded, prepare = encode(source, vae, tmp_path), Preparation(in_latents(), MODEL, 0)
    one, other, same = (prepare((visit, encoded[2]))[1].latents for visit in (2, 9, 2))
    assert one.shape == (1, 4, 4, 4)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    distribution = encoded[2].media
    many = np.stack([prepare((visit, encoded[2]))[1].latents for visit in range(2000)])
    standardised = (many - distribution.mean) / distribution.deviation
    assert np.abs(standardised.mean(axis=0)).max() < 0.12
    assert np.abs(standardised.std(axis=0) - 1).max() < 0.1


def test_a_stream_of_latents_survives_pickling_to_workers(source, vae, tmp_path):
    encoded = encode(source, vae, tmp_path)
    copy = pickle.loads(pickle.dumps(encoded))
    streams = [Stream(each, DATA, MODEL, seed=3, modalities=[in_latents()]) for each in (encoded, copy)]
    first, second = (take(stream, 4) for stream in streams)
    assert_same(first, second)
    assert first[0].tokens.patches.shape == (2, 6, 16)
    assert streams[0].bad.keys() <= {"4.png"}
    for stream in streams:
        stream.close()


def test_pixels_for_a_model_of_latents_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"model.channels=4; set it to 3, or name an autoencoder in vae\.path"):
        Stream(Numbered(3), small(), MODEL, seed=0)


def test_records_in_memory_are_told_apart_by_their_content(vae, tmp_path):
    seen = []
    for count in (4, 4, 5):
        encode_pictures(Numbered(count), vae, DATA, MODEL, tmp_path, progress=lambda done, total: seen.append(total))
    assert seen == [4, 4, 5]  # both parts, nothing, and the last part, which has grown
    record = encode_pictures(Numbered(4), vae, DATA, MODEL, tmp_path)[3]
    assert isinstance(record.media, LatentDistribution)
    expected = vae.encode(pixels_to_unit(np.full((1, SIDE, SIDE, 3), 3, np.uint8))).mean * 0.13025
    np.testing.assert_allclose(record.media.mean, expected, atol=1e-5)


def test_frames_of_a_clip_are_encoded_one_by_one(vae, tmp_path):
    clips = np.random.default_rng(0).integers(0, 255, (3, 6, SIDE, SIDE, 3), np.uint8)
    records = [Record(f"{index}", clip, "moving", index) for index, clip in enumerate(clips)]
    data = DATA.replace(media="clips", frames=3)
    encoded = encode_pictures(records, vae, data, MODEL, tmp_path)
    for index, clip in enumerate(clips):
        expected = vae.encode(pixels_to_unit(clip[::2])).mean * 0.13025
        np.testing.assert_allclose(encoded[index].media.mean, expected, atol=1e-5)
    with Stream(encoded, data, MODEL, seed=0, modalities=[in_latents(data)]) as stream:
        kinds = next(stream).tokens.kinds[0]
    assert (kinds == Kind.NEXTFRAME).sum() == 3
