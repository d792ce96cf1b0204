"""The forward kernel for TPU: softmax(scale q k^T) v + gate softmax(q k_text^T) v_text, within segments.

In: queries [b l h*d], keys and values [b n k*d], segment ids, and optionally text. Out: the sum [b l h*d] and, for the
backward pass, the logarithms (base 2) of both softmax denominators [b h 1 l].

A softmax does not need its maximum subtracted, only protection from overflow and underflow. A block of queries that
sees one segment is computed without any shift, which saves a pass over the logits. Then the sums of every row are
checked: a sum of 2^-60 to 2^60 proves that nothing overflowed and that what vanished is below 2^-66 of the whole. A row
outside that range makes its block, and no other, be computed again with a running maximum (Milakov and Gimelshein,
arXiv 1805.02867), which is always safe.

A block of several segments is computed sample by sample, as tiles of one sample each that `visits.runs` lists (class
`ResidentStep`). Where segments do not lie in one piece, it is computed tile by tile with the running maximum.

Rows whose keys do not fit into VMEM are streamed, one part of the keys in each step of the grid (class `StreamedStep`):
sums are carried from the first part that the block of queries needs to the last. A block of one segment has no shift
until a row leaves the safe range, and from that part on a running maximum; a block of several segments has a running
maximum from the first part.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.arguments import HIDDEN
from lumina_jax.kernels.flash.blocks import ROWS_OF_A_REGISTER, padded, side_by_side
from lumina_jax.kernels.flash.heads import (
    BlockIndex,
    BlockShape,
    Head,
    Heads,
    Scalar,
    Span,
    clear_beyond,
    column,
    columns_to_rows,
)
from lumina_jax.kernels.flash.plan import Interpret, KernelPlan, PaddedText, from_hbm
from lumina_jax.kernels.flash.tiles import (
    LOWEST,
    Carry,
    Keys,
    empty,
    inverse,
    logarithm,
    online,
    over_window,
    over_windows,
    scaled,
    unshifted,
    unshifted_with_text,
    within_safety,
)
from lumina_jax.kernels.flash.visits import Leaf, Runs, TextScalars, Tile, Visits, room, runs, visits

MOST_RESIDENT = 0.75
"""Share of the tiles from which a block of queries of one sample is computed against the whole row in VMEM."""
MOST_STREAMED = 0.4
"""The same where keys are streamed, as a share of one part: against all parts that hold some of the sample."""
INLINE_TEXT = 512
"""Text up to this length is computed together with a block of queries; longer text tile by tile."""
PACKED_SIDE_BY_SIDE = 4
"""Heads of a block of several segments that are computed side by side."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardScalars(Generic[Leaf]):
    """What steers the forward kernel, in scalar memory.

    Attributes:
      first_part, last_part: parts of the keys that each block of queries needs: no other is brought into VMEM or
        computed. Where it needs none, both are the last of all.
      runs: None where keys are streamed.
    """

    visits: Visits[Leaf]
    first_part: Leaf
    last_part: Leaf
    runs: Runs[Leaf] | None
    text: TextScalars[Leaf] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextInputs(Generic[Leaf]):
    """Blocks of the text; `queries` is None where those of the tokens serve."""

    keys: Leaf
    values: Leaf
    ids: Leaf
    queries: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardInputs(Generic[Leaf]):
    """Blocks that the forward kernel reads; ids are rows [1 n]."""

    queries: Leaf
    keys: Leaf
    values: Leaf
    ids: Leaf
    key_ids: Leaf
    text: TextInputs[Leaf] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardOutputs(Generic[Leaf]):
    """Blocks that the forward kernel writes: attention, and log2 of the denominators where the plan wants residuals."""

    out: Leaf
    logs: Leaf | None
    text_logs: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums(Generic[Leaf]):
    """What is carried from part to part of streamed keys: sums over values and of weights, [2 heads q ...], those
    before a part and those after it; and shifts [heads q 128]."""

    values: Leaf
    weights: Leaf
    shifts: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardScratch(Generic[Leaf]):
    """Memory that the forward kernel works in.

    Attributes:
      failed: 1 for heads that need a running maximum; where keys are streamed, for all heads of a block of several
        segments.
      sums: None where all keys are in VMEM.
      logs, text_logs: [q 128], logarithms of packed rows with a head in each lane, before they become rows.
    """

    failed: Leaf
    sums: Sums[Leaf] | None
    logs: Leaf | None
    text_logs: Leaf | None


class ForwardPosition(NamedTuple):
    """A step of the grid: row of the batch, group of key heads, which of the query heads that share them, block of
    queries, part of the keys."""

    batch: Scalar
    group: Scalar
    repeat: Scalar
    block: Scalar
    part: Scalar


