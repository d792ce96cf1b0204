"""What a grid step of the backward kernel does: see `flash_backward.py` for the method."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.lanes import FIRST_AXES, TRANSPOSED, Head, Heads, Ref, across, column, product, row_sums
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.segments import Visits
from lumina_jax.kernels.softmax_tiles import LOG2E, Keys, scaled, unrolled_loop


class Gradients(NamedTuple):
    """Sums in float32 over blocks of queries, [heads, keys, width] of keys and of values."""

    keys: Ref
    values: Ref


class Rows(NamedTuple):
    """Some rows of a head's queries and what belongs to them; rows of numbers are [1 q].

    Attributes:
      at: where they are in the block.
      queries: scaled, to logits of base 2.
      gradient: of the output.
      ids: segments.
      logs: log2 of the softmax's denominators.
      delta: sum of gradient times output of this softmax, or what remains of it.
    """

    at: Any
    queries: Float[Array, "q d"]
    gradient: Float[Array, "q d"]
    ids: Int[Array, "1 q"]
    logs: Float[Array, "1 q"]
    delta: Any


class Seen(NamedTuple):
    """What some rows of queries may see: keys in tiles first..end of `size`, text as tile `place` of the queries."""

    first: Any
    end: Any
    size: int
    place: Any = None


def weights_and_slopes(
    rows: Rows, keys: Float[Array, "n d"], values: Float[Array, "n d"], key_ids: Int[Array, "n 128"] | None
) -> tuple[Float[Array, "n q"], Float[Array, "n q"]]:
    """The softmax's weights [keys, queries], and gradient . values.

    Args:
      key_ids: who may see whom; None: all see all, and keys and values of padding are zero, so that its weights
        contribute nothing as long as they are finite.
    """
    logits = product(keys, rows.queries, TRANSPOSED) - rows.logs
    if key_ids is None:
        weights = jnp.exp2(jnp.minimum(logits, 1.0))
    else:
        seen = across(key_ids, logits.shape[1]) == jnp.where(rows.ids > 0, rows.ids, -1)
        weights = jnp.where(seen, jnp.exp2(logits), 0.0)
    return weights, product(values, rows.gradient, TRANSPOSED)


@dataclass(frozen=True)
class BackwardStep:
    """One step of the grid: a block of queries of some heads, and a window of the keys.

    Attributes:
      group, repeat, row: place in the grid, as in `forward_step.Step`.
      visits, text_visits, gate: as there.
      queries, gradient, out, text_queries: blocks of this step; of `out` and `delta` one is None.
      ids, logs, text_logs: segments and logarithms of the denominators, by query.
      tokens, text: keys and values, of which one may be None; their ids are columns [n 128].
      of_tokens, of_text: sums for their gradients.
      total: the gradient of the queries so far; None: nothing.
      dq, text_dq, gates, deltas: to be written; gradients of the gate and delta are by query.
    """

    plan: Plan
    group: Any
    repeat: Any
    row: Any
    visits: Visits
    text_visits: tuple[Ref, ...]
    gate: Ref
    queries: Heads
    gradient: Heads
    out: Heads | None
    text_queries: Heads
    ids: Ref
    logs: Ref
    delta: Ref
    tokens: Any
    text: Any
    text_logs: Ref
    of_tokens: Any
    of_text: Any
    total: Heads | None
    dq: Heads
    text_dq: Any
    gates: Ref
    deltas: Ref

    def read_keys(self, ids: list[Ref]) -> None:
        """Make columns of the ids of keys, and clear what is padding."""
        for row, (keys, _, _) in zip(ids, self._kinds()):
            for start in range(0, row.shape[1], LANES):
                keys.ids[start : start + LANES, :] = column(row[:, start : start + LANES])

        if self.tokens is not None and self.total is None:

            @pl.when(jnp.min(ids[0][...]) <= 0)
            def _():
                self._clear(self.tokens[:2], self.tokens.ids)

    def _kinds(self) -> list[tuple[Keys, Ref, Ref]]:
        """Keys of the tokens and of the text, those that there are, and the sums of their gradients."""
        both = ((self.tokens, self.of_tokens), (self.text, self.of_text))
        return [(keys, *sums) for keys, sums in both if keys is not None]

    def queries_of_block(self) -> None:
        """The share of this block of queries, of all heads."""
        self.hide_padding()
        self.plan.each_head(self.head, side_by_side=1, count=self.plan.blocks.heads_backward)

    def keep(self) -> None:
        """This step adds nothing to the gradient of the queries."""
        if self.total is not None:
            self.dq.block[...] = self.total.block[...]

    def hide_padding(self) -> None:
        """Queries of padding have no say: their gradient becomes zero."""

        @pl.when(self.visits.padding[self.row] == 1)
        def _():
            self._clear([self.gradient], column(self.ids[...]))

    def _clear(self, of: Sequence[Heads], ids: Any) -> None:
        kept = ids[...] > 0
        for block in (heads.block for heads in of):
            for start in range(0, block.shape[1], LANES):
                lanes = block[:, start : start + LANES]
                block[:, start : start + LANES] = jnp.where(kept, lanes, jnp.zeros((), block.dtype))

    def start(self) -> None:
        """Nothing is summed yet."""
        for _, *both in self._kinds():
            for sums in both:
                sums[...] = jnp.zeros_like(sums)

    def write_keys(self, blocks: list[Heads]) -> None:
        """Gradients of keys and values; zero for padding."""
        of, plan = iter(blocks), self.plan
        for keys, *both in self._kinds():
            kept = across(keys.ids[...], plan.lanes) > 0
            for sums, scale in zip(both, (1 / LOG2E, 1.0)):
                block = next(of)
                for head in range(plan.blocks.heads_backward):
                    block.head(head).write(slice(None), jnp.where(kept, sums[head] * scale, 0.0))

    def head(self, heads: list[Any]) -> None:
        """All rows of one head: many at once where they and all keys are one segment, or where they are and keys come
        in windows, which hold more; else tile by tile."""
        (head,) = heads
        blocks, visits = self.plan.blocks, self.visits
        large = blocks.q_backward // blocks.q_compute_backward
        small, tile_q = blocks.q_backward // blocks.tile_q_backward, blocks.tile_q_backward
        first = self.row * small
        alone, in_tiles = visits.alone[self.row] > 0, visits.alone[self.row] == 0
        pl.when(alone)(lambda: _spans(large, blocks.q_compute_backward, lambda at, _: self._rows(head, at, None)))
        if self.total is not None:
            single, seen = visits.single[self.row] > 0, self._seen_by_block(first, small)
            work = functools.partial(_spans, large, blocks.q_compute_backward, lambda at, _: self._rows(head, at, seen))
            pl.when(in_tiles & single)(work)
            in_tiles = in_tiles & jnp.logical_not(single)

        def tile(at: Any, index: Any) -> None:
            place = first + index
            self._rows(head, at, Seen(visits.first[place], visits.end[place], blocks.tile_kv_backward, place))

        pl.when(in_tiles)(lambda: _spans(small, tile_q, tile))

    def _seen_by_block(self, first: Any, tiles: int) -> Seen:
        """What the block of queries may see, all of its tiles together, in parts of large products."""
        low, high, blocks = jnp.int32(self.plan.length), jnp.int32(0), self.plan.blocks
        for tile in range(tiles):
            start, end = self.visits.first[first + tile], self.visits.end[first + tile]
            low = jnp.minimum(low, jnp.where(end > start, start, low))
            high = jnp.maximum(high, end)
        size, tile = blocks.kv_compute_backward, blocks.tile_kv_backward
        return Seen(jax.lax.div(low * tile, size), jax.lax.div(high * tile + size - 1, size), size)

    def _rows(self, head: Any, at: Any, seen: Seen | None) -> None:
        """Some rows of one head; `seen` is None where they see all."""
        plan, like = self.plan, self._like(head)
        gradient = self.gradient.head(head).alone(at, like)
        if self.out is None:
            delta = self.delta[head, :, at]
        else:
            out = self.out.head(head).alone(at, like)
            delta = row_sums(gradient.astype(jnp.float32) * out.astype(jnp.float32))
        queries = scaled(self.queries.head(head).alone(at, like), plan.scale)
        logs = (self.text_logs if self.logs is None else self.logs)[head, :, at]
        rows = Rows(at, queries, gradient, self.ids[:, at], logs, delta)
        dq = jnp.zeros(rows.queries.shape, jnp.float32)
        if self.text is not None:
            dq, rows = self._text(head, rows, None if seen is None else seen.place)
        if self.deltas is not None:
            self.deltas[head, :, at] = rows.delta
        if self.tokens is not None:
            dq = self._tokens(head, rows, seen, dq)
        dq = dq * plan.scale
        if self.total is not None:
            dq += self.total.head(head).alone(at, like)
        self.dq.head(head).write(at, dq, like)

    def _like(self, head: Any) -> Head | None:
        """As `forward_step.Step.like`."""
        return None if self.plan.repeats == 1 else self._kinds()[0][0].keys.head(self._key_head(head))

    def _key_head(self, head: Any) -> Any:
        if self.plan.repeats == 1:
            return head
        return (self.repeat * self.plan.blocks.heads_backward + head) // self.plan.repeats

    def _tokens(self, head: Any, rows: Rows, seen: Seen | None, dq: Float[Array, "q d"]) -> Float[Array, "q d"]:
        blocks, key_head = self.plan.blocks, self._key_head(head)
        keys, values = (x.head(key_head) for x in self.tokens[:2])
        size = blocks.kv_compute_backward if seen is None else seen.size

        def step(start: Any, dq: Float[Array, "q d"]) -> Float[Array, "q d"]:
            at = pl.ds(start, size)
            ids = None if seen is None else self.tokens.ids[at, :]
            weights, slopes = weights_and_slopes(rows, keys.read(at), values.read(at), ids)
            slopes = (weights * (slopes - rows.delta)).astype(rows.queries.dtype)
            self.of_tokens.values[key_head, at, :] += product(weights.astype(slopes.dtype), rows.gradient)
            self.of_tokens.keys[key_head, at, :] += product(slopes, rows.queries)
            return dq + product(slopes, keys.read(at), FIRST_AXES)

        if seen is None:
            return unrolled_loop(blocks.kv_backward // size, size, step, dq)
        return _tiles(seen.first, seen.end, size, step, dq)

    def _text(self, head: Any, rows: Rows, place: Any | None) -> tuple[Float[Array, "q d"], Rows]:
        """The share of dq, and the rows with what remains of delta for the tokens."""
        plan, of_text, key_head, size = self.plan, self.of_text, self._key_head(head), self.plan.text_tile
        block = self.group * plan.repeats + self.repeat
        gate = self.gate[block * plan.blocks.heads_backward + head]
        keys, values = (x.head(key_head) for x in self.text[:2])
        ids, own = self.text.ids, self.text_dq is not None
        queries = rows.queries
        if own:
            queries = scaled(self.text_queries.head(head).alone(rows.at, self._like(head)), plan.text_scale)
        here = rows._replace(queries=queries, logs=self.text_logs[head, :, rows.at])

        def weigh(start: Any) -> tuple[Any, Array, Array]:
            at = pl.ds(start, size)
            return at, *weights_and_slopes(here, keys.read(at), values.read(at), ids[at, :])

        def measure(start: Any, delta: Float[Array, "1 q"]) -> Float[Array, "1 q"]:
            _, weights, slopes = weigh(start)
            return delta + jnp.sum(weights * slopes, axis=0, keepdims=True)

        def step(start: Any, dq: Float[Array, "q d"]) -> Float[Array, "q d"]:
            at, weights, slopes = weigh(start)
            slopes = (gate * weights * (slopes - delta)).astype(queries.dtype)
            of_text.values[key_head, at, :] += product((gate * weights).astype(slopes.dtype), here.gradient)
            of_text.keys[key_head, at, :] += product(slopes, queries)
            return dq + product(slopes, keys.read(at), FIRST_AXES)

        def over_text(step: Any, start: Any) -> Any:
            if place is None:
                return unrolled_loop(plan.text // size, size, step, start)
            return _tiles(self.text_visits[0][place], self.text_visits[1][place], size, step, start)

        delta = over_text(measure, jnp.zeros(rows.ids.shape, jnp.float32))
        dq = over_text(step, jnp.zeros(queries.shape, jnp.float32))
        self.gates[head, :, rows.at] = delta
        if self.text_dq is not None:
            self.text_dq.head(head).write(rows.at, dq * plan.text_scale, self._like(head))
            dq = jnp.zeros_like(dq)
        return dq, rows._replace(delta=rows.delta - gate * delta)


def _spans(count: int, size: int, work: Callable[[Any, Any], None]) -> None:
    """work(rows, index) for each `size` rows of a block."""
    if count == 1:
        work(pl.ds(0, size), 0)
    else:
        pl.loop(0, count)(lambda index: work(pl.ds(pl.multiple_of(index * size, size), size), index))


def _tiles(first: Any, end: Any, size: int, step: Any, start: Any) -> Any:
    return jax.lax.fori_loop(first, end, lambda index, value: step(pl.multiple_of(index * size, size), value), start)
