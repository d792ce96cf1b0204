"""Latents of pictures: what the cache holds, when it is made anew, and what training draws from it."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numbered import LABEL, Numbered, assert_same, small, take
from PIL import Image

from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data import latents
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import BadSample, LatentDistribution, Record
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.latents import encode_pictures, latent_data
from lumina_jax.data.preparation import Preparation, possible_sizes
from lumina_jax.encoders.image_vae import ImageVae, load_image_vae
from lumina_jax.tokens import Kind, pixels_to_unit

GOLDEN = Path(__file__).parent.parent / "golden" / "vae_tiny"
SIDE, FACTOR = 16, 4
DATA = DataConfig(source="folder", path="pictures", image_size=SIDE, batch_rows=2, caption_dropout=0.0, prefetch=2)
MODEL = ModelConfig(layers=1, heads=2, width=8, channels=4, patch_size=2, text_width=3)
PICTURES = 7


class CountingVae(ImageVae):
    """An autoencoder that remembers how many batches it has encoded."""

    def __init__(self, loaded):
        self.__dict__ = {**loaded.__dict__, "batches": 0}

    def encode(self, pixels):
        self.batches += 1
        return super().encode(pixels)


@pytest.fixture(autouse=True)
def few_samples_in_a_part(monkeypatch):
    monkeypatch.setattr(latents, "PART_SAMPLES", 3)
    monkeypatch.setattr(latents, "BATCH_PIXELS", 2 * SIDE**2)


@pytest.fixture(scope="module")
def vae():
    return CountingVae(load_image_vae(GOLDEN))


@pytest.fixture
def source(tmp_path):
    """Seven pictures of which the fifth is broken."""
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for index in range(PICTURES):
        write_picture(folder / f"{index}.png", random)
        lines.append(json.dumps({"image": f"{index}.png", "caption": f"picture {index}", "label": index}))
    (folder / "4.png").write_bytes(b"nothing")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return FolderSource(folder)


def write_picture(file, random):
    Image.fromarray(random.integers(0, 255, (SIDE + 4, SIDE + 9, 3), np.uint8)).save(file)


def encode(source, vae, tmp_path, data=DATA, **settings):
    return encode_pictures(source, vae, data, MODEL, tmp_path / "cache", **settings)


def parts(tmp_path):
    [folder] = (tmp_path / "cache").iterdir()
    return sorted(folder.iterdir())


def cropped(source, index):
    """The picture as training on pixels crops it."""
    prepare = Preparation(DATA, LABEL, 0, ())
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


def test_a_broken_picture_stays_a_bad_sample_with_its_reason(source, vae, tmp_path):
    assert encode(source, vae, tmp_path)[4] == BadSample("4.png", "the file is not a picture, or its header is broken")


def test_the_second_call_encodes_nothing(source, vae, tmp_path):
    seen, before = [], vae.batches
    first = encode(source, vae, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert vae.batches == before + 2 + 1 + 1
    second = encode(source, vae, tmp_path, progress=lambda *_: pytest.fail("nothing is new"))
    assert vae.batches == before + 4
    np.testing.assert_array_equal(first[6].media.mean, second[6].media.mean)


def test_an_interrupted_call_goes_on_where_it_stopped(source, vae, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(source, vae, tmp_path, progress=interrupt)
    assert len(parts(tmp_path)) == 1
    seen = []
    encode(source, vae, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [6, 7]


def test_processes_begin_at_different_places_and_encode_nothing_twice(source, vae, tmp_path):
    began = []

    def second_process(done, total):
        if not began:  # while the first has one part, the other does the rest
            began.append(vae.batches)
            encode(source, vae, tmp_path, shard=(1, 2))

    before = vae.batches
    encode(source, vae, tmp_path, progress=second_process)
    assert vae.batches == before + 4


def test_a_changed_picture_is_encoded_anew_with_its_neighbours_only(source, vae, tmp_path):
    before = encode(source, vae, tmp_path)
    old = [before[index].media.mean for index in range(3)]
    write_picture(source.path.parent / "1.png", np.random.default_rng(7))
    seen = []
    after = encode(source, vae, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [3]
    assert [np.array_equal(after[index].media.mean, mean) for index, mean in enumerate(old)] == [True, False, True]


def cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damaged_latents_are_bad_samples_and_encoded_anew_by_the_next_run(source, vae, tmp_path, damage):
    encoded = encode(source, vae, tmp_path)
    before = [encoded[index].media.mean for index in range(3)]
    damage(encoded._parts[0])
    bad = [encoded[index] for index in range(3) if isinstance(encoded[index], BadSample)]
    assert bad
    assert all("damaged" in sample.reason for sample in bad)
    seen = []
    again = encode(source, vae, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [3]
    for index, mean in enumerate(before):
        np.testing.assert_array_equal(again[index].media.mean, mean)
    assert len(parts(tmp_path)) == 3


def test_another_size_or_another_autoencoder_has_a_folder_of_its_own(source, vae, tmp_path):
    encode(source, vae, tmp_path)
    encode(source, vae, tmp_path, data=latent_data(DATA, 2))
    other = CountingVae(vae)
    other.fingerprint = "another"
    encode(source, other, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_buckets_keep_the_size_that_fits_best_and_need_no_other_row(source, vae, tmp_path):
    data = DataConfig(image_size=32, crop="buckets", batch_rows=2, caption_dropout=0.0, prefetch=2)
    encoded = encode_pictures(Numbered(5, size=(90, 40)), vae, data, MODEL, tmp_path)
    of_latents = latent_data(data, FACTOR)
    assert of_latents.image_size == 8
    height, width = encoded[0].media.mean.shape[1:3]
    assert (width, height) in possible_sizes(of_latents, MODEL)
    assert (width, height) == (10, 4)  # of what has at most 4 x 4 patches, nearest to 90 : 40
    with Stream(encoded, of_latents, MODEL, seed=0) as stream:
        assert next(stream).present.sum() == 2


def test_each_visit_draws_anew_and_the_seed_decides_what(source, vae, tmp_path):
    encoded, data = encode(source, vae, tmp_path), latent_data(DATA, FACTOR)
    prepare = Preparation(data, MODEL, 0, tuple(possible_sizes(data, MODEL)))
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
    encoded, data = encode(source, vae, tmp_path), latent_data(DATA, FACTOR)
    copy = pickle.loads(pickle.dumps(encoded))
    streams = [Stream(each, data, MODEL, seed=3) for each in (encoded, copy)]
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
    records = [Record(f"{place}", clip, "moving", place) for place, clip in enumerate(clips)]
    data = dataclasses.replace(DATA, frames=3)
    encoded = encode_pictures(records, vae, data, MODEL, tmp_path)
    for index, clip in enumerate(clips):
        expected = vae.encode(pixels_to_unit(clip[::2])).mean * 0.13025
        np.testing.assert_allclose(encoded[index].media.mean, expected, atol=1e-5)
    of_latents = latent_data(data, FACTOR)
    with Stream(encoded, of_latents, MODEL, seed=0) as stream:
        kinds = next(stream).tokens.kinds[0]
    assert (kinds == Kind.NEXTFRAME).sum() == 3
