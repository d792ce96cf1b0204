"""The backward kernel for TPU: gradients of `forward.py` with respect to queries, keys, values, text and gate.

In: what the forward pass had and wrote, and the gradient of its output. Out: gradients in the same layouts.

Weights are computed again from the logarithms of the denominators (Dao et al., arXiv 2205.14135), so that no tensor of
queries x keys exists. A grid step takes a block of queries against a window of the keys; it has keys along sublanes and
queries along lanes, so that only one of the five products needs a transposed operand. Gradients of keys and values are
summed in VMEM over the blocks of queries, in a fixed order: the result is the same every time.

With p the weights, o the output and g the gate: dv = p^T do; ds = p (do v^T - delta), where delta = do . o for the o
of this softmax; dq = ds k; dk = ds^T q. The output o holds both softmaxes, so delta of the tokens is
do . o - g delta_text, and delta_text = sum of p_text (do v_text^T) is also the gradient of the gate.

Where VMEM holds all keys of some heads, one call does everything. Otherwise there is a call for the text, if any, and
one for each window of the keys. A window's call adds its share to dq in HBM, reads no block of queries that sees
nothing of the window, and overwrites the window's keys and values with their gradients. The queries are read once for
each window, so a window should be long, and the heads in VMEM few: heads that share registers are moved to registers
that each has alone (`regroup.py`) before the first call.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.flash.blocks import padded
from lumina_jax.kernels.flash.forward import ForwardOutputs
from lumina_jax.kernels.flash.heads import (
    FIRST_AXES,
    TRANSPOSED,
    BlockIndex,
    BlockShape,
    Head,
    Heads,
    Index,
    Scalar,
    Span,
    across,
    clear_beyond,
    column,
    product,
    row_sums,
)
from lumina_jax.kernels.flash.plan import Interpret, KernelPlan, PaddedText, from_hbm
from lumina_jax.kernels.flash.regroup import regrouped
from lumina_jax.kernels.flash.tiles import LOG2E, Keys, Value, scaled, unrolled_loop
from lumina_jax.kernels.flash.visits import Leaf, TextScalars, Visits, visits

MOST_OF_A_ROW = 0.4
"""Share of the tiles from which a block of queries of one sample is computed against the whole row."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowScalars(Generic[Leaf]):
    """One window of the keys: its number [1], and the first and last block of queries of each row that see something of
    it [b]; 0 and -1 where none does."""

    number: Leaf
    first_block: Leaf
    last_block: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardScalars(Generic[Leaf]):
    """What steers the backward kernel, in scalar memory."""

    visits: Visits[Leaf]
    text: TextScalars[Leaf] | None
    window: WindowScalars[Leaf] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyInputs(Generic[Leaf]):
    """Keys and values of the tokens or of the text, their segment ids, and log2 of the denominators by query."""

    keys: Leaf
    values: Leaf
    ids: Leaf
    logs: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardInputs(Generic[Leaf]):
    """Blocks that the backward kernel reads. A call for the text alone has no `tokens`, one for a window no `text`.

    Attributes:
      gradient: of the output.
      out, delta: the output, or delta by query (do . o of all that is not yet subtracted) where keys are taken in
        windows; one of the two is None.
      text_queries: None where the queries of the tokens serve.
      total: the gradient of the queries before this window.
    """

    queries: Leaf
    gradient: Leaf
    out: Leaf | None
    delta: Leaf | None
    ids: Leaf
    tokens: KeyInputs[Leaf] | None
    text: KeyInputs[Leaf] | None
    text_queries: Leaf | None
    total: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyGradients(Generic[Leaf]):
    """Gradients of keys and values: blocks to be written, or sums over blocks of queries [heads, keys, width]."""

    keys: Leaf
    values: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardOutputs(Generic[Leaf]):
    """Gradients of the arrays of `BackwardInputs`; of the gates by query [b h 1 l].

    Attributes:
      delta: the delta of the tokens, which a call for the text alone finds.
    """

    queries: Leaf
    tokens: KeyGradients[Leaf] | None
    text: KeyGradients[Leaf] | None
    gates: Leaf | None
    text_queries: Leaf | None
    delta: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardScratch(Generic[Leaf]):
    """Memory that the backward kernel works in: sums in float32, and segment ids of keys as columns [n 128]."""

    tokens: KeyGradients[Leaf] | None
    text: KeyGradients[Leaf] | None
    token_ids: Leaf | None
    text_ids: Leaf | None


