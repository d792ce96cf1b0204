"""Block sizes: what is refused and why, what is chosen, and the ranges of tiles that packed rows need."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.chips import CHIPS
from lumina_jax.kernels.flash import call
from lumina_jax.kernels.flash import visits as steering
from lumina_jax.kernels.flash.blocks import (
    UNKNOWN,
    BlockSizes,
    Sizes,
    backward_vmem,
    choose,
    forward_vmem,
    least_heads,
    padded_length,
)
from lumina_jax.kernels.flash.call import row_length
from lumina_jax.kernels.flash.plan import rows_in_hbm

VISITS = jax.jit(steering.visits, static_argnames=("block", "tile_q", "tile_kv", "most"))
RUNS = jax.jit(steering.runs, static_argnames=("block", "tile"))


def visits(queries, keys, **tiles):
    return VISITS(jnp.asarray(queries), jnp.asarray(keys), most=0.4, **tiles)


GOOD = {
    "q": 256,
    "q_compute": 256,
    "kv": 512,
    "kv_compute": 256,
    "tile_q": 128,
    "tile_kv": 128,
    "run_q": 64,
    "run_kv": 384,
    "q_backward": 256,
    "q_compute_backward": 256,
    "kv_backward": 512,
    "kv_compute_backward": 128,
    "tile_q_backward": 128,
    "tile_kv_backward": 128,
    "heads": 2,
    "heads_backward": 1,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile_q": 100}, "tile_q=100 must be a positive multiple of 128, the lanes of a vector register"),
        ({"kv": 0}, "kv=0 must be a positive multiple of 128"),
        ({"tile_kv": 384}, "kv=512 must be a multiple of tile_kv=384"),
        ({"heads": 0}, "heads=0 must be at least 1"),
    ],
)
def test_block_sizes_that_cannot_work_are_refused_with_the_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        BlockSizes(**{**GOOD, **change})


def test_blocks_must_divide_the_row_and_heads_fill_registers():
    with pytest.raises(ValueError, match="kv=512 must divide the 768 tokens"):
        BlockSizes(**GOOD).check(768, 4, 128)
    with pytest.raises(ValueError, match="heads=1 must divide the 4 key heads and be a multiple of 2"):
        BlockSizes(**{**GOOD, "heads": 1}).check(1024, 4, 64)
    BlockSizes(**GOOD).check(1024, 4, 128)


@pytest.mark.parametrize("chip", [*CHIPS.values(), UNKNOWN])
@pytest.mark.parametrize("length", [1, 256, 272, 1088, 4224, 4736, 16384, 131072])
@pytest.mark.parametrize("heads", [(48, 32), (72, 16), (96, 32), (128, 8)])
def test_chosen_blocks_divide_every_row_and_fit(chip, heads, length):
    width, key_heads = heads
    sizes = Sizes(length, 128, 32, key_heads, width)
    blocks = choose(sizes, chip)
    blocks.check(padded_length(length), key_heads, width)
    assert max(forward_vmem(sizes, blocks), backward_vmem(sizes, blocks)) < chip.vmem


def test_chips_with_too_little_vector_memory_say_so():
    with pytest.raises(ValueError, match="MiB of VMEM with the smallest blocks, but the chip has 16"):
        choose(Sizes(4224, 0, 97, 97, 72), CHIPS["v4"])


@pytest.mark.parametrize(("tokens", "padded"), [(1, 128), (256, 256), (1088, 1152), (4160, 4224), (37 * 128, 40 * 128)])
def test_rows_are_padded_to_whole_registers_and_not_to_primes_of_them(tokens, padded):
    assert padded_length(tokens) == padded


@pytest.mark.parametrize(
    ("width", "heads", "least"), [(128, 32, 1), (64, 32, 2), (96, 32, 4), (72, 16, 16), (96, 2, 2)]
)
def test_heads_are_taken_together_until_they_fill_registers(width, heads, least):
    assert least_heads(heads, width) == least


def test_sixteen_samples_in_a_row_visit_a_sixteenth_of_it():
    ids = np.repeat(np.arange(1, 17), 256)[None]
    found = visits(ids, ids, block=1024, tile_q=256, tile_kv=256)
    assert np.array_equal(found.first, np.arange(16))
    assert np.array_equal(found.end - found.first, np.ones(16))
    assert not np.any(found.single)


def test_visits_hold_every_visible_pair_whatever_the_ids():
    random = np.random.default_rng(0)
    queries, keys = random.integers(0, 4, (2, 1024)), random.integers(0, 9, (2, 512))
    found = visits(queries, keys, block=512, tile_q=128, tile_kv=128)
    visible = (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)
    tiles = visible.reshape(2, 8, 128, 4, 128).any(axis=(2, 4)).reshape(16, 4)
    columns = np.arange(4)
    inside = (columns >= np.asarray(found.first)[:, None]) & (columns < np.asarray(found.end)[:, None])
    assert not np.any(tiles & ~inside)


def test_padding_visits_nothing_and_one_sample_is_told_from_many():
    ids = np.stack([np.repeat([1, 0], [700, 324]), np.repeat([1, 2], 512)])
    found = visits(ids, ids, block=1024, tile_q=256, tile_kv=256)
    ends = np.asarray(found.end).reshape(2, 4)
    assert ends[0, 3] == 0
    assert list(found.single) == [1, 0]
    assert list(found.alone) == [1, 0]
    assert list(found.padding) == [1, 0]


def listed(ids, *, block, tile, keys=None, text=None):
    """Counts of tiles by block, and the tiles of all blocks."""
    keys = ids if keys is None else keys
    text = None if text is None else jnp.asarray(text)
    found = RUNS(jnp.asarray(ids), jnp.asarray(keys), text, block=block, tile=tile)
    counts = np.asarray(found.counts)
    tiles = np.asarray(found.tiles).reshape(len(counts), -1, len(steering.Tile._fields))
    return counts, [tuple(int(x) for x in row) for count, of in zip(counts, tiles) for row in of[: max(count, 0)]]


def test_tiles_start_where_samples_do_and_tell_their_keys_and_text():
    ids = np.repeat([[7, 3, 0]], [100, 120, 36], axis=1)
    counts, tiles = listed(ids, block=256, tile=80, text=np.repeat([[3, 9, 7]], [5, 4, 6], axis=1))
    assert list(counts) == [5]
    of_seven, of_three, of_padding = (0, 100, 0, 100, 9, 15), (100, 220, 100, 220, 0, 5), (220, 256, 0, 0, 0, 0)
    starts = [(0, of_seven), (80, of_seven), (96, of_three), (176, of_three), (176, of_padding)]
    assert tiles == [(start, *span) for start, span in starts]


def test_every_row_is_in_a_tile_of_its_sample_whatever_the_lengths():
    random = np.random.default_rng(0)
    for _ in range(20):
        lengths = random.integers(60, 300, 8)
        row = np.repeat(np.append(random.permutation(8) + 1, 0), np.append(lengths, 2048))[:2048]
        counts, tiles = listed(row[None], block=1024, tile=96)
        assert min(counts) > 0
        blocks = np.repeat([0, 1], counts)
        covered = np.zeros(2048, int)
        for block, (start, low, high, first, end, *_) in zip(blocks, tiles):
            assert 0 <= start <= 1024 - 96
            assert start % 16 == 0
            rows = 1024 * block + np.arange(max(start, low), min(start + 96, high))
            assert len(set(row[rows])) == 1
            assert np.array_equal(np.flatnonzero((row == row[rows[0]]) & (row > 0)), np.arange(first, end))
            covered[rows] += 1
        assert covered.all()


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(np.repeat([[1, 2, 1]], [100, 56, 100], axis=1), id="a segment in two pieces"),
        pytest.param(np.arange(1, 257)[None], id="more samples than room"),
    ],
)
def test_rows_that_no_list_holds_say_so(ids):
    assert list(listed(ids, block=256, tile=64)[0]) == [-1]


@pytest.mark.parametrize("tokens", [150, 4160, 8320, 16512, 33824, 131072])
@pytest.mark.parametrize("width", [72, 128])
def test_rows_of_the_length_that_is_asked_for_are_not_lengthened_again(monkeypatch, tokens, width):
    sizes = Sizes(tokens, 77, 32, 8, width)
    assert row_length(sizes, auto=True) == tokens  # no TPU here
    monkeypatch.setattr(call, "refusal_here", lambda auto: None)
    for chip in CHIPS.values():
        monkeypatch.setattr(call, "known_chip", lambda chip=chip: chip)
        longer = dataclasses.replace(sizes, length=row_length(sizes, auto=True))
        assert tokens <= longer.length < 1.02 * tokens
        assert rows_in_hbm(longer, choose(longer, chip)) == longer.length
