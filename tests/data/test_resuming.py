"""Streams stopped and continued, by any number of workers and shards."""

import itertools
import json

import pytest
from numbered import LABEL, PACKED, TEXT, Lookup, Numbered, assert_same, labels_of, small, take

from lumina_jax.config import DataConfig
from lumina_jax.data.batches import Stream, merge_states
from lumina_jax.data.emoji_source import EmojiSource
from lumina_jax.data.order import shuffled


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_stream_continues_bit_for_bit_with_any_number_of_workers(workers):
    def opened(count):
        data = DataConfig(**{**vars(PACKED), "workers": count})
        return Stream(EmojiSource(48, "train"), data, TEXT, seed=3, features=Lookup())

    with opened(0) as stream:
        take(stream, 7)
        state = json.dumps(stream.state())
        assert json.loads(state)["waiting"]
        expected = take(stream, 10)
        final = stream.state()
    with opened(workers) as stream:
        stream.restore(json.loads(state))
        assert_same(take(stream, 10), expected)
        assert stream.state() == final


def test_a_restored_stream_seeks_and_does_not_replay():
    class Counting(Numbered):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    stream = Stream(Counting(12), small(), LABEL, seed=0)
    stream.restore({"position": 10**9, "waiting": [5], "shard": [0, 1], "samples": 12, "bad": {}})
    assert Counting.reads == 1
    with stream:
        next(stream)
    assert stream.state()["position"] == 10**9 + 3
    assert Counting.reads < 20


def test_closing_and_going_on_changes_nothing():
    with Stream(Numbered(12), small(), LABEL, seed=0) as stream:
        expected = take(stream, 4)
    with Stream(Numbered(12), small(), LABEL, seed=0) as stream:
        batches = take(stream, 2)
        stream.close()
        assert_same(batches + take(stream, 2), expected)


def test_two_shards_share_the_samples_of_one_stream():
    def opened(shard):
        return Stream(Numbered(13), small(batch_rows=8), LABEL, seed=2, shard=shard)

    with opened((0, 1)) as one, opened((0, 2)) as left, opened((1, 2)) as right:
        for _ in range(5):
            half, other = labels_of([next(left)]), labels_of([next(right)])
            assert [label for pair in zip(half, other) for label in pair] == labels_of([next(one)])


BROKEN = (4, 9, 11)


def drifting(shard):
    """Shards that each meet their own bad samples and leave their own waiting, so that one runs ahead."""
    source = Numbered(37, size=(9, 16), broken=BROKEN)
    data = small(image_size=16, crop="buckets", row_tokens=45, samples_per_row=3)
    return Stream(source, data, LABEL, seed=2, shard=shard)


def test_merged_states_lose_and_repeat_nothing_under_another_number_of_shards():
    states, labels = [], []
    for index in range(2):
        with drifting((index, 2)) as stream:
            labels += labels_of(take(stream, 5 + index))
            states.append(stream.state())
    merged = json.loads(json.dumps(merge_states(states)))
    assert merged["position"] == max(state["position"] for state in states) > min(state["position"] for state in states)
    with drifting((0, 1)) as stream:
        stream.restore(merged)
        labels += labels_of(take(stream, 6))
        end = stream.state()
    handed_out = set(range(end["position"])) - set(end["waiting"])
    expected = [shuffled(index % 37, 37, f"2 {index // 37}") for index in handed_out]
    assert sorted(labels) == sorted(label for label in expected if label not in BROKEN)
    assert end["position"] > 37


def test_a_merged_state_continues_each_shard_bit_for_bit():
    states, expected = [], []
    for index in range(2):
        with drifting((index, 2)) as stream:
            take(stream, 3 + index)
            states.append(stream.state())
            expected.append(take(stream, 4))
    for index, state in itertools.product(range(2), ("own", "merged")):
        with drifting((index, 2)) as stream:
            stream.restore(states[index] if state == "own" else merge_states(states))
            assert_same(take(stream, 4), expected[index])


def test_the_state_of_one_shard_alone_is_refused_by_others():
    with drifting((1, 2)) as stream:
        next(stream)
        state = stream.state()
    for shard in ((0, 2), (0, 1)):
        with pytest.raises(ValueError, match="merge_states"):
            drifting(shard).restore(state)
    with pytest.raises(ValueError, match="every shard once"):
        merge_states([state, state])