class BackwardPosition(NamedTuple):
    """A step of the grid: row of the batch, group of key heads, which of the query heads that share them, block of
    queries."""

    batch: Scalar
    group: Scalar
    repeat: Scalar
    block: Scalar


def backward(
    plan: KernelPlan,
    q: Float[Array, "b l hd"],
    k: Float[Array, "b n kd"],
    v: Float[Array, "b n kd"],
    ids: Int[Array, "b blocks_l"],
    key_ids: Int[Array, "b blocks_n"],
    text: PaddedText | None,
    found: ForwardOutputs[Array],
    gradient: Float[Array, "b l hd"],
    *,
    interpret: Interpret,
) -> BackwardOutputs[Array]:
    """Gradients of `forward`. `plan.keys` are all keys: they are taken in windows of `plan.blocks.kv_backward`.

    Args:
      found: what the forward pass returned, with logarithms.
      gradient: of the output.
    """
    move = functools.partial(_moved, plan, dtype=q.dtype, interpret=interpret)
    move_keys, move_queries = (functools.partial(move, are_queries=of_queries) for of_queries in (False, True))
    assert found.logs is not None
    inputs = BackwardInputs(
        queries=move_queries(q),
        gradient=move_queries(gradient),
        out=None,
        delta=None,
        ids=ids[:, None],
        tokens=KeyInputs(move_keys(k), move_keys(v), key_ids[:, None], found.logs),
        text=None,
        text_queries=None,
        total=None,
    )
    if text is not None:
        assert found.text_logs is not None
        text_inputs = KeyInputs(
            move_keys(text.keys), move_keys(text.values), text.segment_ids[:, None], found.text_logs
        )
        queries = None if text.queries is None else move_queries(text.queries)
        inputs = replace(inputs, text=text_inputs, text_queries=queries)
    if plan.keys == plan.blocks.kv_backward:
        scalars = _scalars(plan, ids, key_ids, text)
        result = _call(plan, scalars, replace(inputs, out=move_queries(found.out)), interpret=interpret)
    else:
        delta = jnp.where(ids[:, None, None] > 0, _delta(plan, found.out, gradient), 0.0)
        result = _by_windows(plan, ids, key_ids, text, replace(inputs, delta=delta), interpret=interpret)
    return replace(
        result,
        queries=move_queries(result.queries, back=True),
        tokens=jax.tree.map(functools.partial(move_keys, back=True), result.tokens),
        text=jax.tree.map(functools.partial(move_keys, back=True), result.text),
        text_queries=jax.tree.map(functools.partial(move_queries, back=True), result.text_queries),
    )


def _moved(
    plan: KernelPlan,
    x: Float[Array, "b l x"],
    *,
    are_queries: bool,
    back: bool = False,
    dtype: DTypeLike,
    interpret: Interpret,
) -> Float[Array, "b l y"]:
    """Heads from the groups of the forward pass to those of the backward pass, or back."""
    forward_groups, backward_groups, heads = plan.blocks.heads, plan.blocks.heads_backward, plan.key_heads
    if are_queries:
        forward_groups, backward_groups, heads = plan.query_heads, plan.query_heads_backward, plan.heads
    old, new = (backward_groups, forward_groups) if back else (forward_groups, backward_groups)
    return regrouped(x, heads=heads, width=plan.width, old=old, new=new, dtype=dtype, interpret=interpret)


