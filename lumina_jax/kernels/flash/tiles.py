"""Sums of softmax attention over blocks of keys in VMEM: without a shift of the logits, or with a running maximum.

In: queries scaled to logits of base 2, keys and values of a head as references, and which keys are hidden. Out: sums
over values and of weights, which a division turns into attention.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.arguments import HIDDEN
from lumina_jax.kernels.flash.blocks import ROWS_OF_A_REGISTER
from lumina_jax.kernels.flash.heads import TRANSPOSED, Head, Heads, Index, Scalar, across, product, row_sums

LOWEST = -1e15
"""Least maximum of a row: far below every logit and far above HIDDEN, so that a row that sees nothing sums to 0."""
SAFE = 2.0**60
"""A row whose sum, or its inverse, is greater is computed again with a running maximum."""
CHUNKS = (3 * LANES, 2 * LANES, LANES)
"""Keys of a product of a packed row; the largest that divides a window is taken."""
UNROLL = 12
"""Most steps of a loop that are written out."""
LOG2E = math.log2(math.e)


Value = TypeVar("Value")


class Carry(NamedTuple):
    """Sums of a tile of queries: over values, of weights (one for each lane), and the shift of the logits, if any."""

    values: Float[Array, "q d"]
    weights: Float[Array, "q 128"]
    shift: Float[Array, "q 1"] | None = None


class Keys(NamedTuple):
    """Keys and values of the tokens, or of the text, and their segment ids: a row [1 n], or columns [n 128]."""

    keys: Heads
    values: Heads
    ids: jax.Ref

    def head(self, index: Scalar) -> tuple[Head, Head]:
        """Keys and values of one head."""
        return self.keys.head(index), self.values.head(index)


def scaled(q: Float[Array, "q d"], scale: float) -> Float[Array, "q d"]:
    """Queries whose products with keys are logits to the base 2."""
    return (q.astype(jnp.float32) * (scale * LOG2E)).astype(q.dtype)


def empty(rows: int, width: int) -> Carry:
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    return Carry(zeros((rows, width)), zeros((rows, LANES)), jnp.full((rows, 1), LOWEST, jnp.float32))


def unshifted(
    q: Float[Array, "q d"],
    keys: Head,
    values: Head,
    hidden: Callable[[Scalar], Float[Array, "1 n"]],
    carry: Carry,
    chunk: int,
    *,
    begin: Scalar = 0,
    count: int | None = None,
) -> tuple[Float[Array, "q d"], Float[Array, "q 128"]]:
    """Sums over `count` chunks of the keys from `begin`, a multiple of 16, without a shift.

    All of it is one straight piece of program, so that the compiler overlaps the chunks, and what follows.
    `hidden(start)` is added to the logits of the chunk at `start`: HIDDEN for keys that may not be seen, else 0.
    """
    summed, total = carry.values, carry.weights
    for start in range(0, chunk * (keys.rows // chunk if count is None else count), chunk):
        first = start if isinstance(begin, int) else pl.multiple_of(begin + start, ROWS_OF_A_REGISTER)
        at = pl.ds(first, chunk)
        weights = jnp.exp2(product(q, keys.read(at), TRANSPOSED) + hidden(first))
        summed, total = summed + product(weights.astype(q.dtype), values.read(at)), _by_lane(total, weights)
    return summed, total


def unshifted_with_text(
    q: Float[Array, "q d"],
    tokens: tuple[Head, Head],
    text: tuple[Head, Head],
    hidden: Callable[[Scalar], Float[Array, "1 n"]],
    hidden_text: Float[Array, "1 t"],
    zeros: Carry,
    chunk: int,
    *,
    wide: bool,
) -> tuple[Carry, Carry]:
    """Sums without a shift over all tokens and over all text, in as many products as the tokens alone would take.

    The text shares the products of the last chunk of the tokens. Those with values are one where the matrix unit is
    `wide` enough for two heads: the last tokens have their values in its first columns, the text in the others.

    Args:
      tokens, text: keys and values.
      hidden, hidden_text: as in `unshifted`.
    """
    (keys, values), (text_keys, text_values), last = tokens, text, tokens[0].rows - chunk
    summed, total = unshifted(q, keys, values, hidden, zeros, chunk, count=last // chunk)
    at, words = pl.ds(last, chunk), pl.ds(0, text_keys.rows)
    both = jnp.concatenate([keys.read(at), text_keys.read(words)], axis=0)
    weights = jnp.exp2(product(q, both, TRANSPOSED) + jnp.concatenate([hidden(last), hidden_text], axis=1))
    totals = _by_lane(total, weights[:, :chunk]), _by_lane(zeros.weights, weights[:, chunk:])
    weights, of_text = weights.astype(q.dtype), text_values.read(words)
    if not wide:
        summed = summed + product(weights[:, :chunk], values.read(at))
        return Carry(summed, totals[0]), Carry(product(weights[:, chunk:], of_text), totals[1])
    alone = chunk - LANES
    if alone:
        summed = summed + product(weights[:, :alone], values.read(pl.ds(last, alone)))
    few = values.read(pl.ds(last + alone, LANES))
    left = jnp.concatenate([few, jnp.zeros_like(of_text)], axis=0)
    right = jnp.concatenate([jnp.zeros_like(few), of_text], axis=0)
    pair = product(weights[:, alone:], jnp.concatenate([left, right], axis=1))
    return Carry(summed + pair[:, : few.shape[1]], totals[0]), Carry(pair[:, few.shape[1] :], totals[1])


def _by_lane(total: Float[Array, "q 128"], weights: Float[Array, "q n"]) -> Float[Array, "q 128"]:
    """Weights added to sums, one for each lane."""
    for lane in range(0, weights.shape[1], LANES):
        total = total + weights[:, lane : lane + LANES]
    return total


def unrolled_loop(count: int, size: int, step: Callable[[Scalar, Value], Value], value: Value) -> Value:
    """step(start, value) for start = 0, size, ..., unrolled, so that the compiler overlaps the steps."""
    if count <= UNROLL:
        for index in range(count):
            value = step(index * size, value)
        return value
    parts = max(part for part in range(1, UNROLL + 1) if count % part == 0)

    def some(index: Index, value: Value) -> Value:
        for part in range(parts):
            value = step(pl.multiple_of((index * parts + part) * size, size), value)
        return value

    return jax.lax.fori_loop(0, count // parts, some, value)


def over_windows(
    keys: Keys,
    key_heads: list[Scalar],
    queries: list[Array],
    seen: tuple[Scalar, Scalar],
    start: Scalar,
    count: Scalar,
    size: int,
    carries: list[Carry],
) -> list[Carry]:
    """Sums over `count` windows from `start` on."""

    def one(index: Scalar, carries: list[Carry]) -> list[Carry]:
        return over_window(keys, key_heads, queries, seen, start + index * size, size, carries)

    return jax.lax.fori_loop(0, count, one, carries)


def over_window(
    keys: Keys,
    key_heads: list[Scalar],
    queries: list[Array],
    seen: tuple[Scalar, Scalar],
    start: Scalar,
    size: int,
    carries: list[Carry],
) -> list[Carry]:
    """Sums over `size` keys from `start` on, of which those in the range `seen` are seen."""
    # A window that would leave the block is moved back over keys that are counted already.
    first, end = jnp.maximum(seen[0], start), seen[1]
    begin = jnp.minimum(start, keys.ids.shape[1] - size)
    chunk = next(part for part in CHUNKS if size % part == 0)

    def hidden(start: Scalar) -> Float[Array, "1 n"]:
        index = start + jax.lax.broadcasted_iota(jnp.int32, (1, chunk), 1)
        return jnp.where((index >= first) & (index < end), 0.0, HIDDEN)

    result = []
    for q, head, carry in zip(queries, key_heads, carries):
        sums = unshifted(q, *keys.head(head), hidden, carry, chunk, begin=begin, count=size // chunk)
        result.append(Carry(*sums))
    return result


def online(
    queries: list[Array],
    keys: Keys,
    key_heads: list[Scalar],
    ids: Int[Array, "q 128"],
    first: Scalar,
    end: Scalar,
    carries: list[Carry],
    tile: int,
) -> list[Carry]:
    """Sums over tiles first..end of the keys, several heads side by side, with a running maximum."""

    def step(index: Index, carries: list[Carry]) -> list[Carry]:
        at = pl.ds(pl.multiple_of(index * tile, tile), tile)
        visible = across(ids, tile) == jnp.where(keys.ids[:, at] > 0, keys.ids[:, at], -1)
        result = []
        for q, head, carry in zip(queries, key_heads, carries):
            assert carry.shift is not None
            logits = product(q, keys.keys.head(head).read(at), TRANSPOSED)
            logits = jnp.where(visible, logits, HIDDEN)
            shift = jnp.maximum(carry.shift, jnp.max(logits, axis=1, keepdims=True))
            weights, kept = jnp.exp2(logits - shift), jnp.exp2(carry.shift - shift)
            total = _by_lane(carry.weights * kept, weights)
            summed = carry.values * kept + product(weights.astype(q.dtype), keys.values.head(head).read(at))
            result.append(Carry(summed, total, shift))
        return result

    return jax.lax.fori_loop(first, end, step, carries)


def inverse(total: Float[Array, "q 1"]) -> Float[Array, "q 1"]:
    """1 / total; 0 for a row that saw nothing."""
    return jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)


def logarithm(weights: Float[Array, "q 128"], shift: Float[Array, "q 1"] | None = None) -> Float[Array, "1 q"]:
    """log2 of each row's denominator; huge for a row that saw nothing, so that its weights become 0 again."""
    total = row_sums(weights)
    shifts = 0.0 if shift is None else jnp.broadcast_to(shift, weights.shape).T[:1]
    return jnp.where(total > 0, jnp.log2(jnp.where(total > 0, total, 1.0)) + shifts, -HIDDEN)


def within_safety(totals: list[Float[Array, "q n"]]) -> Bool[Array, ""]:
    """Whether sums without a shift are exact: nothing overflowed, and what vanished is too small to count.

    `totals` are those of rows, n = 1, or of their lanes, n = 128, which cost less; where those of the lanes fail, those
    of the rows may still hold.
    """
    within = [jnp.where((total < SAFE) & (total > 1.0 / SAFE), 1.0, 0.0) for total in totals]
    return jnp.min(functools.reduce(jnp.minimum, within)) > 0.0
