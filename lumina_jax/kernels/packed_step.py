"""What a grid step of the forward kernel does with a packed row: tiles of one sample each, listed by `runs.py`.

A tile is computed without a shift of its logits, several heads side by side. Its keys are taken in windows that start
at any multiple of 16. A sample that one window holds is one straight piece of program, so that dividing and writing
hide behind products; a longer one is a loop over windows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool

from lumina_jax.chips import LANES
from lumina_jax.kernels.blocks import ROWS_OF_A_REGISTER
from lumina_jax.kernels.forward_step import Step
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.runs import FIELDS, room
from lumina_jax.kernels.softmax_tiles import HIDDEN, Carry, Keys, empty, inverse, unshifted, within_safety

CHUNKS = (3 * LANES, 2 * LANES, LANES)
"""Keys of a product."""


class Tile(NamedTuple):
    """Some rows of a block, of which low..high are of one sample, and the keys and the text that it sees."""

    start: Any
    low: Any
    high: Any
    first: Any
    end: Any
    text_first: Any
    text_end: Any


def packed(step: Step, heads: list[Any]) -> None:
    """All tiles of a block; again with a running maximum where that was not safe, or where there is no list."""
    count = step.runs.counts[step.row]
    step.failed[heads[0]] = jnp.where(count < 0, 1, 0)
    pl.loop(0, jnp.maximum(count, 0))(lambda index: _tile(step, heads, index))
    for columns, rows in zip(step.columns, (step.logs, step.text_logs)):
        _turn(columns, rows, heads)
    pl.when(step.failed[heads[0]] == 1)(lambda: step.again(heads))


def windows(plan: Plan) -> list[int]:
    """Lengths of windows of keys, short to long."""
    most = min(plan.blocks.run_kv, plan.keys)
    return sorted({*(size for size in (2 * LANES, 3 * LANES) if size < most), most})


def _tile(step: Step, heads: list[Any], index: Any) -> None:
    plan = step.plan
    place = (step.row * room(plan.blocks.q, plan.blocks.run_q) + index) * FIELDS
    tile = Tile(*(step.runs.tiles[place + field] for field in range(FIELDS)))
    aligned, sizes = _floor(tile.first), windows(plan)
    keys = tile.end - aligned
    for shorter, size in zip((-1, *sizes), sizes):
        work = functools.partial(_straight, step, heads, tile, size)
        pl.when((keys > shorter) & (keys <= size))(work)
    pl.when(keys > sizes[-1])(functools.partial(_looped, step, heads, tile, sizes))


def _floor(place: Any) -> Any:
    return jnp.bitwise_and(place, -ROWS_OF_A_REGISTER)


def _straight(step: Step, heads: list[Any], tile: Tile, size: int) -> None:
    texts = _text(step, heads, tile)
    queries = step.scaled_queries(heads, _rows(step, tile), of_text=False)
    start = _nothing(step, heads)
    keys = [step.key_head(head) for head in heads]
    carries = _window(step.tokens, keys, queries, (tile.first, tile.end), _floor(tile.first), size, start)
    _finish(step, heads, tile, carries, texts)


def _looped(step: Step, heads: list[Any], tile: Tile, sizes: list[int]) -> None:
    """Longest windows first; what remains is one of them, or some of the next shorter ones."""
    texts = _text(step, heads, tile)
    long, short = sizes[-1], sizes[-2] if len(sizes) > 1 else sizes[-1]
    aligned = _floor(tile.first)
    keys = tile.end - aligned
    full = jax.lax.div(keys, long)
    rest = keys - full * long
    worth = rest > short * (long // short - 1)
    many = full + jnp.where(worth, 1, 0)
    few = jnp.where(worth, 0, jax.lax.div(rest + short - 1, short))
    queries = step.scaled_queries(heads, _rows(step, tile), of_text=False)
    work = functools.partial(_loop, step.tokens, [step.key_head(head) for head in heads], queries)
    carries = work((tile.first, tile.end), aligned, many, long, _nothing(step, heads))
    carries = work((tile.first, tile.end), aligned + many * long, few, short, carries)
    _finish(step, heads, tile, carries, texts)


def _text(step: Step, heads: list[Any], tile: Tile) -> list[Carry] | None:
    if step.text is None:
        return None
    aligned = _floor(tile.text_first)
    count = jnp.where(step.has_text(heads), jax.lax.div(tile.text_end - aligned + LANES - 1, LANES), 0)
    queries = step.scaled_queries(heads, _rows(step, tile), of_text=True)
    keys = [step.key_head(head) for head in heads]
    span = tile.text_first, tile.text_end
    return _loop(step.text, keys, queries, span, aligned, count, LANES, _nothing(step, heads))


def _rows(step: Step, tile: Tile) -> Any:
    return pl.ds(pl.multiple_of(tile.start, ROWS_OF_A_REGISTER), step.plan.blocks.run_q)


def _nothing(step: Step, heads: list[Any]) -> list[Carry]:
    return [empty(step.plan.blocks.run_q, step.plan.lanes)._replace(shift=None) for _ in heads]


def _loop(
    keys: Keys,
    key_heads: list[Any],
    queries: list[Array],
    span: tuple[Any, Any],
    start: Any,
    count: Any,
    size: int,
    carries: list[Carry],
) -> list[Carry]:
    """Sums over `count` windows from `start` on."""

    def one(index: Any, carries: list[Carry]) -> list[Carry]:
        return _window(keys, key_heads, queries, span, start + index * size, size, carries)

    return jax.lax.fori_loop(0, count, one, carries)


def _window(
    keys: Keys,
    key_heads: list[Any],
    queries: list[Array],
    span: tuple[Any, Any],
    start: Any,
    size: int,
    carries: list[Carry],
) -> list[Carry]:
    """Sums over `size` keys from `start` on, of which those within `span` are seen."""
    # A window that would leave the block is moved back over keys that are counted already.
    first, end = jnp.maximum(span[0], start), span[1]
    begin = jnp.minimum(start, keys.ids.shape[1] - size)
    chunk = next(part for part in CHUNKS if size % part == 0)

    def hidden(place: Any) -> Array:
        at = place + jax.lax.broadcasted_iota(jnp.int32, (1, chunk), 1)
        return jnp.where((at >= first) & (at < end), 0.0, HIDDEN)

    result = []
    for q, head, carry in zip(queries, key_heads, carries):
        of_key, of_value = keys.keys.head(head), keys.values.head(head)
        result.append(Carry(*unshifted(q, of_key, of_value, hidden, carry, chunk, begin=begin, count=size // chunk)))
    return result


def _seen(step: Step, tile: Tile) -> Bool[Array, "q 128"]:
    """Which rows are of the tile's sample."""
    row = tile.start + jax.lax.broadcasted_iota(jnp.int32, (step.plan.blocks.run_q, LANES), 0)
    return (row >= tile.low) & (row < tile.high)


