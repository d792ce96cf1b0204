"""The splits of a prepared folder, and its further captions, of which training draws one at each visit."""

import json

import numpy as np
import pytest

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config import Config, DataConfig, PictureConfig, PreparedConfig, RunConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import captions, described
from lumina_jax.data.order import EndlessSource
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.prepared import (
    CARD,
    PreparedFile,
    PreparedSample,
    PreparedSource,
    captions_file,
    write_prepared,
)
from lumina_jax.data.sources import open_held_out, open_source
from lumina_jax.held_out import fixed_examples
from lumina_jax.modalities import modality_of_source
from tests.data.numbered import TEXT, assert_same, take
from tests.data.test_prepared import CARD_OF_TEST


def names_of(source):
    return [source[index].name for index in range(len(source))]


def gray(count):
    """Pictures of which every third is held out, and captions of two kinds for most of them."""
    for index in range(count):
        pixels = np.full((1, 8, 8, 3), index, np.uint8)
        split = "held_out" if index % 3 == 2 else "train"
        yield PreparedSample(f"{index}", f"gray {index}, noto style", pixels, split=split, subject=f"gray {index}")
    yield captions_file("tags", {f"gray {index}": [f"dull {index}", f"dim {index}"] for index in range(1, count)})
    yield captions_file("de", {f"gray {index}": [f"grau {index}"] for index in range(count)})
    yield PreparedFile("NOTICE.md", "free")


@pytest.fixture
def data(tmp_path):
    write_prepared(tmp_path / "grays", gray(9), CARD_OF_TEST)
    source = PreparedConfig(path=str(tmp_path / "grays"))
    return DataConfig(source=source, media=PictureConfig(image_size=8), batch_rows=2, prefetch=2)


def test_a_prepared_folder_is_read_split_by_split(data):
    assert names_of(open_source(data, TEXT)) == ["0", "1", "3", "4", "6", "7"]
    assert names_of(open_held_out(data, TEXT)) == ["2", "5", "8"]
    assert names_of(open_source(data.replace(split="all"), TEXT)) == [f"{index}" for index in range(9)]
    assert open_held_out(data.replace(split="all"), TEXT) is None
    with pytest.raises(ValueError, match=r"which has train, held_out, all"):
        open_source(data.replace(split="unknown"), TEXT)
    with pytest.raises(ValueError, match=r"no captions 'fr'; it has de, tags"):
        open_source(data.replace(captions=("fr",)), TEXT)


def test_a_folder_without_splits_is_read_and_resumed_as_before(tmp_path):
    write_prepared(tmp_path / "one", [PreparedSample("a", "a", np.zeros((1, 8, 8, 3), np.uint8))], CARD_OF_TEST)
    source = PreparedSource(tmp_path / "one")
    assert source.contents == described(1, (tmp_path / "one" / CARD).read_text())
    assert repr(source) == f"PreparedSource({str(tmp_path / 'one')!r})"
    assert source[0].other_captions == ()
    assert open_held_out(DataConfig(source=PreparedConfig(path=str(tmp_path / "one"))), TEXT) is None


def worded(data, seed, indices):
    """The captions of a stream at these indices."""
    source = EndlessSource(open_source(data, TEXT), seed)
    prepare = Preparation(modality_of_source(data, TEXT), TEXT, seed)
    return [prepare(source[index])[1].caption for index in indices]


def test_one_of_the_captions_is_drawn_at_each_visit(data):
    visits = range(160)
    several = data.replace(captions=("tags", "de"))
    first, drawn = worded(data, 0, visits), worded(several, 0, visits)
    assert [caption == "" for caption in first] == [caption == "" for caption in drawn]  # the same ones are dropped
    of_four = {word for before, word in zip(first, drawn) if before == "gray 4, noto style"}
    assert of_four == {"gray 4, noto style", "dull 4, noto style", "dim 4, noto style", "grau 4, noto style"}
    kinds = [word.split()[0] for before, word in zip(first, drawn) if before and not before.startswith("gray 0")]
    shares = [sum(kind in names for kind in kinds) / len(kinds) for names in (("gray",), ("dull", "dim"), ("grau",))]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.12)
    assert worded(several, 0, visits[100:120]) == drawn[100:120]
    assert worded(several, 1, visits[:20]) != drawn[:20]


class Hashed:
    """Features that differ between captions; those of captions that the source does not list are missing."""

    max_tokens = 2

    def __init__(self, source):
        self._known = captions(source)

    def __getitem__(self, caption):
        return np.full((1, 3), self._known.index(caption), np.float32)


def test_a_stream_with_drawn_captions_resumes_bit_for_bit(data):
    data = data.replace(captions=("tags", "de"))
    source = open_source(data, TEXT)
    with Stream(source, data, TEXT, seed=3, features=Hashed(source)) as stream:
        take(stream, 4)
        state = stream.state()
        rest = take(stream, 6)
        assert not stream.bad
    with Stream(source, data, TEXT, seed=3, features=Hashed(source)) as again:
        again.restore(json.loads(json.dumps(state)))
        assert_same(take(again, 6), rest)


def test_models_are_measured_with_the_first_caption(data):
    data = data.replace(captions=("tags", "de"))
    config = Config(model=TEXT, data=data, run=RunConfig(name="measured"))
    examples = fixed_examples(config, open_held_out(data, TEXT), modality_of_source(data, TEXT), {}, 9)
    assert sorted(example.caption for example in examples) == [f"gray {index}, noto style" for index in (2, 5, 8)]
    found = true_samples(config, limit=9)
    assert found.prompts == [f"gray {index}, noto style" for index in range(9)]
    assert found.is_held_out.tolist() == [index % 3 == 2 for index in range(9)]
    assert true_samples(config, limit=9, split="held_out").prompts == [found.prompts[index] for index in (2, 5, 8)]
    with pytest.raises(ValueError, match="which has train, held_out, all"):
        true_samples(config, limit=9, split="unknown")
