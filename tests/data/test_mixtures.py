"""Mixtures: which sample comes from which source, and that a mixture resumes like one source."""

import dataclasses

import numpy as np
import pytest

from lumina_jax.config import Config, DataConfig, ModalityConfig, Part, PictureConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.sources import FirstSamples, MixedSource
from tests.data.numbered import LABEL, PATCH, Lookup, Numbered, assert_same, take

MODEL = dataclasses.replace(
    LABEL,
    conditioning="text",
    text_width=3,
    nextline=True,
    others=(ModalityConfig(name="big", patch_size=8, channels=3),),
)
DATA = DataConfig(
    mixture=(
        Part(media=PictureConfig(image_size=8), weight=3.0),
        Part(media=PictureConfig(image_size=16), modality="big", weight=1.0),
    ),
    batch_rows=4,
    row_tokens=24,
    samples_per_row=4,
    caption_dropout=0.0,
    prefetch=4,
)


def sources():
    return MixedSource([Numbered(10), Numbered(5, size=(16, 16))])


def stream(**changes):
    return Stream(sources(), dataclasses.replace(DATA, **changes), MODEL, seed=0, features=Lookup())


def counts(batches):
    """Samples of each modality."""
    found = np.zeros(2, int)
    for batch in batches:
        for row in range(len(batch.present)):
            for segment in range(1, 5):
                own = batch.tokens.modalities[row][batch.tokens.segment_ids[row] == segment]
                if len(own):
                    assert len(set(own.tolist())) == 1
                    found[own[0]] += 1
    return found


def test_sources_are_drawn_by_their_weights_and_packed_together():
    with stream() as mixed:
        batches = take(mixed, 12)
    assert batches[0].tokens.patches.shape == (4, 24, 8 * 8 * 3)
    first, second = counts(batches)
    assert first / second == pytest.approx(3, rel=0.1)
    both = [set(batch.tokens.modalities[batch.tokens.segment_ids > 0]) for batch in batches]
    assert {0, 1} in both


def test_a_mixture_resumes_where_it_was():
    with stream() as mixed:
        take(mixed, 3)
        state = mixed.state()
        expected = take(mixed, 4)
    with stream() as again:
        again.restore(state)
        assert_same(take(again, 4), expected)


def test_workers_read_the_same_mixture():
    with stream() as plain, stream(workers=1) as workers:
        assert_same(take(workers, 3), take(plain, 3))


def test_the_parts_of_a_mixture_follow_each_other_in_one_source():
    mixed = sources()
    assert len(mixed) == 15
    assert [mixed[index].name for index in (0, 9, 10, 14)] == ["sample 0", "sample 9", "sample 0", "sample 4"]


def test_a_limit_leaves_the_first_samples():
    limited = FirstSamples(Numbered(10), 3)
    assert len(limited) == 3
    assert [record.name for record in limited] == ["sample 0", "sample 1", "sample 2"]
    assert len(FirstSamples(Numbered(2), 3)) == 2


def test_settings_of_a_part_are_checked_against_its_modality():
    with pytest.raises(ValueError, match="'big'"):
        Config(model=MODEL, data=DataConfig(mixture=(Part(media=PictureConfig(image_size=PATCH), modality="big"),)))
    with pytest.raises(ValueError, match="must be one of those of the model: image, big"):
        Config(model=MODEL, data=DataConfig(mixture=(Part(modality="small"),)))


def test_a_mixture_is_saved_with_its_configuration():
    config = Config(model=MODEL, data=DATA)
    assert Config.from_json(config.to_json()) == config


def test_a_mixture_of_which_a_part_has_changed_goes_on_and_says_so(caplog):
    with stream() as mixed:
        take(mixed, 3)
        state = mixed.state()
    longer = MixedSource([Numbered(10), Numbered(6, size=(16, 16))])
    with Stream(longer, DATA, MODEL, seed=0, features=Lookup()) as again:
        again.restore(state)
        assert again.state()["position"] == state["position"]
        assert again.state()["waiting"] == state["waiting"]
        assert counts(take(again, 4)).min() > 0
    assert "has 16 samples, but had 15: the epoch goes on with them; some may come twice" in caplog.text
