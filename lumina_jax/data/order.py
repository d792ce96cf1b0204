"""The order of an endless stream: it visits every sample once an epoch, each epoch in another order. And the row of a
batch that takes each sample.

In: a global index, from 0 without end. Out: the record at that index. The order is a keyed permutation that can be
computed for a single index (a Feistel network, applied until the result lies inside the source), so seeking costs
nothing and no list of a billion samples is kept. The shuffle of grain needs up to 50 ms an index for a small source.
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
        epoch, position = divmod(index, self._samples)
        chosen = shuffled(position, self._samples, f"{self._seed} {epoch}")
        try:
            return index, self._source[chosen]
        except Exception as error:  # whatever reading a record raises ends no run
            return index, unusable(f"sample {chosen}", error)

    def __repr__(self) -> str:
        return f"EndlessSource({self._source!r}, {self._seed})"


def shuffled(position: int, count: int, key: str) -> int:
    """The element at a position of the permutation of 0..count-1 that `key` chooses."""
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    keyed = hashlib.blake2b(key=key.encode()[:64], digest_size=8)
    while True:
        left, right = position >> bits, position & mask
        for step in range(ROUNDS):
            block = keyed.copy()
            block.update(b"%d %d" % (step, right))
            left, right = right, left ^ (int.from_bytes(block.digest(), "little") & mask)
        position = left << bits | right
        if position < count:
            return position


def dealt(row: int, turn: int, rows: int, seed: int) -> int:
    """The index that a row of the batch takes in a turn. A turn deals the next `rows` indices, one to each row.

    The row that takes the first of them is random, so that no row gets the same part of a mixture every time.
    """
    return turn * rows + (row + _rotation(turn, rows, seed)) % rows


def taker(index: int, rows: int, seed: int) -> int:
    """The row that takes an index: the inverse of `dealt`."""
    turn, offset = divmod(index, rows)
    return (offset - _rotation(turn, rows, seed)) % rows


@functools.lru_cache(maxsize=4096)
def _rotation(turn: int, rows: int, seed: int) -> int:
    digest = hashlib.blake2b(b"%d" % turn, key=b"%d" % seed, digest_size=8).digest()
    return int.from_bytes(digest, "little") % rows