def _finish(step: Step, heads: list[Any], tile: Tile, carries: list[Carry], texts: list[Carry] | None) -> None:
    """Divide and write the rows of the sample; remember where that was not safe."""
    rows, plan, seen = _rows(step, tile), step.plan, _seen(step, tile)
    sums = [[jnp.sum(carry.weights, axis=1, keepdims=True) for carry in kind] for kind in (carries, texts or [])]
    for index, (head, carry) in enumerate(zip(heads, carries)):
        value = carry.values * inverse(sums[0][index])
        if texts is not None:
            value = value + texts[index].values * (inverse(sums[1][index]) * step.gate_of(head))
        step.out.head(head).write(rows, value, step.like(head), only=seen)
    for columns, totals in zip(step.columns, sums):
        lane = jax.lax.broadcasted_iota(jnp.int32, (plan.blocks.run_q, LANES), 1)
        value = columns[rows, :]
        for index, total in enumerate(totals):
            some = jnp.where(total > 0, jnp.log2(jnp.where(total > 0, total, 1.0)), -HIDDEN)
            value = jnp.where(seen & (lane == index), some, value)
        columns[rows, :] = value
    unseen = [tile.first == tile.end]
    if texts is not None:
        unseen.append((tile.text_first == tile.text_end) | jnp.logical_not(step.has_text(heads)))
    safe = [
        nothing | within_safety([jnp.where(seen[:, :1], total, 1.0) for total in totals])
        for nothing, totals in zip(unseen, sums)
    ]

    @pl.when(jnp.logical_not(functools.reduce(jnp.logical_and, safe)))
    def _() -> None:
        step.failed[heads[0]] = 1


def _turn(columns: Any, rows: Any, heads: list[Any]) -> None:
    """Numbers by query along sublanes, a head in each lane, become rows."""

    @pl.loop(0, columns.shape[0] // LANES)
    def _(index: Any) -> None:
        at = pl.ds(pl.multiple_of(index * LANES, LANES), LANES)
        turned = columns[at, :].T
        for lane, head in enumerate(heads):
            rows[head, :, at] = turned[lane : lane + 1, :]
