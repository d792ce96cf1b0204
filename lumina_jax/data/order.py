"""The order in which an endless stream visits a source: every sample once an epoch, each epoch in another order; and
which row of a batch takes which sample.

In: a global index, from 0 without end. Out: the record whose turn it is. The order is a keyed permutation that is
computed for one index alone (a Feistel network, walked until it falls inside the source), so seeking costs nothing and
no list of a billion samples is kept. grain's own shuffle needs up to 50 ms an index when a source is small.
"""

import functools
import hashlib
import sys

from lumina_jax.data.example import BadSample, Record, Source, unusable

ROUNDS = 6


class EndlessSource:
    """`source`, shuffled and repeated: index to (index, record)."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed, self._samples = source, seed, len(source)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, Record | BadSample]:
        epoch, place = divmod(index, self._samples)
        chosen = shuffled(place, self._samples, f"{self._seed} {epoch}")
        try:
            return index, self._source[chosen]
        except Exception as error:  # whatever reading a record raises ends no run
            return index, unusable(f"sample {chosen}", error)

    def __repr__(self) -> str:
        return f"EndlessSource({self._source!r}, {self._seed})"


def shuffled(place: int, count: int, key: str) -> int:
    """Where `place` of 0..count-1 goes in the permutation that `key` chooses."""
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    keyed = hashlib.blake2b(key=key.encode()[:64], digest_size=8)
    while True:
        left, right = place >> bits, place & mask
        for step in range(ROUNDS):
            block = keyed.copy()
            block.update(b"%d %d" % (step, right))
            left, right = right, left ^ (int.from_bytes(block.digest(), "little") & mask)
        place = left << bits | right
        if place < count:
            return place


def dealt(row: int, turn: int, rows: int, seed: int) -> int:
    """The index that a row of the batch takes at its turn: each turn deals the next `rows` indices, one to each row.

    Where a turn begins is random, so that no row is given the same part of a mixture for ever.
    """
    return turn * rows + (row + _rotation(turn, rows, seed)) % rows


def taker(index: int, rows: int, seed: int) -> int:
    """The row that takes an index: the inverse of `dealt`."""
    turn, place = divmod(index, rows)
    return (place - _rotation(turn, rows, seed)) % rows


@functools.lru_cache(maxsize=4096)
def _rotation(turn: int, rows: int, seed: int) -> int:
    digest = hashlib.blake2b(b"%d" % turn, key=b"%d" % seed, digest_size=8).digest()
    return int.from_bytes(digest, "little") % rows
