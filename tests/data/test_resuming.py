"""Streams stopped and continued, by any number of workers, and by processes that make some rows of each batch."""

import itertools
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data.batches import Stream, merge_states
from lumina_jax.data.emoji_source import EmojiSource
from lumina_jax.data.order import dealt, shuffled, taker
from tests.data.numbered import LABEL, PACKED, TEXT, Lookup, Numbered, assert_same, labels_of, small, take


def test_a_restored_stream_continues_bit_for_bit_with_any_number_of_workers():
    def opened(count):
        data = DataConfig(**{**vars(PACKED), "workers": count})
        return Stream(EmojiSource(48, "train"), data, TEXT, seed=3, features=Lookup())

    with opened(0) as stream:
        take(stream, 4)
        state = json.dumps(stream.state())
        assert json.loads(state)["waiting"]
        expected = take(stream, 6)
        final = stream.state()
    for workers in (0, 2):
        with opened(workers) as stream:
            stream.restore(json.loads(state))
            assert_same(take(stream, 6), expected)
            assert stream.state() == final


def test_a_restored_stream_seeks_and_does_not_replay():
    class Counting(Numbered):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    stream = Stream(Counting(12), small(), LABEL, seed=0)
    about = {"rows": None, "batch_rows": 4, "seed": 0, "samples": 12, "bad": {}}
    stream.restore({"position": 10**9, "waiting": [5], **about})
    assert Counting.reads == 0
    with stream:
        next(stream)
    after = stream.state()
    assert after["position"] == 10**9 + 4
    assert len(after["waiting"]) == 1
    assert after["waiting"][0] >= 10**9
    assert Counting.reads < 20


def test_closing_and_going_on_changes_nothing():
    with Stream(Numbered(12), small(), LABEL, seed=0) as stream:
        expected = take(stream, 4)
    with Stream(Numbered(12), small(), LABEL, seed=0) as stream:
        batches = take(stream, 2)
        stream.close()
        assert_same(batches + take(stream, 2), expected)


@pytest.mark.parametrize("data", [small(batch_rows=8), PACKED], ids=["one sample a row", "packed"])
@pytest.mark.parametrize("parts", [[range(0, 2), range(2, 4)], [range(0, 4, 2), range(1, 4, 2)], [[3], [1], [0, 2]]])
def test_a_row_is_the_same_whoever_makes_it(data, parts):
    factor = data.batch_rows // 4
    parts = [[row + 4 * part for row in rows for part in range(factor)] for rows in parts]

    def opened(rows):
        return Stream(EmojiSource(48, "train"), data, TEXT, seed=2, features=Lookup(), rows=rows)

    with opened(None) as stream:
        whole = take(stream, 4)
    for rows in parts:
        with opened(rows) as stream:
            assert_same(take(stream, 4), jax.tree.map(lambda x, rows=rows: x[np.array(rows)], whole))


@pytest.mark.parametrize("rows", [6, 7])
def test_every_row_sees_every_part_of_a_mixture(rows):
    """Parts of a mixture follow each other in a fixed pattern; a row must not be given one part for ever."""
    parts = np.array([[dealt(row, turn, rows, 3) % 2 for turn in range(400)] for row in range(rows)])
    assert np.abs(parts.mean(axis=1) - 0.5).max() < 0.1
    dealt_out = [dealt(row, turn, rows, 3) for turn in range(50) for row in range(rows)]
    assert sorted(dealt_out) == list(range(50 * rows))
    assert [taker(index, rows, 3) for index in dealt_out] == [row for _ in range(50) for row in range(rows)]


BROKEN = (4, 9, 11)


def drifting(rows=None, batch_rows=4):
    """Rows that each meet their own bad samples and leave their own waiting, so that one runs ahead."""
    source = Numbered(37, size=(9, 16), broken=BROKEN)
    data = small(image_size=16, crop="buckets", row_tokens=45, samples_per_row=3, batch_rows=batch_rows)
    return Stream(source, data, LABEL, seed=2, rows=rows)


@pytest.mark.parametrize("rows", [4, 3, 8])
def test_merged_states_lose_and_repeat_nothing_under_another_number_of_processes_and_rows(rows):
    states, labels = [], []
    for index in range(2):
        with drifting([index, index + 2]) as stream:
            labels += labels_of(take(stream, 5 + index))
            states.append(stream.state())
    merged = json.loads(json.dumps(merge_states(states)))
    assert merged["position"] == max(state["position"] for state in states) > min(state["position"] for state in states)
    with drifting(batch_rows=rows) as stream:
        stream.restore(merged)
        labels += labels_of(take(stream, 6))
        end = stream.state()
    handed_out = set(range(end["position"])) - set(end["waiting"])
    expected = [shuffled(index % 37, 37, f"2 {index // 37}") for index in handed_out]
    assert sorted(labels) == sorted(label for label in expected if label not in BROKEN)
    assert end["position"] > 37


def test_a_merged_state_continues_every_row_bit_for_bit_in_any_processes():
    states, expected = [], []
    for rows in ([0, 1], [2, 3]):
        with drifting(rows) as stream:
            take(stream, 4)
            states.append(stream.state())
            expected.append(take(stream, 5))
    merged = merge_states([*states, states[0]])
    for index, state in itertools.product(range(2), ("own", "merged")):
        with drifting([2 * index, 2 * index + 1]) as stream:
            stream.restore(states[index] if state == "own" else merged)
            assert_same(take(stream, 5), expected[index])
    with drifting() as stream:
        stream.restore(merged)
        assert stream.state() == merged
        assert_same(take(stream, 5), jax.tree.map(lambda *halves: np.concatenate(halves), *expected))


def test_the_state_of_some_rows_alone_is_refused_by_others():
    with drifting([1, 3]) as stream:
        next(stream)
        state = stream.state()
    for rows in ([0, 2], None):
        with pytest.raises(ValueError, match="merge_states"):
            drifting(rows).restore(state)
    with pytest.raises(ValueError, match=r"missing=\[0, 2\]"):
        merge_states([state, state])


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Also when it is killed and can tell them nothing."""
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], env=WITH_TESTS, stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 1
    process.kill()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


WITH_TESTS = os.environ | {"PYTHONPATH": os.getcwd()}
ORPHANS = """
import multiprocessing, time
from tests.data.numbered import LABEL, Numbered, small
from lumina_jax.data.batches import Stream

if __name__ == "__main__":
    stream = Stream(Numbered(12), small(workers=1), LABEL, seed=0)
    next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("seed", [2**32, 2**63])
def test_the_order_depends_on_all_bits_of_the_seed(seed):
    orders = []
    for value in (0, seed):
        with Stream(Numbered(37), small(), LABEL, seed=value) as stream:
            orders.append(labels_of(take(stream, 9)))
            assert json.loads(json.dumps(stream.state()))["seed"] == value
    assert orders[0] != orders[1]
