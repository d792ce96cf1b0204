"""The forward kernel for TPU: softmax(scale q k^T) v + gate softmax(q k_text^T) v_text, within segments.

In: queries [b l h*d], keys and values [b n k*d], segment ids, and optionally text. Out: the sum [b l h*d] and, for the
backward pass, the logarithms (base 2) of both softmax denominators [b h 1 l].

A softmax does not need its maximum subtracted, only protection from overflow and underflow. A block of queries that
sees one segment is computed without any shift, which saves a pass over the logits; then the sums of every row are
looked at: a sum of 2^-60 to 2^60 proves that nothing overflowed and that what vanished is below 2^-66 of the whole. A
row outside makes its block, and no other, be computed again with a running maximum (Milakov and Gimelshein, arXiv
1805.02867), which is always safe. A block of several segments is computed so sample by sample (`packed_step.py`); where
segments do not lie in one piece, or keys are streamed, tile by tile with the running maximum.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels import streamed_step
from lumina_jax.kernels.blocks import padded, side_by_side
from lumina_jax.kernels.forward_step import Step
from lumina_jax.kernels.lanes import Heads, Ref
from lumina_jax.kernels.packed_step import packed
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.runs import Runs, runs
from lumina_jax.kernels.segments import Visits, visits
from lumina_jax.kernels.softmax_tiles import Keys

Interpret = bool | pltpu.InterpretParams
WHOLE = 0.75
"""From this share of the tiles on, a block of queries of one sample is computed against the whole row in VMEM."""
WHOLE_PARTS = 0.4
"""The same where keys are streamed, as a share of one part: against all parts that hold some of the sample."""


def forward(
    plan: Plan,
    q: Float[Array, "b l hd"],
    k: Float[Array, "b n kd"],
    v: Float[Array, "b n kd"],
    ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"],
    text: tuple[Array, ...] | None,
    *,
    interpret: Interpret,
) -> list[Array]:
    """Attention of a padded batch.

    Args:
      text: gate [h] after its tanh, keys and values [b t k*d], ids [b t], and queries [b l h*d] where it has its own.

    Returns:
      out [b l h*d]; for a plan with residuals also log2 of the denominators [b h 1 l], of the tokens and of the text.
    """
    blocks = plan.blocks
    most = WHOLE if plan.steps == 1 else WHOLE_PARTS / plan.steps
    cut = functools.partial(visits, ids, block=blocks.q, tile_q=blocks.tile_q, most=most)
    seen = cut(key_ids, tile_kv=blocks.kv)
    scalars: list[Array] = [*cut(key_ids, tile_kv=blocks.tile_kv), *_parts(plan, seen)]
    if plan.steps == 1:
        scalars += runs(ids, key_ids, text[3] if text else None, block=blocks.q, tile=blocks.run_q)
    arrays = [q, k, v, ids[:, None], key_ids[:, None]]
    if text is not None:
        gate, text_keys, text_values, text_ids, *own = text
        scalars += [gate.astype(jnp.float32), *cut(text_ids, tile_kv=plan.text_tile)[:2]]
        arrays += [text_keys, text_values, text_ids[:, None], *own]
    logs = jax.ShapeDtypeStruct((plan.batch, plan.heads, 1, plan.length), jnp.float32)
    out_shape = [jax.ShapeDtypeStruct(q.shape, q.dtype)] + [logs] * plan.logs
    specs = _specs(plan)
    call = pl.pallas_call(
        functools.partial(_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=plan.grid,
            in_specs=specs[: len(arrays)],
            out_specs=specs[len(arrays) :],
            scratch_shapes=_scratch(plan),
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem,
        ),
        cost_estimate=plan.cost(products=2, itemsize=q.dtype.itemsize),
        interpret=interpret,
        name="lumina_flash_forward",
    )
    return list(call(*scalars, *arrays))


def _parts(plan: Plan, seen: Visits) -> list[Array]:
    """First and last part of the keys that each block of queries needs: no other is brought into VMEM or computed.

    Where it needs none, both are the last of all.
    """
    tiles = plan.blocks.q // plan.blocks.tile_q
    first, end = (x.reshape(-1, tiles) for x in (seen.first, seen.end))
    some = end > first
    low = jnp.min(jnp.where(some, first, plan.steps), axis=-1)
    high = jnp.max(jnp.where(some, end - 1, -1), axis=-1)
    low = jnp.minimum(low, plan.steps - 1)
    return [low, jnp.maximum(high, low)]


def _specs(plan: Plan) -> list[pl.BlockSpec]:
    """Blocks of the arrays in, then of the arrays out."""
    blocks, count = plan.blocks, plan.length // plan.blocks.q

    def part(b, i, j, scalars):
        row = b * count + i
        return jnp.clip(j, scalars[5][row], scalars[6][row]) if plan.steps > 1 else 0

    lanes = padded(blocks.heads * plan.width)

    def queries(b, g, t, i, j, *scalars):
        return b, i, g * plan.repeats + t

    def keys(b, g, t, i, j, *scalars):
        return b, part(b, i, j, scalars), g

    def logs(b, g, t, i, j, *scalars):
        return b, g * plan.repeats + t, 0, i

    of_queries = pl.BlockSpec((None, blocks.q, lanes), queries)
    of_keys = pl.BlockSpec((None, blocks.kv, lanes), keys)
    ids = pl.BlockSpec((None, 1, blocks.q), lambda b, g, t, i, j, *scalars: (b, 0, i))
    key_ids = pl.BlockSpec((None, 1, blocks.kv), lambda b, g, t, i, j, *scalars: (b, 0, part(b, i, j, scalars)))
    specs = [of_queries, of_keys, of_keys, ids, key_ids]
    if plan.text:
        of_text = pl.BlockSpec((None, plan.text, lanes), lambda b, g, t, i, j, *scalars: (b, 0, g))
        text_ids = pl.BlockSpec((None, 1, plan.text), lambda b, g, t, i, j, *scalars: (b, 0, 0))
        specs += [of_text, of_text, text_ids] + [of_queries] * plan.own_queries
    return [*specs, of_queries] + [pl.BlockSpec((None, blocks.heads, 1, blocks.q), logs)] * plan.logs


def _scratch(plan: Plan) -> list[Any]:
    rows, heads = plan.blocks.q, plan.blocks.heads
    sums = [pltpu.VMEM((2, heads, rows, size), jnp.float32) for size in (plan.lanes, LANES)]
    sums.append(pltpu.VMEM((heads, rows, LANES), jnp.float32))
    columns = [pltpu.VMEM((rows, LANES), jnp.float32)] * plan.logs
    return [pltpu.SMEM((heads,), jnp.int32), *(sums if plan.steps > 1 else columns)]


def _kernel(plan: Plan, *references: Ref) -> None:
    refs = iter(references)

    def take(count: int) -> list[Ref]:
        return [next(refs) for _ in range(count)]

    of_tokens = Visits(*take(5))
    ends = take(2)
    of_runs = Runs(*take(2)) if plan.steps == 1 else None
    gate, *of_text = take(3) if plan.text else [None]
    arrays = take(5)
    text = take(3) if plan.text else []
    own = take(1) if plan.own_queries else []
    out, *logs = take(1 + plan.logs)
    spread = [arrays[0], arrays[1], arrays[2], *text[:2], *own, out]
    heads = [Heads(block, plan.width) for block in spread]
    failed = next(refs)
    sums = take(3) if plan.steps > 1 else None
    columns = take(plan.logs if sums is None else 0)
    step = _step(plan, of_tokens, of_runs, of_text, ends, gate, heads, arrays, text, logs, failed, columns, sums)
    if sums is None:
        _both_kinds(step, step.whole, functools.partial(packed, step))
        return
    pl.when(step.part == step.first_part)(lambda: streamed_step.start(step))
    whole, finish = (functools.partial(work, step) for work in (streamed_step.whole, streamed_step.finish))
    needed = (step.part >= step.first_part) & (step.part <= step.last_part)
    pl.when(needed)(lambda: _both_kinds(step, whole, step.tiles))
    pl.when(step.part == step.last_part)(lambda: plan.each_head(finish, side_by_side=1))


def _both_kinds(step: Step, of_one: Callable[[list[Any]], None], of_several: Callable[[list[Any]], None]) -> None:
    """Work on all heads of a block of queries of one segment, or of several."""
    sees_one = step.visits.single[step.row] > 0
    together = side_by_side(step.plan.blocks, streamed=step.sums is not None)
    pl.when(sees_one)(lambda: step.plan.each_head(of_one, side_by_side=together))
    pl.when(jnp.logical_not(sees_one))(lambda: step.plan.each_head(of_several, side_by_side=4))


def _step(plan, of_tokens, of_runs, of_text, ends, gate, heads, arrays, text, logs, failed, columns, sums) -> Step:
    place = [pl.program_id(axis) for axis in range(5)]
    own = heads[5] if plan.own_queries else heads[0]
    row = place[0] * (plan.length // plan.blocks.q) + place[3]
    return Step(
        plan=plan,
        group=place[1],
        repeat=place[2],
        block=place[3],
        part=place[4],
        first_part=ends[0][row],
        last_part=ends[1][row],
        row=row,
        visits=of_tokens,
        runs=of_runs,
        text_visits=tuple(of_text),
        gate=gate,
        queries=heads[0],
        text_queries=own,
        out=heads[-1],
        tokens=Keys(heads[1], heads[2], arrays[4]),
        text=Keys(heads[3], heads[4], text[2]) if plan.text else None,
        ids=arrays[3],
        logs=logs[0] if logs else None,
        text_logs=logs[1] if len(logs) > 1 else None,
        failed=failed,
        columns=columns,
        sums=None if sums is None else tuple(sums),
    )
