"""Which samples of a source are held out, and which are measured."""

import pytest

from lumina_jax.config import EmojiConfig, FolderConfig
from lumina_jax.data.example import Record, contents
from lumina_jax.data.held_out import divided, spread_over
from lumina_jax.data.sources import open_held_out, open_source
from tests.data.numbered import TEXT, Numbered, small


class Listed(Numbered):
    """Records without pictures, any number of them."""

    def __getitem__(self, index):
        return Record(f"sample {index}", b"", None, index)


def names(source):
    return [source[index].name for index in range(len(source))]


def test_a_share_of_the_names_is_held_out_and_the_rest_keeps_its_order():
    trained_on, held_out = map(names, divided(Listed(1000), 0.2))
    assert 150 < len(held_out) < 250
    assert sorted(trained_on + held_out) == sorted(names(Listed(1000)))
    assert trained_on == [name for name in names(Listed(1000)) if name in set(trained_on)]


def test_a_sample_stays_on_its_side_when_others_are_added_and_the_share_grows():
    held_out = set(names(divided(Listed(100), 0.2)[1]))
    more = set(names(divided(Listed(200), 0.2)[1]))
    assert held_out == {name for name in more if int(name.split()[1]) < 100}
    assert held_out < set(names(divided(Listed(100), 0.5)[1]))


def test_a_sample_stays_on_its_side_in_another_order():
    class Reversed(Listed):
        def __getitem__(self, index):
            return super().__getitem__(self.count - 1 - index)

    assert names(divided(Reversed(100), 0.2)[1]) == names(divided(Listed(100), 0.2)[1])[::-1]


def test_a_source_without_samples_on_a_side_is_refused():
    with pytest.raises(ValueError, match=r"holds out 0 of the 3 samples of Numbered.*leaves samples on both sides"):
        divided(Listed(3), 1e-9)


def test_the_samples_measured_are_from_all_over_the_source_and_always_the_same():
    chosen = names(spread_over(Listed(1000), 50))
    assert chosen == names(spread_over(Listed(1000), 100))[:50]
    numbers = sorted(int(name.split()[1]) for name in chosen)
    assert numbers[0] < 200 < 800 < numbers[-1]
    assert len(set(chosen)) == 50
    assert sorted(names(spread_over(Listed(5), 50))) == names(Listed(5))


def test_a_run_that_holds_out_nothing_has_the_source_it_had():
    data = small(source="emoji", split="all", emoji_names=8, image_size=32)
    assert names(open_source(data, TEXT)) == names(open_source(data.replace(held_out=0.0), TEXT))
    assert contents(open_source(data, TEXT)) == contents(open_source(data.replace(held_out=0.0), TEXT))
    assert open_held_out(data, TEXT) is None


def test_emoji_and_other_sources_are_opened_without_what_they_hold_out():
    data = small(source="emoji", emoji_names=8, image_size=32)
    whole = names(open_source(data.replace(split="all"), TEXT))
    for one in (data, data.replace(split="all", held_out=0.3)):
        trained_on, held_out = names(open_source(one, TEXT)), names(open_held_out(one, TEXT))
        assert sorted(trained_on + held_out) == sorted(whole)
        assert held_out
    assert contents(open_source(one, TEXT)).ordered != contents(open_source(data, TEXT)).ordered


def test_shares_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"data.held_out=1.0 must be a share of the samples"):
        FolderConfig(path="x", held_out=1.0)
    with pytest.raises(ValueError, match="split='train' of the emoji holds out one picture in eight already"):
        EmojiConfig(held_out=0.1)
