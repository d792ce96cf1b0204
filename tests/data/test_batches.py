"""The stream: its order, packing, resumption, and what it does with samples that cannot be used."""

import itertools
import json
import logging

import numpy as np
import pytest
from PIL import Image

from lumina_jax.config import DataConfig, ModelConfig, PictureConfig
from lumina_jax.data.batches import Stream, row_tokens
from lumina_jax.data.emoji_source import EmojiSource
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.order import shuffled
from lumina_jax.tokens import Grid, unpatchify
from tests.data.numbered import LABEL, PACKED, PATCH, TEXT, Lookup, Numbered, assert_same, labels_of, small, take

# order


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97])
def test_the_order_is_a_permutation_that_differs_by_key(count):
    orders = [[shuffled(position, count, f"0 {epoch}") for position in range(count)] for epoch in range(5)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 10 or len({tuple(order) for order in orders}) == 5


def test_the_order_puts_every_sample_everywhere_equally_often():
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), [shuffled(position, 10, str(epoch)) for position in range(10)]] += 1
    statistic = ((counts - 200) ** 2 / 200).sum()
    assert statistic < 135  # 99.9 % of chi-squared with 81 degrees of freedom is below 126


def test_each_epoch_holds_every_sample_once_in_another_order():
    with Stream(Numbered(12), small(), LABEL, seed=1) as stream:
        labels = labels_of(take(stream, 9))
    epochs = [labels[:12], labels[12:24], labels[24:]]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_seed_decides_everything():
    def first(seed):
        with Stream(EmojiSource(48, "train"), PACKED, TEXT, seed=seed, features=Lookup()) as stream:
            return next(stream)

    assert_same(one := first(5), first(5))
    assert not np.array_equal(one.tokens.patches, first(6).tokens.patches)


# contents


def test_a_label_batch_holds_the_pictures_of_its_labels():
    with Stream(Numbered(12), small(), LABEL, seed=0) as stream:
        batch = next(stream)
    assert batch.text is None
    assert batch.tokens.patches.shape == (4, 4, 48)
    assert batch.present.tolist() == [[1]] * 4
    expected = np.broadcast_to(batch.labels[:, :, None] / 127.5 - 1, batch.tokens.patches.shape)
    np.testing.assert_allclose(batch.tokens.patches, expected, atol=1e-6)


def test_captions_of_a_row_follow_each_other_as_its_samples_do():
    data = small(row_tokens=13, samples_per_row=3, batch_rows=2)  # 6 tokens a sample, so the third never fits
    with Stream(Numbered(12), data, TEXT, seed=0, features=Lookup()) as stream:
        batch = next(stream)
    assert batch.present.tolist() == [[1, 1, 0]] * 2
    assert batch.tokens.segment_ids.tolist() == [[1] * 6 + [2] * 6 + [0]] * 2
    assert batch.text.segment_ids.tolist() == [[1] * 4 + [2] * 4 + [0] * 7] * 2
    assert batch.text.features.shape == (2, 15, 3)
    for row in range(2):
        for segment in (1, 2):
            gray = (batch.tokens.patches[row][batch.tokens.segment_ids[row] == segment][0, 0] + 1) * 127.5
            length = batch.text.features[row][batch.text.segment_ids[row] == segment][0, 0]
            assert length == len(f"caption {round(float(gray))}")


def test_without_features_there_is_no_text():
    with Stream(Numbered(12), small(), TEXT, seed=0) as stream:
        assert next(stream).text is None


def test_a_sample_whose_caption_has_no_features_is_bad_and_the_others_are_used():
    class Incomplete(Lookup):
        def __getitem__(self, caption):
            if caption == "caption 2":
                raise KeyError(f"{caption!r} was not encoded")
            return super().__getitem__(caption)

    with Stream(Numbered(4), small(), TEXT, seed=0, features=Incomplete()) as stream:
        assert all(batch.present.all() for batch in take(stream, 3))
        assert stream.bad == {"sample 2": "'caption 2' was not encoded"}


def test_mixed_sizes_are_packed_and_every_picture_can_be_read_back():
    shapes, data = set(), small(image_size=32, crop="buckets", row_tokens=250, samples_per_row=5)
    sizes = (30, 90), (90, 40)
    tall, wide = (Stream(Numbered(30, size=size), data, LABEL, seed=0) for size in sizes)
    with tall, wide:
        batches = take(tall, 4) + take(wide, 4)
    for batch, row in itertools.product(batches, range(4)):
        segments, positions = batch.tokens.segment_ids[row], batch.tokens.positions[row]
        assert set(segments[segments > 0]) == set(range(1, int(batch.present[row].sum()) + 1))
        assert (np.diff(segments[segments > 0]) >= 0).all()
        for segment, label in enumerate(batch.labels[row][batch.present[row] > 0], start=1):
            of_sample = segments == segment
            rows, columns = (positions[of_sample][:, 2:].max(axis=0) + 1).tolist()
            assert 48 <= rows * columns <= 64
            grid = Grid(1, rows, columns, nextline=False, nextframe=True)
            picture = unpatchify(batch.tokens.patches[row][of_sample][None], grid, PATCH)
            np.testing.assert_allclose((picture + 1) * 127.5, label, atol=1e-4)
            shapes.add(picture.shape)
    assert len(shapes) == 8
    assert np.mean([batch.tokens.segment_ids > 0 for batch in batches]) > 0.8