def forward(
    plan: KernelPlan,
    q: Float[Array, "b l hd"],
    k: Float[Array, "b n kd"],
    v: Float[Array, "b n kd"],
    ids: Int[Array, "b blocks_l"],
    key_ids: Int[Array, "b blocks_n"],
    text: PaddedText | None,
    *,
    interpret: Interpret,
) -> ForwardOutputs[Array]:
    """Attention; ids are padded to `plan.length`, arrays have `plan.rows` tokens."""
    scalars = _scalars(plan, ids, key_ids, text)
    text_inputs = text and TextInputs(text.keys, text.values, text.segment_ids[:, None], text.queries)
    inputs = ForwardInputs(q, k, v, ids[:, None], key_ids[:, None], text_inputs)
    logs = jax.ShapeDtypeStruct((plan.batch, plan.heads, 1, plan.length), jnp.float32) if plan.residuals else None
    shapes = ForwardOutputs(jax.ShapeDtypeStruct(q.shape, q.dtype), logs, logs if plan.text else None)
    in_specs, out_specs = _specs(plan)
    call = pl.pallas_call(
        functools.partial(_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=_grid(plan),
            in_specs=(in_specs,),
            out_specs=out_specs,
            scratch_shapes=cast("Sequence[pl.MemoryRef]", (_scratch(plan),)),  # jax takes any tree of them
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem,
        ),
        cost_estimate=plan.cost(products=2, itemsize=q.dtype.itemsize),
        interpret=interpret,
        name="lumina_flash_forward",
    )
    return from_hbm(call, interpret=interpret)(scalars, inputs)


def _scalars(
    plan: KernelPlan, ids: Int[Array, "b l"], key_ids: Int[Array, "b n"], text: PaddedText | None
) -> ForwardScalars[Array]:
    blocks = plan.blocks
    most = MOST_RESIDENT if plan.parts == 1 else MOST_STREAMED / plan.parts
    seen_by = functools.partial(visits, ids, block=blocks.q, tile_q=blocks.tile_q, most=most)
    parts = seen_by(key_ids, tile_kv=blocks.kv)
    tiles = blocks.q // blocks.tile_q
    first, end = (x.reshape(-1, tiles) for x in (parts.first, parts.end))
    some = end > first
    first_part = jnp.minimum(jnp.min(jnp.where(some, first, plan.parts), axis=-1), plan.parts - 1)
    last_part = jnp.maximum(jnp.max(jnp.where(some, end - 1, -1), axis=-1), first_part)
    listed, of_text = None, None
    if plan.parts == 1:
        listed = runs(ids, key_ids, text.segment_ids if text else None, block=blocks.q, tile=blocks.run_q)
    if text is not None:
        text_visits = seen_by(text.segment_ids, tile_kv=plan.text_tile)
        of_text = TextScalars(text.gate.astype(jnp.float32), text_visits.first, text_visits.end)
    return ForwardScalars(seen_by(key_ids, tile_kv=blocks.tile_kv), first_part, last_part, listed, of_text)


def _grid(plan: KernelPlan) -> ForwardPosition:
    blocks = plan.blocks
    return ForwardPosition(
        plan.batch,
        plan.key_heads // blocks.heads,
        plan.repeats * blocks.heads // plan.query_heads,
        plan.length // blocks.q,
        plan.parts,
    )


def _specs(plan: KernelPlan) -> tuple[ForwardInputs[pl.BlockSpec], ForwardOutputs[pl.BlockSpec]]:
    """Blocks of the arrays that go in and out."""
    blocks, grid = plan.blocks, _grid(plan)
    lanes, query_lanes = (padded(heads * plan.width) for heads in (blocks.heads, plan.query_heads))

    def spec(shape: BlockShape, index: Callable[[ForwardPosition, ForwardScalars], BlockIndex]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *step: index(ForwardPosition(*step[:-1]), step[-1]))

    def part(at: ForwardPosition, scalars: ForwardScalars) -> Scalar:
        row = at.batch * grid.block + at.block
        return jnp.clip(at.part, scalars.first_part[row], scalars.last_part[row]) if plan.parts > 1 else 0

    def head(at: ForwardPosition) -> Scalar:
        return at.group * grid.repeat + at.repeat

    queries = spec((None, blocks.q, query_lanes), lambda at, _: (at.batch, at.block, head(at)))
    keys = spec((None, blocks.kv, lanes), lambda at, scalars: (at.batch, part(at, scalars), at.group))
    rows = spec((None, plan.query_heads, 1, blocks.q), lambda at, _: (at.batch, head(at), 0, at.block))
    logs, text = rows if plan.residuals else None, None
    if plan.text:
        of_text = spec((None, plan.text, lanes), lambda at, _: (at.batch, 0, at.group))
        text_ids = spec((None, 1, plan.text), lambda at, _: (at.batch, 0, 0))
        text = TextInputs(of_text, of_text, text_ids, queries if plan.text_has_queries else None)
    inputs = ForwardInputs(
        queries=queries,
        keys=keys,
        values=keys,
        ids=spec((None, 1, blocks.q), lambda at, _: (at.batch, 0, at.block)),
        key_ids=spec((None, 1, blocks.kv), lambda at, scalars: (at.batch, 0, part(at, scalars))),
        text=text,
    )
    return inputs, ForwardOutputs(queries, logs, logs if plan.text else None)


