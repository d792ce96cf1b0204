"""Prompts of sheets, taken from the data when none are given."""

import pytest

from lumina_jax.data.example import Record, some_prompts
from tests.data.numbered import Numbered


class Reads(Numbered):
    """Counts the records that are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("count", [8, 80, 240])
def test_prompts_come_from_all_over_the_source_and_few_records_are_read(count):
    source = Reads(count)
    prompts = some_prompts(source)
    indices = [int(prompt.removeprefix("caption ")) for prompt in prompts]
    assert [index * 8 // count for index in indices] == list(range(8))
    assert source.reads == 8
    assert some_prompts(Reads(count)) == prompts


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_small_source_gives_every_caption_once(count):
    assert some_prompts(Numbered(count)) == tuple(f"caption {index}" for index in range(count))


def test_bad_samples_and_repeated_captions_are_passed_over():
    prompts = some_prompts(Numbered(80, broken=range(0, 80, 2)))
    assert len(prompts) == len(set(prompts)) == 8
    assert all(int(prompt.split()[1]) % 2 for prompt in prompts)

    class Same(Numbered):
        def __getitem__(self, index):
            return Record("one", super().__getitem__(index).media, None if index % 2 else "the same", None)

    assert some_prompts(Same(80)) == ("the same",)
    assert some_prompts(Numbered(20, broken=range(20))) == ()


def test_a_style_that_every_other_sample_has_is_not_the_only_one_shown():
    indices = [int(prompt.split()[1]) for prompt in some_prompts(Numbered(80))]
    assert {index % 2 for index in indices} == {0, 1}


def test_prompts_of_a_label_model_are_labels_that_it_knows():
    assert some_prompts(Numbered(8), classes=100) == tuple("01234567")
    assert some_prompts(Numbered(8), classes=3) == ("0", "1", "2")