def _by_windows(
    plan: KernelPlan,
    ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"],
    text: PaddedText | None,
    inputs: BackwardInputs[Array],
    *,
    interpret: Interpret,
) -> BackwardOutputs[Array]:
    """As `backward`, with the gradient of q in float32."""
    tokens = inputs.tokens
    assert tokens is not None
    if text is not None:
        result = _call(plan, _scalars(plan, ids, key_ids, text), replace(inputs, tokens=None), interpret=interpret)
        inputs = replace(inputs, text=None, text_queries=None, delta=result.delta)
    else:
        result = BackwardOutputs(jnp.zeros(inputs.queries.shape, jnp.float32), *[None] * 5)

    def step(sums: tuple[Array, ...], window: Index) -> tuple[tuple[Array, ...], None]:
        total, keys, values = sums
        of_window = replace(inputs, tokens=replace(tokens, keys=keys, values=values), total=total)
        found = _call(plan, _scalars(plan, ids, key_ids, None, window), of_window, interpret=interpret)
        assert found.tokens is not None
        return (found.queries, found.tokens.keys, found.tokens.values), None

    # Padding is cleared before, not in VMEM: what is written to a block that gradients replace may come back over them.
    kept = [jnp.where(key_ids[:, :, None] > 0, x, jnp.zeros((), x.dtype)) for x in (tokens.keys, tokens.values)]
    sums = [jnp.pad(x, [(0, 0), (0, 0), (0, padded(x.shape[2]) - x.shape[2])]) for x in (result.queries, *kept)]
    windows = jnp.arange(plan.keys // plan.blocks.kv_backward)
    found, _ = jax.lax.scan(step, tuple(sums), windows)
    dq, dk, dv = (x[..., : like.shape[2]] for x, like in zip(found, (result.queries, *kept)))
    return replace(result, queries=dq, tokens=KeyGradients(dk, dv), delta=None)


def _delta(plan: KernelPlan, out: Float[Array, "b l hd"], gradient: Float[Array, "b l hd"]) -> Float[Array, "b h 1 l"]:
    """do . o of every head, by a product with a matrix that says which head a lane belongs to; tokens stay in lanes."""
    group, lane = plan.query_heads, jnp.arange(out.shape[2])
    lanes = padded(group * plan.width)
    within = lane % lanes
    head = jnp.where(within < group * plan.width, lane // lanes * group + within // plan.width, -1)
    products = jnp.where(head >= 0, out.astype(jnp.float32) * gradient.astype(jnp.float32), 0.0)
    owner = (head[:, None] == jnp.arange(plan.heads)).astype(jnp.float32)
    return jnp.einsum("blx,xh->bhl", products, owner, precision=jax.lax.Precision.HIGHEST)[:, :, None]


def _scalars(
    plan: KernelPlan,
    ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"],
    text: PaddedText | None,
    window: Int[Array, ""] | None = None,
) -> BackwardScalars[Array]:
    """Scalars of a call for all keys and the text, or for one window of the keys."""
    blocks = plan.blocks
    seen_by = functools.partial(visits, ids, block=blocks.q_backward, tile_q=blocks.tile_q_backward)
    of_window, of_text = None, None
    if window is None:
        seen = seen_by(key_ids, tile_kv=blocks.tile_kv_backward, most=MOST_OF_A_ROW)
    else:
        size = blocks.kv_backward
        window_ids = jax.lax.dynamic_slice_in_dim(key_ids, window * size, size, axis=1)
        # A window may be longer than a sample: what counts is whether the queries are of one.
        seen = seen_by(window_ids, tile_kv=blocks.tile_kv_backward, most=0.0)
        sees = (seen.end > seen.first).reshape(plan.batch, plan.length // blocks.q_backward, -1)
        sees = jnp.any(sees, axis=-1)
        last = sees.shape[1] - 1 - jnp.argmax(sees[:, ::-1], axis=-1)
        last = jnp.where(jnp.any(sees, axis=-1), last, -1)
        of_window = WindowScalars(window[None], jnp.argmax(sees, axis=-1), last)
    if text is not None:
        seen_text = seen_by(text.segment_ids, tile_kv=plan.text_tile, most=MOST_OF_A_ROW)
        of_text = TextScalars(text.gate.astype(jnp.float32), seen_text.first, seen_text.end)
    return BackwardScalars(seen, of_text, of_window)


def _call(
    plan: KernelPlan, scalars: BackwardScalars[Array], inputs: BackwardInputs[Array], *, interpret: Interpret
) -> BackwardOutputs[Array]:
    """Gradients through all keys; or those through the text alone, or through one window of the keys.

    Where keys are taken in windows the gradient of q is in float32, and a window's gradients of keys and values
    overwrite its keys and values in the arrays of `inputs.tokens`.
    """
    in_specs, out_specs = _specs(plan, inputs, in_window=scalars.window is not None)
    shapes = _shapes(plan, inputs)
    _, indices = cast("tuple[object, BackwardInputs[int]]", _numbered((scalars, inputs)))
    results = cast("BackwardOutputs[int]", _numbered(shapes))
    aliases = {}
    if indices.total is not None and indices.tokens and results.tokens:
        aliases = {
            indices.total: results.queries,
            indices.tokens.keys: results.tokens.keys,
            indices.tokens.values: results.tokens.values,
        }
    sizes = plan.blocks
    call = pl.pallas_call(
        functools.partial(_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=BackwardPosition(
                batch=plan.batch,
                group=plan.key_heads // sizes.heads_backward,
                repeat=plan.repeats * sizes.heads_backward // plan.query_heads_backward,
                block=plan.length // sizes.q_backward,
            ),
            in_specs=(in_specs,),
            out_specs=out_specs,
            scratch_shapes=cast("Sequence[pl.MemoryRef]", (_scratch(plan, inputs),)),  # jax takes any tree of them
        ),
        out_shape=shapes,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=plan.vmem_backward
        ),
        cost_estimate=_cost(plan, inputs, shapes),
        interpret=interpret,
        name="lumina_flash_backward" if inputs.tokens else "lumina_flash_backward_text",
    )
    return from_hbm(call, interpret=interpret)(scalars, inputs)


def _numbered(tree: object) -> object:
    """The tree with its leaves replaced by their indices in the flattened tree."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, range(len(leaves)))


def _specs(
    plan: KernelPlan, inputs: BackwardInputs[Array], *, in_window: bool
) -> tuple[BackwardInputs[pl.BlockSpec], BackwardOutputs[pl.BlockSpec]]:
    """Blocks of the arrays that go in and out."""
    sizes = plan.blocks
    heads, lanes = plan.query_heads_backward, padded(sizes.heads_backward * plan.width)
    query_lanes, repeats = padded(heads * plan.width), plan.repeats * sizes.heads_backward // heads

    def spec(shape: BlockShape, index: Callable[[BackwardPosition, BackwardScalars], BlockIndex]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *step: index(BackwardPosition(*step[:-1]), step[-1]))

    def block(at: BackwardPosition, scalars: BackwardScalars) -> Scalar:
        if scalars.window is None:
            return at.block
        # The blocks before and after those that see something are not brought: the nearest that does stays.
        nearest = jnp.minimum(at.block, scalars.window.last_block[at.batch])
        return jnp.maximum(nearest, scalars.window.first_block[at.batch])

    def window(scalars: BackwardScalars) -> Scalar:
        return 0 if scalars.window is None else scalars.window.number[0]

    def head(at: BackwardPosition) -> Scalar:
        return at.group * repeats + at.repeat

    size, text_size = sizes.kv_backward, plan.text
    queries = spec((None, sizes.q_backward, query_lanes), lambda at, scalars: (at.batch, block(at, scalars), head(at)))
    rows = spec((None, heads, 1, sizes.q_backward), lambda at, scalars: (at.batch, head(at), 0, block(at, scalars)))
    ids = spec((None, 1, sizes.q_backward), lambda at, scalars: (at.batch, 0, block(at, scalars)))
    keys = spec((None, size, lanes), lambda at, scalars: (at.batch, window(scalars), at.group))
    key_ids = spec((None, 1, size), lambda at, scalars: (at.batch, 0, window(scalars)))
    text = spec((None, text_size, lanes), lambda at, _: (at.batch, 0, at.group))
    text_ids = spec((None, 1, text_size), lambda at, _: (at.batch, 0, 0))
    in_specs = BackwardInputs(
        queries=queries,
        gradient=queries,
        out=_where(inputs.out, queries),
        delta=_where(inputs.delta, rows),
        ids=ids,
        tokens=_where(inputs.tokens, KeyInputs(keys, keys, key_ids, rows)),
        text=_where(inputs.text, KeyInputs(text, text, text_ids, rows)),
        text_queries=_where(inputs.text_queries, queries),
        total=_where(inputs.total, queries),
    )
    out_specs = BackwardOutputs(queries, KeyGradients(keys, keys), KeyGradients(text, text), rows, queries, rows)
    return in_specs, _present(inputs, out_specs)


def _shapes(plan: KernelPlan, inputs: BackwardInputs[Array]) -> BackwardOutputs[jax.ShapeDtypeStruct]:
    q, of_inputs = inputs.queries, functools.partial(jax.ShapeDtypeStruct, dtype=inputs.queries.dtype)
    keys, text = (of_inputs(q.shape if of is None else of.keys.shape) for of in (inputs.tokens, inputs.text))
    by_query = jax.ShapeDtypeStruct((plan.batch, plan.heads, 1, plan.length), jnp.float32)
    dq_shape = q.shape if inputs.total is None else inputs.total.shape
    dq = jax.ShapeDtypeStruct(dq_shape, q.dtype if inputs.delta is None else jnp.float32)
    return _present(
        inputs,
        BackwardOutputs(dq, KeyGradients(keys, keys), KeyGradients(text, text), by_query, of_inputs(q.shape), by_query),
    )


def _present(inputs: BackwardInputs[Array], outputs: BackwardOutputs[Leaf]) -> BackwardOutputs[Leaf]:
    """The outputs that a call with these inputs has."""
    return BackwardOutputs(
        queries=outputs.queries,
        tokens=_where(inputs.tokens, outputs.tokens),
        text=_where(inputs.text, outputs.text),
        gates=_where(inputs.text, outputs.gates),
        text_queries=_where(inputs.text_queries, outputs.text_queries),
        delta=outputs.delta if inputs.tokens is None else None,
    )


def _where(present: object | None, value: Value) -> Value | None:
    return None if present is None else value


def _scratch(plan: KernelPlan, inputs: BackwardInputs[Array]) -> BackwardScratch[pl.MemoryRef]:
    heads = plan.blocks.heads_backward

    def sums(rows: int) -> KeyGradients[pl.MemoryRef]:
        one = pltpu.VMEM((heads, rows, plan.lanes), jnp.float32)
        return KeyGradients(one, one)

    def columns(rows: int) -> pl.MemoryRef:
        return pltpu.VMEM((rows, LANES), jnp.int32)

    return BackwardScratch(
        tokens=_where(inputs.tokens, sums(plan.blocks.kv_backward)),
        text=_where(inputs.text, sums(plan.text)),
        token_ids=_where(inputs.tokens, columns(plan.blocks.kv_backward)),
        text_ids=_where(inputs.text, columns(plan.text)),
    )


def _cost(
    plan: KernelPlan, inputs: BackwardInputs[Array], shapes: BackwardOutputs[jax.ShapeDtypeStruct]
) -> pl.CostEstimate:
    """For rows of one sample. Every array goes through HBM once; of arrays as long as all keys, one window does."""
    size, itemsize, heads = plan.blocks.kv_backward, inputs.queries.dtype.itemsize, plan.blocks.heads_backward
    part = replace(plan, keys=size if inputs.tokens else 0, text=plan.text if inputs.text else 0)
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((inputs, shapes)))
    if inputs.total is not None:
        lanes = padded(heads * plan.width) * plan.key_heads // heads
        moved -= 4 * plan.batch * (plan.keys - size) * lanes * itemsize
    return replace(part.cost(products=5, itemsize=itemsize), bytes_accessed=moved)


def _kernel(
    plan: KernelPlan,
    scalars: BackwardScalars[jax.Ref],
    inputs: BackwardInputs[jax.Ref],
    outputs: BackwardOutputs[jax.Ref],
    scratch: BackwardScratch[jax.Ref],
) -> None:
    at = BackwardPosition(*(pl.program_id(axis) for axis in range(4)))
    row = at.batch * (plan.length // plan.blocks.q_backward) + at.block
    step = BackwardStep(plan, scalars, inputs, outputs, scratch, at, row)
    pl.when(at.block == 0)(step.read_keys)
    pl.when((at.block == 0) & (at.repeat == 0))(step.start)
    if scalars.window is not None:
        first, last = scalars.window.first_block[at.batch], scalars.window.last_block[at.batch]
        seen = (at.block >= first) & (at.block <= last)
        pl.when(seen)(step.queries_of_block)
        pl.when((at.block == 0) & jnp.logical_not(seen))(step.keep)
    else:
        step.queries_of_block()
    pl.when((at.block == pl.num_programs(3) - 1) & (at.repeat == pl.num_programs(2) - 1))(step.write_keys)


class Rows(NamedTuple):
    """Some rows of a head's queries and what belongs to them; numbers by query are [1 q].

    Attributes:
      at: the rows of the block.
      queries: scaled, to logits of base 2.
      gradient: of the output.
      ids: segments.
      logs: log2 of the softmax's denominators.
      delta: sum of gradient times output of this softmax, or what is left of it.
    """

    at: Span
    queries: Float[Array, "q d"]
    gradient: Float[Array, "q d"]
    ids: Int[Array, "1 q"]
    logs: Float[Array, "1 q"]
    delta: Float[Array, "1 q"]


class Seen(NamedTuple):
    """What some rows of queries may see: keys in tiles first..end of `size`, and the text that `Visits` lists for the
    tile of queries with index `tile`; None: the rows are of several tiles, and there is no text."""

    first: Scalar
    end: Scalar
    size: int
    tile: Scalar | None = None


class Side(NamedTuple):
    """The tokens, or the text: keys (ids are columns [n 128]), what a call reads, and sums for the gradients."""

    keys: Keys
    inputs: KeyInputs[jax.Ref]
    sums: KeyGradients[jax.Ref]
    outputs: KeyGradients[jax.Ref]


def weights_and_slopes(
    rows: Rows, keys: Float[Array, "n d"], values: Float[Array, "n d"], key_ids: Int[Array, "n 128"] | None
) -> tuple[Float[Array, "n q"], Float[Array, "n q"]]:
    """The softmax's weights [keys, queries], and gradient . values.

    Args:
      key_ids: segments that say who sees whom; None: all see all, and keys and values of padding are zero, so that its
        weights contribute nothing as long as they are finite.
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
    """One step of the grid: a block of queries of some heads, and all keys or a window of them.

    Attributes:
      row: index of the block of queries among those of the whole batch.
    """

    plan: KernelPlan
    scalars: BackwardScalars[jax.Ref]
    inputs: BackwardInputs[jax.Ref]
    outputs: BackwardOutputs[jax.Ref]
    scratch: BackwardScratch[jax.Ref]
    position: BackwardPosition
    row: Scalar

    @property
    def tokens(self) -> Side | None:
        inputs, scratch = self.inputs, self.scratch
        return self._side(inputs.tokens, scratch.tokens, scratch.token_ids, self.outputs.tokens)

    @property
    def text(self) -> Side | None:
        inputs, scratch = self.inputs, self.scratch
        return self._side(inputs.text, scratch.text, scratch.text_ids, self.outputs.text)

    def _side(
        self,
        inputs: KeyInputs[jax.Ref] | None,
        sums: KeyGradients[jax.Ref] | None,
        ids: jax.Ref | None,
        outputs: KeyGradients[jax.Ref] | None,
    ) -> Side | None:
        if inputs is None or sums is None or ids is None or outputs is None:
            return None
        return Side(Keys(self._heads(inputs.keys), self._heads(inputs.values), ids), inputs, sums, outputs)

    def _heads(self, block: jax.Ref) -> Heads:
        return Heads(block, self.plan.width)

    def _sides(self) -> list[Side]:
        """The tokens and the text, those that the call has."""
        return [side for side in (self.tokens, self.text) if side is not None]

    def read_keys(self) -> None:
        """Make columns of the ids of keys, and clear keys and values of padding."""
        for side in self._sides():
            for start in range(0, side.inputs.ids.shape[1], LANES):
                side.keys.ids[start : start + LANES, :] = column(side.inputs.ids[:, start : start + LANES])
        if self.inputs.total is None and self.plan.blocks.heads_backward == self.plan.blocks.heads:
            for side in self._sides():
                for block in (side.inputs.keys, side.inputs.values):
                    clear_beyond(block, block.shape[0], self.plan.blocks.heads * self.plan.width)
        tokens = self.tokens
        if tokens is not None and self.inputs.total is None:

            @pl.when(jnp.min(tokens.inputs.ids[...]) <= 0)
            def _() -> None:
                _clear([tokens.inputs.keys, tokens.inputs.values], tokens.keys.ids)

    def start(self) -> None:
        """Nothing is summed yet."""
        for side in self._sides():
            for sums in (side.sums.keys, side.sums.values):
                sums[...] = jnp.zeros_like(sums)

    def queries_of_block(self) -> None:
        """The share of this block of queries, of all heads."""
        inputs, last = self.inputs, self.plan.length // self.plan.blocks.q_backward - 1

        @pl.when(self.position.block == last)
        def _() -> None:
            for block in (inputs.queries, inputs.gradient, inputs.out, inputs.text_queries):
                if block is not None:
                    clear_beyond(block, self.plan.rows - last * block.shape[0], block.shape[1])

        @pl.when(self.scalars.visits.padding[self.row] == 1)
        def _() -> None:  # queries of padding contribute nothing: their gradient becomes zero
            _clear([self.inputs.gradient], column(self.inputs.ids[...]))

        self.plan.each_head(self.head, side_by_side=1, count=self.plan.query_heads_backward)

    def keep(self) -> None:
        """This step adds nothing to the gradient of the queries."""
        if self.inputs.total is not None:
            self.outputs.queries[...] = self.inputs.total[...]

    def write_keys(self) -> None:
        """Write the gradients of keys and values; zero for padding."""
        for side in self._sides():
            kept = across(side.keys.ids[...], self.plan.lanes) > 0
            gradients = (side.sums.keys, side.outputs.keys, 1 / LOG2E), (side.sums.values, side.outputs.values, 1.0)
            for sums, block, scale in gradients:
                heads = self._heads(block)
                for head in range(self.plan.blocks.heads_backward):
                    heads.head(head).write(slice(None), jnp.where(kept, sums[head] * scale, 0.0))

    def head(self, heads: list[Scalar]) -> None:
        """All rows of one head: many at once where they and all keys are one segment, or where they are and keys come
        in windows, which hold more; else tile by tile."""
        (head,) = heads
        blocks, visits = self.plan.blocks, self.scalars.visits
        large = blocks.q_backward // blocks.q_compute_backward
        small, tile_q = blocks.q_backward // blocks.tile_q_backward, blocks.tile_q_backward
        first = self.row * small
        alone, in_tiles = visits.alone[self.row] > 0, visits.alone[self.row] == 0
        pl.when(alone)(lambda: _spans(large, blocks.q_compute_backward, lambda at, _: self._rows(head, at, None)))
        if self.inputs.total is not None:
            single, seen = visits.single[self.row] > 0, self._seen_by_block(first, small)
            work = functools.partial(_spans, large, blocks.q_compute_backward, lambda at, _: self._rows(head, at, seen))
            pl.when(in_tiles & single)(work)
            in_tiles = in_tiles & jnp.logical_not(single)

        def tile(at: Span, index: Scalar) -> None:
            number = first + index
            self._rows(head, at, Seen(visits.first[number], visits.end[number], blocks.tile_kv_backward, number))

        pl.when(in_tiles)(lambda: _spans(small, tile_q, tile))

    def _seen_by_block(self, first: Scalar, tiles: int) -> Seen:
        """The keys that the tiles of the block of queries may see, all together, in parts of large products."""
        low, high, blocks = jnp.int32(self.plan.length), jnp.int32(0), self.plan.blocks
        for tile in range(tiles):
            start, end = self.scalars.visits.first[first + tile], self.scalars.visits.end[first + tile]
            low = jnp.minimum(low, jnp.where(end > start, start, low))
            high = jnp.maximum(high, end)
        size, tile = blocks.kv_compute_backward, blocks.tile_kv_backward
        return Seen(jax.lax.div(low * tile, size), jax.lax.div(high * tile + size - 1, size), size)

    def _rows(self, head: Scalar, at: Span, seen: Seen | None) -> None:
        """Some rows of one head; `seen` is None where they see all."""
        plan, inputs, like, (side, *_) = self.plan, self.inputs, self._like(head), self._sides()
        gradient = self._heads(inputs.gradient).head(head).alone(at, like)
        if inputs.delta is not None:
            delta = inputs.delta[head, :, at]
        else:
            assert inputs.out is not None
            out = self._heads(inputs.out).head(head).alone(at, like)
            delta = row_sums(gradient.astype(jnp.float32) * out.astype(jnp.float32))
        queries = scaled(self._heads(inputs.queries).head(head).alone(at, like), plan.scale)
        logs = side.inputs.logs[head, :, at]
        rows = Rows(at, queries, gradient, inputs.ids[:, at], logs, delta)
        dq = jnp.zeros(rows.queries.shape, jnp.float32)
        if self.text is not None:
            dq, rows = self._text(self.text, head, rows, None if seen is None else seen.tile)
        if self.outputs.delta is not None:
            self.outputs.delta[head, :, at] = rows.delta
        if self.tokens is not None:
            dq = self._tokens(self.tokens, head, rows, seen, dq)
        dq = dq * plan.scale
        if inputs.total is not None:
            dq += self._heads(inputs.total).head(head).alone(at, like)
        self._heads(self.outputs.queries).head(head).write(at, dq, like)

    def _like(self, head: Scalar) -> Head | None:
        """The key head whose lanes a query head must have; None: the lanes are the same."""
        return None if self.plan.repeats == 1 else self._sides()[0].keys.keys.head(self._key_head(head))

    def _key_head(self, head: Scalar) -> Scalar:
        if self.plan.repeats == 1:
            return head
        return (self.position.repeat * self.plan.query_heads_backward + head) // self.plan.repeats

    def _tokens(
        self, tokens: Side, head: Scalar, rows: Rows, seen: Seen | None, dq: Float[Array, "q d"]
    ) -> Float[Array, "q d"]:
        blocks, key_head = self.plan.blocks, self._key_head(head)
        keys, values = tokens.keys.head(key_head)
        size = blocks.kv_compute_backward if seen is None else seen.size

        def step(start: Scalar, dq: Float[Array, "q d"]) -> Float[Array, "q d"]:
            at = pl.ds(start, size)
            ids = None if seen is None else tokens.keys.ids[at, :]
            weights, slopes = weights_and_slopes(rows, keys.read(at), values.read(at), ids)
            slopes = (weights * (slopes - rows.delta)).astype(rows.queries.dtype)
            tokens.sums.values[key_head, at, :] += product(weights.astype(slopes.dtype), rows.gradient)
            tokens.sums.keys[key_head, at, :] += product(slopes, rows.queries)
            return dq + product(slopes, keys.read(at), FIRST_AXES)

        if seen is None:
            return unrolled_loop(blocks.kv_backward // size, size, step, dq)
        return _tiles(seen.first, seen.end, size, step, dq)

    def _text(self, text: Side, head: Scalar, rows: Rows, tile: Scalar | None) -> tuple[Float[Array, "q d"], Rows]:
        """The text's share of dq, and the rows with what is left of delta for the tokens."""
        plan, scalars, key_head, size = self.plan, self.scalars.text, self._key_head(head), self.plan.text_tile
        assert scalars is not None
        assert self.outputs.gates is not None
        block = self.position.group * pl.num_programs(2) + self.position.repeat
        gate = scalars.gate[block * plan.query_heads_backward + head]
        keys, values = text.keys.head(key_head)
        queries = rows.queries
        if self.inputs.text_queries is not None:
            of_text = self._heads(self.inputs.text_queries).head(head)
            queries = scaled(of_text.alone(rows.at, self._like(head)), plan.text_scale)
        here = rows._replace(queries=queries, logs=text.inputs.logs[head, :, rows.at])

        def weigh(start: Scalar) -> tuple[Span, Array, Array]:
            at = pl.ds(start, size)
            return at, *weights_and_slopes(here, keys.read(at), values.read(at), text.keys.ids[at, :])

        def measure(start: Scalar, delta: Float[Array, "1 q"]) -> Float[Array, "1 q"]:
            _, weights, slopes = weigh(start)
            return delta + jnp.sum(weights * slopes, axis=0, keepdims=True)

        def step(start: Scalar, dq: Float[Array, "q d"]) -> Float[Array, "q d"]:
            at, weights, slopes = weigh(start)
            slopes = (gate * weights * (slopes - delta)).astype(queries.dtype)
            text.sums.values[key_head, at, :] += product((gate * weights).astype(slopes.dtype), here.gradient)
            text.sums.keys[key_head, at, :] += product(slopes, queries)
            return dq + product(slopes, keys.read(at), FIRST_AXES)

        def over_text(step: Callable[[Scalar, Array], Array], start: Array) -> Array:
            if tile is None:
                return unrolled_loop(plan.text // size, size, step, start)
            return _tiles(scalars.first[tile], scalars.end[tile], size, step, start)

        delta = over_text(measure, jnp.zeros(rows.ids.shape, jnp.float32))
        dq = over_text(step, jnp.zeros(queries.shape, jnp.float32))
        self.outputs.gates[head, :, rows.at] = delta
        if self.outputs.text_queries is not None:
            self._heads(self.outputs.text_queries).head(head).write(rows.at, dq * plan.text_scale, self._like(head))
            dq = jnp.zeros_like(dq)
        return dq, rows._replace(delta=rows.delta - gate * delta)


def _clear(blocks: list[jax.Ref], ids: jax.Ref | Int[Array, "n 128"]) -> None:
    """Zeros for padding."""
    kept = ids[...] > 0
    for block in blocks:
        for start in range(0, block.shape[1], LANES):
            lanes = block[:, start : start + LANES]
            block[:, start : start + LANES] = jnp.where(kept, lanes, jnp.zeros((), block.dtype))


def _spans(count: int, size: int, work: Callable[[Span, Scalar], None]) -> None:
    """work(rows, index) for each `size` rows of a block."""
    if count == 1:
        work(pl.ds(0, size), 0)
    else:
        pl.loop(0, count)(lambda index: work(pl.ds(pl.multiple_of(index * size, size), size), index))


def _tiles(first: Scalar, end: Scalar, size: int, step: Callable[[Scalar, Array], Array], start: Array) -> Array:
    return jax.lax.fori_loop(first, end, lambda index, value: step(pl.multiple_of(index * size, size), value), start)