def _scratch(plan: KernelPlan) -> ForwardScratch[pl.MemoryRef]:
    rows, heads = plan.blocks.q, plan.query_heads
    failed = pltpu.SMEM((heads,), jnp.int32)
    if plan.parts > 1:
        values, weights = (pltpu.VMEM((2, heads, rows, size), jnp.float32) for size in (plan.lanes, LANES))
        return ForwardScratch(failed, Sums(values, weights, pltpu.VMEM((heads, rows, LANES), jnp.float32)), None, None)
    columns = pltpu.VMEM((rows, LANES), jnp.float32) if plan.residuals else None
    return ForwardScratch(failed, None, columns, columns if plan.text else None)


def _kernel(
    plan: KernelPlan,
    scalars: ForwardScalars[jax.Ref],
    inputs: ForwardInputs[jax.Ref],
    outputs: ForwardOutputs[jax.Ref],
    scratch: ForwardScratch[jax.Ref],
) -> None:
    position = ForwardPosition(*(pl.program_id(axis) for axis in range(5)))
    row = position.batch * (plan.length // plan.blocks.q) + position.block
    clear_padding(plan, position, inputs)
    kind: type[ResidentStep] | type[StreamedStep] = ResidentStep if plan.parts == 1 else StreamedStep
    kind(plan, scalars, inputs, outputs, scratch, position, row, scalars.first_part[row], scalars.last_part[row]).run()


def clear_padding(plan: KernelPlan, position: ForwardPosition, inputs: ForwardInputs[jax.Ref]) -> None:
    """Clear what blocks hold beyond the rows and heads of their arrays: keys when they come, queries in each step."""
    lanes, queries = plan.blocks.heads * plan.width, [inputs.queries]
    if inputs.text is not None and inputs.text.queries is not None:
        queries.append(inputs.text.queries)

    @pl.when((position.repeat == 0) & (position.block == 0) | (plan.parts > 1))
    def _() -> None:
        for block in (inputs.keys, inputs.values):
            clear_beyond(block, plan.rows if plan.parts == 1 else block.shape[0], lanes)
        for block in () if inputs.text is None else (inputs.text.keys, inputs.text.values):
            clear_beyond(block, plan.text, lanes)

    @pl.when(position.block == plan.length // plan.blocks.q - 1)
    def _() -> None:
        for block in queries:
            clear_beyond(block, plan.rows - (plan.length - block.shape[0]), block.shape[1])


@dataclass(frozen=True)
class ForwardStep(ABC):
    """One step of the grid: a block of queries of some heads, and all keys or a part of them.

    Attributes:
      row: index of the block of queries among those of the whole batch.
      first_part, last_part: parts of the keys that the block needs.
    """

    plan: KernelPlan
    scalars: ForwardScalars[jax.Ref]
    inputs: ForwardInputs[jax.Ref]
    outputs: ForwardOutputs[jax.Ref]
    scratch: ForwardScratch[jax.Ref]
    position: ForwardPosition
    row: Scalar
    first_part: Scalar
    last_part: Scalar

    @abstractmethod
    def run(self) -> None:
        """Do the work of the step."""

    @abstractmethod
    def carries(self, heads: list[Scalar], rows: Span) -> list[Carry]:
        """Sums of some rows before the keys of this step."""

    @abstractmethod
    def keep(self, heads: list[Scalar], tile: Scalar, carries: list[Carry]) -> None:
        """Take the sums of a tile after the keys of this step."""

    @property
    def out(self) -> Heads:
        return Heads(self.outputs.out, self.plan.width)

    @property
    def tokens(self) -> Keys:
        inputs, width = self.inputs, self.plan.width
        return Keys(Heads(inputs.keys, width), Heads(inputs.values, width), inputs.key_ids)

    @property
    def text(self) -> Keys:
        assert self.inputs.text is not None
        text, width = self.inputs.text, self.plan.width
        return Keys(Heads(text.keys, width), Heads(text.values, width), text.ids)

    @property
    def text_scalars(self) -> TextScalars[jax.Ref]:
        assert self.scalars.text is not None
        return self.scalars.text

    def key_head(self, head: Scalar) -> Scalar:
        """The key head of the block that a query head of the block belongs to."""
        if self.plan.repeats == 1:
            return head
        return (self.position.repeat * self.plan.query_heads + head) // self.plan.repeats

    def like(self, head: Scalar) -> Head | None:
        """The key head whose lanes a query head must have; None: the lanes are the same."""
        return None if self.plan.repeats == 1 else self.tokens.keys.head(self.key_head(head))

    def scaled_queries(self, heads: list[Scalar], rows: Span, *, of_text: bool) -> list[Array]:
        """Some rows of the queries that look at the tokens, or at the text, scaled to logits of base 2."""
        block, scale = self.inputs.queries, self.plan.scale
        if of_text and self.inputs.text is not None and self.inputs.text.queries is not None:
            block, scale = self.inputs.text.queries, self.plan.text_scale
        queries = Heads(block, self.plan.width)
        return [scaled(queries.head(head).alone(rows, self.like(head)), scale) for head in heads]

    def gate(self, head: Scalar) -> Float[Array, ""]:
        block = self.position.group * _grid(self.plan).repeat + self.position.repeat
        return self.text_scalars.gate[block * self.plan.query_heads + head]

    def has_text(self, heads: list[Scalar]) -> Bool[Array, ""]:
        """Whether the gate of any of the heads is open; a backward pass needs the text of closed gates too."""
        if self.plan.residuals:
            return jnp.bool_(True)
        return functools.reduce(jnp.logical_or, [self.gate(head) != 0.0 for head in heads])

    def both_kinds(self, one: Callable[[list[Scalar]], None], several: Callable[[list[Scalar]], None]) -> None:
        """Work on all heads of a block of queries of one segment, or of several."""
        sees_one = self.scalars.visits.single[self.row] > 0
        together = side_by_side(self.plan.blocks, streamed=self.plan.parts > 1)
        pl.when(sees_one)(lambda: self.plan.each_head(one, side_by_side=together))
        pl.when(jnp.logical_not(sees_one))(lambda: self.plan.each_head(several, side_by_side=PACKED_SIDE_BY_SIDE))

    def write(self, head: Scalar, rows: Span, carry: Carry, text: Carry | None) -> list[Array]:
        """Divide, add, and write the output and the logarithms of some rows; returns the denominators."""
        total = jnp.sum(carry.weights, axis=1, keepdims=True)
        totals, out = [total], carry.values * inverse(total)
        if text is not None:
            totals.append(jnp.sum(text.weights, axis=1, keepdims=True))
            out = out + text.values * (inverse(totals[-1]) * self.gate(head))
            if self.outputs.text_logs is not None:
                self.outputs.text_logs[head, :, rows] = logarithm(text.weights, text.shift)
        self.out.head(head).write(rows, out, self.like(head))
        if self.outputs.logs is not None:
            self.outputs.logs[head, :, rows] = logarithm(carry.weights, carry.shift)
        return totals

    def sees(self, keys: Keys) -> Bool[Array, ""]:
        """Whether any of the keys is of the segment of this block."""
        return jnp.max(jnp.where(keys.ids[...] == self.scalars.visits.single[self.row], 1, 0)) > 0

    def hidden(self, keys: Keys, count: int, start: Scalar) -> Float[Array, "1 n"]:
        """What is added to the logits of `count` keys."""
        return jnp.where(keys.ids[:, pl.ds(start, count)] == self.scalars.visits.single[self.row], 0.0, HIDDEN)

    def without_shift(self, head: Scalar, rows: Span, zeros: Carry, *, of_text: bool) -> Carry:
        """Sums of some rows of a head over all keys in VMEM, or over the text."""
        keys = self.text if of_text else self.tokens
        (q,) = self.scaled_queries([head], rows, of_text=of_text)
        chunk = self.plan.text_tile if of_text else self.plan.blocks.kv_compute
        hidden = functools.partial(self.hidden, keys, chunk)
        return Carry(*unshifted(q, *keys.head(self.key_head(head)), hidden, zeros, chunk))

    def hide_padding(self, heads: list[Scalar], rows: Span) -> None:
        """Write zeros for queries of padding."""

        @pl.when(self.scalars.visits.padding[self.row] == 1)
        def _() -> None:
            padding = column(self.inputs.ids[:, rows]) <= 0
            for head in heads:
                zeros = jnp.zeros((padding.shape[0], self.plan.lanes), self.outputs.out.dtype)
                self.out.head(head).write(rows, zeros, only=padding)

    def tiles(self, heads: list[Scalar]) -> None:
        """All rows of some heads, tile by tile, with a running maximum."""
        self.each_tile(functools.partial(self.careful, heads))

    def each_tile(self, work: Callable[[Scalar], None]) -> None:
        """Work on all tiles of the block."""
        count = self.plan.blocks.q // self.plan.blocks.tile_q
        if count == 1:
            work(0)
        else:
            pl.loop(0, count)(work)

    def rows_of(self, tile: Scalar) -> Span:
        """The rows of the block that a tile consists of."""
        size = self.plan.blocks.tile_q
        return pl.ds(tile * size if isinstance(tile, int) else pl.multiple_of(tile * size, size), size)

    def index_of(self, tile: Scalar) -> Scalar:
        """The index of a tile of this block in `Visits.first`."""
        return self.row * (self.plan.blocks.q // self.plan.blocks.tile_q) + tile

    def careful(self, heads: list[Scalar], tile: Scalar) -> None:
        """Some heads of a tile with a running maximum."""
        plan, rows, index = self.plan, self.rows_of(tile), self.index_of(tile)
        tiles = plan.blocks.kv // plan.blocks.tile_kv
        first = jnp.maximum(self.scalars.visits.first[index] - self.position.part * tiles, 0)
        end = jnp.minimum(self.scalars.visits.end[index] - self.position.part * tiles, tiles)
        carries = self.carries(heads, rows)
        queries = self.scaled_queries(heads, rows, of_text=False)
        keys = [self.key_head(head) for head in heads]
        ids = column(self.inputs.ids[:, rows])
        self.keep(heads, tile, online(queries, self.tokens, keys, ids, first, end, carries, plan.blocks.tile_kv))

    def finish_tile(self, heads: list[Scalar], tile: Scalar, carries: list[Carry]) -> None:
        """Write a tile, with what its rows see of the text."""
        texts: list[Carry] | list[None] = self.text_of_tile(heads, tile) if self.plan.text else [None] * len(heads)
        for head, carry, text in zip(heads, carries, texts):
            self.write(head, self.rows_of(tile), carry, text)

    def text_of_tile(self, heads: list[Scalar], tile: Scalar) -> list[Carry]:
        """Sums of a tile over the text, with a running maximum."""
        plan, rows, index = self.plan, self.rows_of(tile), self.index_of(tile)
        q = self.scaled_queries(heads, rows, of_text=True)
        first = self.text_scalars.first[index]
        end = jnp.where(self.has_text(heads), self.text_scalars.end[index], first)
        carries = [empty(plan.blocks.tile_q, plan.lanes) for _ in heads]
        keys, ids = [self.key_head(head) for head in heads], column(self.inputs.ids[:, rows])
        return online(q, self.text, keys, ids, first, end, carries, plan.text_tile)


class ResidentStep(ForwardStep):
    """All keys are in VMEM: a block of one segment in large products, one of several sample by sample."""

    def run(self) -> None:
        self.both_kinds(self.whole, self.packed)

    def carries(self, heads: list[Scalar], rows: Span) -> list[Carry]:
        return [empty(self.plan.blocks.tile_q, self.plan.lanes) for _ in heads]

    def keep(self, heads: list[Scalar], tile: Scalar, carries: list[Carry]) -> None:
        self.finish_tile(heads, tile, carries)

    def whole(self, heads: list[Scalar]) -> None:
        """All rows of some heads against all keys, which are of one segment or hidden."""
        plan, failed = self.plan, self.scratch.failed
        failed[heads[0]] = 0
        size, work = plan.blocks.q_compute, functools.partial(self._whole_rows, heads)
        if size == plan.blocks.q:
            work(pl.ds(0, size))
        else:
            pl.loop(0, plan.blocks.q // size)(lambda index: work(pl.ds(pl.multiple_of(index * size, size), size)))
        pl.when(failed[heads[0]] == 1)(lambda: self._again(heads))

        if plan.text > INLINE_TEXT:

            @pl.when((failed[heads[0]] == 0) & self.has_text(heads))
            def _() -> None:
                self.each_tile(functools.partial(self._add_text, heads))

    def _whole_rows(self, heads: list[Scalar], rows: Span) -> None:
        if not 0 < self.plan.text <= INLINE_TEXT:
            self._at_once(heads, rows, with_text=False)
        elif self.plan.residuals:
            self._at_once(heads, rows, with_text=True)
        else:
            for with_text in (True, False):
                work = functools.partial(self._at_once, heads, rows, with_text=with_text)
                pl.when(self.has_text(heads) == with_text)(work)

    def _at_once(self, heads: list[Scalar], rows: Span, *, with_text: bool) -> None:
        zeros = empty(self.plan.blocks.q_compute, self.plan.lanes)
        sums: list[tuple[Carry, Carry | None]]
        if with_text and not self.plan.text_has_queries:
            sums = [self._with_text(head, rows, zeros) for head in heads]
        else:
            # The text first: its few products hide behind those of the tokens, not behind the division.
            texts = [self.without_shift(head, rows, zeros, of_text=True) if with_text else None for head in heads]
            sums = [(self.without_shift(head, rows, zeros, of_text=False), text) for head, text in zip(heads, texts)]
        totals = [self.write(head, rows, *both) for head, both in zip(heads, sums)]
        safe = within_safety([both[0] for both in totals])
        if with_text:
            unseen = jnp.logical_not(self.sees(self.text))
            safe = safe & (unseen | within_safety([both[1] for both in totals]))

        @pl.when(jnp.logical_not(safe))
        def _() -> None:
            self.scratch.failed[heads[0]] = 1

        self.hide_padding(heads, rows)

    def _with_text(self, head: Scalar, rows: Span, zeros: Carry) -> tuple[Carry, Carry]:
        plan, chunk = self.plan, self.plan.blocks.kv_compute
        (q,) = self.scaled_queries([head], rows, of_text=False)
        pairs = self.tokens.head(self.key_head(head)), self.text.head(self.key_head(head))
        hidden = functools.partial(self.hidden, self.tokens, chunk), self.hidden(self.text, plan.text, 0)
        return unshifted_with_text(q, *pairs, *hidden, zeros, chunk, wide=2 * plan.lanes <= plan.unit)

    def _again(self, heads: list[Scalar]) -> None:
        """Compute what failed with a running maximum: one head after the other, because this is rare and the program
        should be small."""
        if len(heads) == 1:
            self.tiles(heads)
        else:
            pl.loop(0, len(heads))(lambda index: self.tiles([heads[0] + index]))

    def _add_text(self, heads: list[Scalar], tile: Scalar) -> None:
        """Add the text to rows that were written without."""
        rows = self.rows_of(tile)
        for head, text in zip(heads, self.text_of_tile(heads, tile)):
            out, like = self.out.head(head), self.like(head)
            share = inverse(jnp.sum(text.weights, axis=1, keepdims=True)) * self.gate(head)
            out.write(rows, out.alone(rows, like).astype(jnp.float32) + text.values * share, like)
            if self.outputs.text_logs is not None:
                self.outputs.text_logs[head, :, rows] = logarithm(text.weights, text.shift)

    def packed(self, heads: list[Scalar]) -> None:
        """All tiles of a block, each of one sample and without a shift; again with a running maximum where that was
        not safe, or where there is no list of tiles.

        Several heads are computed side by side. Keys are taken in windows that start at any multiple of 16. A sample
        that one window holds is one straight piece of program, so that dividing and writing hide behind products; a
        longer one is a loop over windows.
        """
        assert self.scalars.runs is not None
        count = self.scalars.runs.counts[self.row]
        self.scratch.failed[heads[0]] = jnp.where(count < 0, 1, 0)
        pl.loop(0, jnp.maximum(count, 0))(lambda index: self._run(heads, index))
        for columns, rows in zip(self._columns(), (self.outputs.logs, self.outputs.text_logs)):
            assert rows is not None
            columns_to_rows(columns, rows, heads)
        pl.when(self.scratch.failed[heads[0]] == 1)(lambda: self._again(heads))

    def _columns(self) -> list[jax.Ref]:
        """Logarithms with a head in each lane, of the tokens and of the text, where they are wanted."""
        return [columns for columns in (self.scratch.logs, self.scratch.text_logs) if columns is not None]

    def _run(self, heads: list[Scalar], index: Scalar) -> None:
        """One tile, in a window of the least length that holds its keys, or in several."""
        assert self.scalars.runs is not None
        plan, fields = self.plan, len(Tile._fields)
        start = (self.row * room(plan.blocks.q, plan.blocks.run_q) + index) * fields
        tile = Tile(*(self.scalars.runs.tiles[start + field] for field in range(fields)))
        longest, keys = min(plan.blocks.run_kv, plan.keys), tile.end - _aligned(tile.first)
        sizes = sorted({*(size for size in (2 * LANES, 3 * LANES) if size < longest), longest})
        for shorter, size in zip((-1, *sizes), sizes):
            pl.when((keys > shorter) & (keys <= size))(functools.partial(self._straight, heads, tile, size))
        pl.when(keys > sizes[-1])(functools.partial(self._looped, heads, tile, sizes))

    def _straight(self, heads: list[Scalar], tile: Tile, size: int) -> None:
        texts = self._text_of_run(heads, tile)
        queries = self.scaled_queries(heads, self._rows_of_run(tile), of_text=False)
        zeros, keys = self._zeros(heads), [self.key_head(head) for head in heads]
        seen, start = (tile.first, tile.end), _aligned(tile.first)
        self._finish_run(heads, tile, over_window(self.tokens, keys, queries, seen, start, size, zeros), texts)

    def _looped(self, heads: list[Scalar], tile: Tile, sizes: list[int]) -> None:
        """Longest windows first; the rest is one more of them, or some of the next shorter ones."""
        texts = self._text_of_run(heads, tile)
        long, short = sizes[-1], sizes[-2] if len(sizes) > 1 else sizes[-1]
        aligned = _aligned(tile.first)
        keys = tile.end - aligned
        full = jax.lax.div(keys, long)
        rest = keys - full * long
        worth = rest > short * (long // short - 1)
        many = full + jnp.where(worth, 1, 0)
        few = jnp.where(worth, 0, jax.lax.div(rest + short - 1, short))
        queries = self.scaled_queries(heads, self._rows_of_run(tile), of_text=False)
        work = functools.partial(over_windows, self.tokens, [self.key_head(head) for head in heads], queries)
        carries = work((tile.first, tile.end), aligned, many, long, self._zeros(heads))
        carries = work((tile.first, tile.end), aligned + many * long, few, short, carries)
        self._finish_run(heads, tile, carries, texts)

    def _text_of_run(self, heads: list[Scalar], tile: Tile) -> list[Carry] | None:
        if not self.plan.text:
            return None
        aligned = _aligned(tile.text_first)
        count = jnp.where(self.has_text(heads), jax.lax.div(tile.text_end - aligned + LANES - 1, LANES), 0)
        queries = self.scaled_queries(heads, self._rows_of_run(tile), of_text=True)
        keys, seen = [self.key_head(head) for head in heads], (tile.text_first, tile.text_end)
        return over_windows(self.text, keys, queries, seen, aligned, count, LANES, self._zeros(heads))

    def _rows_of_run(self, tile: Tile) -> Span:
        return pl.ds(pl.multiple_of(tile.start, ROWS_OF_A_REGISTER), self.plan.blocks.run_q)

    def _zeros(self, heads: list[Scalar]) -> list[Carry]:
        return [empty(self.plan.blocks.run_q, self.plan.lanes)._replace(shift=None) for _ in heads]

    def _finish_run(self, heads: list[Scalar], tile: Tile, carries: list[Carry], texts: list[Carry] | None) -> None:
        """Divide and write the rows of the sample; note where that was not safe."""
        rows, size = self._rows_of_run(tile), self.plan.blocks.run_q
        row = tile.start + jax.lax.broadcasted_iota(jnp.int32, (size, LANES), 0)
        inside = (row >= tile.low) & (row < tile.high)
        sums = [[jnp.sum(carry.weights, axis=1, keepdims=True) for carry in kind] for kind in (carries, texts or [])]
        for index, (head, carry) in enumerate(zip(heads, carries)):
            value = carry.values * inverse(sums[0][index])
            if texts is not None:
                value = value + texts[index].values * (inverse(sums[1][index]) * self.gate(head))
            self.out.head(head).write(rows, value, self.like(head), only=inside)
        for columns, totals in zip(self._columns(), sums):
            lane = jax.lax.broadcasted_iota(jnp.int32, (size, LANES), 1)
            value = columns[rows, :]
            for index, total in enumerate(totals):
                log = jnp.where(total > 0, jnp.log2(jnp.where(total > 0, total, 1.0)), -HIDDEN)
                value = jnp.where(inside & (lane == index), log, value)
            columns[rows, :] = value
        unseen = [tile.first == tile.end]
        if texts is not None:
            unseen.append((tile.text_first == tile.text_end) | jnp.logical_not(self.has_text(heads)))
        safe = [
            nothing | within_safety([jnp.where(inside[:, :1], total, 1.0) for total in totals])
            for nothing, totals in zip(unseen, sums)
        ]

        @pl.when(jnp.logical_not(functools.reduce(jnp.logical_and, safe)))
        def _() -> None:
            self.scratch.failed[heads[0]] = 1


class StreamedStep(ForwardStep):
    """A part of the keys is in VMEM; the output is written after the last part that the block of queries needs."""

    def run(self) -> None:
        part, first, last = self.position.part, self.first_part, self.last_part
        pl.when(part == first)(self.start)
        pl.when((part >= first) & (part <= last))(lambda: self.both_kinds(self.whole, self.tiles))
        pl.when(part == last)(lambda: self.plan.each_head(self.finish, side_by_side=1))

    @property
    def sums(self) -> Sums[jax.Ref]:
        assert self.scratch.sums is not None
        return self.scratch.sums

    @property
    def sides(self) -> tuple[Scalar, Scalar]:
        """Indices in `sums` of those before this part of the keys, and of those after it: the two alternate."""
        before = jnp.bitwise_and(self.position.part - self.first_part, 1)
        return before, 1 - before

    def start(self) -> None:
        """Before the first part nothing is summed."""
        for sums in (self.sums.values, self.sums.weights):
            sums[0] = jnp.zeros(sums.shape[1:], sums.dtype)
        several = self.scalars.visits.single[self.row] <= 0
        for head in range(self.plan.query_heads):
            self.scratch.failed[head] = jnp.where(several, 1, 0)

        @pl.when(several)
        def _() -> None:
            self.sums.shifts[...] = jnp.full_like(self.sums.shifts, LOWEST)

    def whole(self, heads: list[Scalar]) -> None:
        """All rows of some heads against a part of the keys, which are of one segment or hidden.

        Sums are written before it is known whether they are safe, so that this overlaps the products; those before this
        part are still there for the running maximum.
        """
        values, weights, shifts, failed = self.sums.values, self.sums.weights, self.sums.shifts, self.scratch.failed
        before, after = self.sides

        @pl.when(failed[heads[0]] == 0)
        def _() -> None:
            rows = pl.ds(0, self.plan.blocks.q)
            zeros = empty(self.plan.blocks.q, self.plan.lanes)
            carries = [self.without_shift(head, rows, zeros, of_text=False) for head in heads]
            for head, carry in zip(heads, carries):
                values[after, head] = values[before, head] + carry.values
                weights[after, head] = weights[before, head] + carry.weights

            @pl.when(jnp.logical_not(within_safety([weights[after, head] for head in heads])))
            def _() -> None:
                totals = [jnp.sum(weights[after, head], axis=1, keepdims=True) for head in heads]

                @pl.when(jnp.logical_not(within_safety(totals)) & self.sees(self.tokens))
                def _() -> None:
                    for head in heads:
                        failed[head] = 1
                        summed = jnp.sum(weights[before, head], axis=1, keepdims=True) > 0
                        shifts[head] = jnp.broadcast_to(jnp.where(summed, 0.0, LOWEST), shifts.shape[1:])

        @pl.when(failed[heads[0]] == 1)
        def _() -> None:
            self.tiles(heads)

    def carries(self, heads: list[Scalar], rows: Span) -> list[Carry]:
        before, _ = self.sides
        return [self._carry(head, rows, before, is_shifted=True) for head in heads]

    def keep(self, heads: list[Scalar], tile: Scalar, carries: list[Carry]) -> None:
        (_, after), rows = self.sides, self.rows_of(tile)
        for head, carry in zip(heads, carries):
            assert carry.shift is not None
            self.sums.values[after, head, rows, :] = carry.values
            self.sums.weights[after, head, rows, :] = carry.weights
            self.sums.shifts[head, rows, :] = jnp.broadcast_to(carry.shift, carry.weights.shape)

    def _carry(self, head: Scalar, rows: Span, side: Scalar, *, is_shifted: bool) -> Carry:
        """Sums of some rows, without the shift where it counts for none of them."""
        values, weights = self.sums.values[side, head, rows, :], self.sums.weights[side, head, rows, :]
        return Carry(values, weights, self.sums.shifts[head, rows, :][:, :1] if is_shifted else None)

    def finish(self, heads: list[Scalar]) -> None:
        """After the last part: divide, add the text, and write."""
        _, after = self.sides
        for head in heads:
            carry = functools.partial(self._carry, head, side=after)
            pl.when(self.scratch.failed[head] == 0)(functools.partial(self._divide, head, carry, is_shifted=False))
            pl.when(self.scratch.failed[head] == 1)(functools.partial(self._divide, head, carry, is_shifted=True))
        self.hide_padding(heads, pl.ds(0, self.plan.blocks.q))

    def _divide(self, head: Scalar, carry: Callable[..., Carry], *, is_shifted: bool) -> None:
        carry = functools.partial(carry, is_shifted=is_shifted)
        if self.plan.text:
            self.each_tile(lambda tile: self.finish_tile([head], tile, [carry(self.rows_of(tile))]))
        else:
            rows = pl.ds(0, self.plan.blocks.q)
            self.write(head, rows, carry(rows), None)


def _aligned(index: Scalar) -> Scalar:
    """The multiple of 16 at or below an index."""
    return jnp.bitwise_and(index, -ROWS_OF_A_REGISTER)
