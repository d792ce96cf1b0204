"""What a grid step of the forward kernel does: see `flash_forward.py` for the method."""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from lumina_jax.kernels.lanes import Head, Heads, Ref, column
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.segments import Visits
from lumina_jax.kernels.softmax_tiles import (
    HIDDEN,
    Carry,
    Keys,
    empty,
    inverse,
    logarithm,
    online,
    scaled,
    unshifted,
    unshifted_with_text,
    within_safety,
)

INLINE_TEXT = 512
"""Text up to this length is computed together with a block of queries; longer text tile by tile."""


@dataclass(frozen=True)
class Step:
    """One step of the grid: a block of queries of some heads, and all keys or a part of them.

    Attributes:
      group, repeat, block, part: place in the grid: group of key heads, which of the query heads that share them, block
        of queries, part of the keys. `row` counts blocks of queries over the batch.
      first_part, last_part: of the keys, that the block of queries needs.
      visits, text_visits: as of `segments.visits`, in scalar memory; of the text only `first` and `end`.
      runs: as of `runs.runs`, in scalar memory; None where keys are streamed.
      gate: tanh of every head's gate.
      queries, text_queries, out: blocks of this step; text_queries are the queries where text has none of its own.
      tokens, text: keys and values.
      ids: segment ids of the queries [1 q].
      logs, text_logs: logarithms of the denominators, to be written.
      failed: which heads need a running maximum; where keys are streamed, all heads of a block of several segments.
      columns: [q 128] for each of `logs` and `text_logs`: those of packed rows, a head in each lane.
      sums: carried from part to part: over values and of weights, [2 heads q ...] those before this part and those
        after it, and shifts; None where there is one part.
    """

    plan: Plan
    group: Any
    repeat: Any
    block: Any
    part: Any
    first_part: Any
    last_part: Any
    row: Any
    visits: Visits
    runs: Any
    text_visits: tuple[Ref, ...]
    gate: Ref
    queries: Heads
    text_queries: Heads
    out: Heads
    tokens: Keys
    text: Any
    ids: Ref
    logs: Ref
    text_logs: Ref
    failed: Ref
    columns: list[Ref]
    sums: Any

    @property
    def sides(self) -> tuple[Any, Any]:
        """Where in `sums` those before this part of the keys are, and those after it: they change places."""
        before = jnp.bitwise_and(self.part - self.first_part, 1)
        return before, 1 - before

    def key_head(self, head: Any) -> Any:
        """Which key head of the block a query head of the block belongs to."""
        if self.plan.repeats == 1:
            return head
        return (self.repeat * self.plan.blocks.heads + head) // self.plan.repeats

    def like(self, head: Any) -> Head | None:
        """The key head whose lanes a query head must have; None: it lies in the same."""
        return None if self.plan.repeats == 1 else self.tokens.keys.head(self.key_head(head))

    def scaled_queries(self, heads: list[Any], rows: Any, *, of_text: bool) -> list[Array]:
        """Some rows of the heads, scaled to logits of base 2: those that look at the tokens, or at the text."""
        own = of_text and self.plan.own_queries
        queries, scale = (self.text_queries, self.plan.text_scale) if own else (self.queries, self.plan.scale)
        return [scaled(queries.head(head).alone(rows, self.like(head)), scale) for head in heads]

    def gate_of(self, head: Any) -> Any:
        blocks = self.group * self.plan.repeats + self.repeat
        return self.gate[blocks * self.plan.blocks.heads + head]

    def has_text(self, heads: list[Any]) -> Any:
        """Whether the gate of any of the heads is open; a backward pass needs the text of closed ones too."""
        if self.logs is not None:
            return jnp.bool_(True)
        return functools.reduce(jnp.logical_or, [self.gate_of(head) != 0.0 for head in heads])

    def write(self, head: Any, rows: Any, carry: Carry, text: Carry | None) -> list[Array]:
        """Divide, add, and write the output and the logarithms of some rows; returns the denominators."""
        total = jnp.sum(carry.weights, axis=1, keepdims=True)
        out = carry.values * inverse(total)
        if text is not None:
            of_text = jnp.sum(text.weights, axis=1, keepdims=True)
            out = out + text.values * (inverse(of_text) * self.gate_of(head))
            if self.text_logs is not None:
                self.text_logs[head, :, rows] = logarithm(*text[1:])
        self.out.head(head).write(rows, out, self.like(head))
        if self.logs is not None:
            self.logs[head, :, rows] = logarithm(*carry[1:])
        return [total] if text is None else [total, of_text]

    def whole(self, heads: list[Any]) -> None:
        """All rows of some heads against all keys, which stay in VMEM and are of one segment or hidden."""
        plan, failed = self.plan, self.failed
        failed[heads[0]] = 0
        for at in self._spans(plan.blocks.q_compute):
            at(functools.partial(self._whole_rows, heads))

        pl.when(failed[heads[0]] == 1)(lambda: self.again(heads))

        if plan.text > INLINE_TEXT:

            @pl.when((failed[heads[0]] == 0) & self.has_text(heads))
            def add_text() -> None:
                self.each_tile(functools.partial(self._add_text, heads))

    def _whole_rows(self, heads: list[Any], rows: Any) -> None:
        if self.text is None or self.plan.text > INLINE_TEXT:
            self._whole(heads, rows, with_text=False)
        elif self.logs is not None:
            self._whole(heads, rows, with_text=True)
        else:
            for with_text in (True, False):
                work = functools.partial(self._whole, heads, rows, with_text=with_text)
                pl.when(self.has_text(heads) == with_text)(work)

    def sees(self, keys: Keys) -> Any:
        """Whether any of the keys is of the segment of this block."""
        return jnp.max(jnp.where(keys.ids[...] == self.visits.single[self.row], 1, 0)) > 0

    def without_shift(self, head: Any, rows: Any, carry: Carry, of_text: bool) -> Carry:
        """Sums of some rows of a head over all keys in VMEM, or over the text."""
        plan, keys = self.plan, self.text if of_text else self.tokens
        (q,) = self.scaled_queries([head], rows, of_text=of_text)
        chunk = plan.text_tile if of_text else plan.blocks.kv_compute
        hidden = functools.partial(self._hidden, keys, chunk)
        return Carry(*unshifted(q, *self._pair(keys, head), hidden, carry, chunk))

    def _with_text(self, head: Any, rows: Any, zeros: Carry) -> tuple[Carry, Carry]:
        plan = self.plan
        (q,) = self.scaled_queries([head], rows, of_text=False)
        hidden = functools.partial(self._hidden, self.tokens, plan.blocks.kv_compute)
        pairs = self._pair(self.tokens, head), self._pair(self.text, head)
        hidden_text, wide = self._hidden(self.text, plan.text, 0), 2 * plan.lanes <= plan.unit
        return unshifted_with_text(q, *pairs, hidden, hidden_text, zeros, plan.blocks.kv_compute, wide=wide)

    def _pair(self, keys: Keys, head: Any) -> tuple[Head, Head]:
        """Keys and values that a query head of the block sees."""
        return keys.keys.head(self.key_head(head)), keys.values.head(self.key_head(head))

    def _hidden(self, keys: Keys, count: int, start: Any) -> Array:
        """What to add to the logits of `count` keys."""
        return jnp.where(keys.ids[:, pl.ds(start, count)] == self.visits.single[self.row], 0.0, HIDDEN)

    def _whole(self, heads: list[Any], rows: Any, *, with_text: bool) -> None:
        start = empty(self.plan.blocks.q_compute, self.plan.lanes)
        if with_text and not self.plan.own_queries:
            sums: list[Any] = [self._with_text(head, rows, start) for head in heads]
        else:
            # The text first: its few products hide behind those of the tokens, not behind the division.
            texts = [self.without_shift(head, rows, start, True) if with_text else None for head in heads]
            sums = [(self.without_shift(head, rows, start, False), text) for head, text in zip(heads, texts)]
        totals = [self.write(head, rows, *both) for head, both in zip(heads, sums)]
        safe = within_safety([both[0] for both in totals])
        if with_text:
            unseen = jnp.logical_not(self.sees(self.text))
            safe = safe & (unseen | within_safety([both[1] for both in totals]))

        @pl.when(jnp.logical_not(safe))
        def _() -> None:
            self.failed[heads[0]] = 1

        self.hide_padding(heads, rows)

    def hide_padding(self, heads: list[Any], rows: Any) -> None:
        """Queries of padding get zeros."""

        @pl.when(self.visits.padding[self.row] == 1)
        def _() -> None:
            padding = column(self.ids[:, rows]) <= 0
            for head in heads:
                zeros = jnp.zeros((padding.shape[0], self.plan.lanes), self.out.block.dtype)
                self.out.head(head).write(rows, zeros, only=padding)

    def tiles(self, heads: list[Any]) -> None:
        """All rows of some heads, tile by tile, with a running maximum."""
        self.each_tile(functools.partial(self.careful, heads))

    def _spans(self, size: int) -> list[Any]:
        """For each `size` rows of the block something that calls a function with where they are."""
        count = self.plan.blocks.q // size
        if count == 1:
            return [lambda work: work(pl.ds(0, size))]
        return [lambda work: pl.loop(0, count)(lambda index: work(pl.ds(pl.multiple_of(index * size, size), size)))]

    def each_tile(self, work: Any) -> None:
        """Work on all tiles of the block."""
        count = self.plan.blocks.q // self.plan.blocks.tile_q
        if count == 1:
            work(0)
        else:
            pl.loop(0, count)(work)

    def rows_of(self, tile: Any) -> Any:
        """Where in the block."""
        size = self.plan.blocks.tile_q
        return pl.ds(tile * size if isinstance(tile, int) else pl.multiple_of(tile * size, size), size)

    def _place(self, tile: Any) -> Any:
        """Where a tile of this block stands in `visits.first`."""
        return self.row * (self.plan.blocks.q // self.plan.blocks.tile_q) + tile

    def again(self, heads: list[Any]) -> None:
        """The same of what should be rare: one head after the other, for the sake of a small program."""
        if len(heads) == 1:
            self.tiles(heads)
        else:
            pl.loop(0, len(heads))(lambda index: self.tiles([heads[0] + index]))

    def careful(self, heads: list[Any], tile: Any) -> None:
        """Some heads of a tile with a running maximum."""
        plan, rows, place = self.plan, self.rows_of(tile), self._place(tile)
        parts = plan.blocks.kv // plan.blocks.tile_kv
        first = jnp.maximum(self.visits.first[place] - self.part * parts, 0)
        end = jnp.minimum(self.visits.end[place] - self.part * parts, parts)
        if self.sums is None:
            carries = [empty(plan.blocks.tile_q, plan.lanes) for _ in heads]
        else:
            (values, weights, shifts), (before, after) = self.sums, self.sides
            carries = [
                Carry(values[before, one, rows, :], weights[before, one, rows, :], shifts[one, rows, :][:, :1])
                for one in heads
            ]
        queries = self.scaled_queries(heads, rows, of_text=False)
        keys = [self.key_head(head) for head in heads]
        ids = column(self.ids[:, rows])
        carries = online(queries, self.tokens, keys, ids, first, end, carries, plan.blocks.tile_kv)
        if self.sums is None:
            self.finish(heads, tile, carries)
            return
        for head, carry in zip(heads, carries):
            values[after, head, rows, :], weights[after, head, rows, :] = carry.values, carry.weights
            shifts[head, rows, :] = jnp.broadcast_to(carry.shift, carry.weights.shape)

    def finish(self, heads: list[Any], tile: Any, carries: list[Carry]) -> list[Array]:
        """Write a tile, with what its rows see of the text; returns the denominators of the tokens."""
        texts: list[Any] = [None] * len(heads) if self.text is None else self._text(heads, tile)
        return [
            self.write(head, self.rows_of(tile), carry, text)[0] for head, carry, text in zip(heads, carries, texts)
        ]

    def _text(self, heads: list[Any], tile: Any) -> list[Carry]:
        plan, rows, place = self.plan, self.rows_of(tile), self._place(tile)
        q = self.scaled_queries(heads, rows, of_text=True)
        first = self.text_visits[0][place]
        end = jnp.where(self.has_text(heads), self.text_visits[1][place], first)
        carries = [empty(plan.blocks.tile_q, plan.lanes) for _ in heads]
        keys = [self.key_head(head) for head in heads]
        return online(q, self.text, keys, column(self.ids[:, rows]), first, end, carries, plan.text_tile)

    def _add_text(self, heads: list[Any], tile: Any) -> None:
        """Add the text to rows that were written without."""
        rows = self.rows_of(tile)
        for head, text in zip(heads, self._text(heads, tile)):
            out, like = self.out.head(head), self.like(head)
            share = inverse(jnp.sum(text.weights, axis=1, keepdims=True)) * self.gate_of(head)
            out.write(rows, out.alone(rows, like).astype(jnp.float32) + text.values * share, like)
            if self.text_logs is not None:
                self.text_logs[head, :, rows] = logarithm(*text[1:])