def test_the_oldest_waiting_sample_is_always_in_the_next_batch():
    with Stream(EmojiSource(48, "train"), PACKED, TEXT, seed=0) as stream:
        for _ in range(10):
            next(stream)
            before = stream.state()["waiting"]
            next(stream)
            assert not before or before[0] not in stream.state()["waiting"]


def test_rows_hold_the_longest_bucket_unless_told_otherwise():
    assert row_tokens(DataConfig(media=PictureConfig(image_size=32)), TEXT) == 8 * 9
    assert row_tokens(DataConfig(media=PictureConfig(image_size=32)), LABEL) == 8 * 8
    assert row_tokens(DataConfig(media=PictureConfig(image_size=32, crop="buckets")), TEXT) == 16 * 5
    assert row_tokens(DataConfig(media=PictureConfig(image_size=32), row_tokens=200, samples_per_row=2), TEXT) == 200
    with pytest.raises(ValueError, match="72 tokens"):
        row_tokens(DataConfig(media=PictureConfig(image_size=32), row_tokens=71), TEXT)


def test_captions_and_labels_are_dropped_at_the_stated_share():
    data = small(caption_dropout=0.25, batch_rows=40)
    with Stream(Numbered(40), data, LABEL, seed=0) as stream:
        labels = np.array(labels_of(take(stream, 10)))
    assert 0.17 < (labels == LABEL.classes).mean() < 0.33
    with Stream(Numbered(40), data, TEXT, seed=0, features=Lookup()) as stream:
        lengths = np.concatenate([batch.text.features[:, 0, 0] for batch in take(stream, 2)])
    np.testing.assert_array_equal(lengths == 0, (labels == LABEL.classes)[: len(lengths)])


# bad samples


@pytest.fixture
def folder(tmp_path):
    """Fifty pictures, of which three are broken and two have an empty caption."""
    lines = []
    for index in range(50):
        name = f"{index:02}.png"
        Image.new("RGB", (20 + index, 30), (index, 0, 0)).save(tmp_path / name)
        lines.append(json.dumps({"image": name, "caption": "" if index in (7, 40) else f"picture {index}"}))
    (tmp_path / "03.png").write_bytes(b"nothing")
    (tmp_path / "11.png").write_bytes((tmp_path / "11.png").read_bytes()[:60])
    (tmp_path / "25.png").unlink()
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return FolderSource(tmp_path)


def test_a_folder_with_five_bad_samples_names_exactly_these_once(folder, caplog):
    with (
        caplog.at_level(logging.WARNING),
        Stream(folder, small(batch_rows=10, bad_samples=5), TEXT, seed=0, features=Lookup()) as stream,
    ):
        assert sum(batch.present.sum() for batch in take(stream, 10)) == 100
    assert sorted(stream.bad) == ["03.png", "07.png", "11.png", "25.png", "40.png"]
    assert "not a picture" in stream.bad["03.png"]
    assert "empty" in stream.bad["07.png"]
    assert "no file" in stream.bad["25.png"]
    assert sorted(record.args[0] for record in caplog.records) == sorted(stream.bad)


def test_one_bad_sample_beyond_the_limit_is_an_error(folder):
    with (
        Stream(folder, small(batch_rows=10, bad_samples=4), TEXT, seed=0) as stream,
        pytest.raises(ValueError, match=r"5 samples .* data\.bad_samples=4.*png"),
    ):
        take(stream, 10)


def test_an_epoch_without_one_good_sample_is_an_error_at_once():
    with Stream(Numbered(6, broken=range(6)), small(), LABEL, seed=0) as stream:
        with pytest.raises(ValueError, match="no usable sample"):
            next(stream)
        assert stream.state()["position"] <= 8


def test_one_good_sample_among_many_bad_ones_is_enough():
    with Stream(Numbered(30, broken=range(29)), small(), LABEL, seed=0) as stream:
        assert labels_of(take(stream, 3)) == [29] * 12


def test_labels_out_of_range_and_tiny_pictures_are_bad_samples():
    with Stream(Numbered(44), small(), LABEL, seed=0) as stream:
        take(stream, 11)
        assert sorted(stream.bad) == ["sample 40", "sample 41", "sample 42", "sample 43"]
    with (
        Stream(Numbered(3, size=(3, 9)), small(), LABEL, seed=0) as stream,
        pytest.raises(ValueError, match="smaller than a patch"),
    ):
        next(stream)


def test_settings_that_do_not_fit_together_are_refused():
    for rows in ([4], [1, 1], []):
        with pytest.raises(ValueError, match="different rows"):
            Stream(Numbered(3), small(), LABEL, seed=0, rows=rows)
    with pytest.raises(ValueError, match="channels"):
        Stream(Numbered(3), small(), ModelConfig(layers=1, heads=2, width=8), seed=0)
    with pytest.raises(ValueError, match="no sample"):
        Stream(Numbered(0), small(), LABEL, seed=0)
