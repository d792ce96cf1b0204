"""The backward kernel for TPU: gradients of `flash_forward.py` with respect to queries, keys, values, text and gate.

In: what the forward pass had and wrote, and the gradient of its output. Out: gradients in the same layouts.

Weights are computed again from the logarithms of the denominators (Dao et al., arXiv 2205.14135), so that no tensor of
queries x keys exists. A grid step takes a block of queries against a window of the keys; it has keys along sublanes and
queries along lanes, so that only one of the five products needs a transposed operand. Gradients of keys and values are
summed in VMEM over the blocks of queries, in a fixed order: the result is the same every time.

With p the weights, o the output and g the gate: dv = p^T do; ds = p (do v^T - delta), delta = do . (o of this softmax);
dq = ds k; dk = ds^T q. The output o holds both softmaxes, so delta of the tokens is do . o - g delta_text, and
delta_text = sum of p_text (do v_text^T) is also the gradient of the gate.

Where VMEM holds all keys of some heads, one call does everything. Else there is a call for the text, if any, and one
for each window of the keys, which adds its share to dq in HBM, reads no block of queries that sees nothing of it, and
puts the gradients of its keys and values in the place of them. The queries are read once for each window, so a window
should be long, and so the heads in VMEM few: those that fill no whole registers get registers of their own before.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.backward_step import BackwardStep, Gradients
from lumina_jax.kernels.blocks import padded
from lumina_jax.kernels.flash_forward import Interpret
from lumina_jax.kernels.lanes import Heads, Ref
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.regroup import regrouped
from lumina_jax.kernels.segments import WHOLE, Visits, visits
from lumina_jax.kernels.softmax_tiles import Keys


def backward(
    plan: Plan,
    q: Float[Array, "b l hd"],
    k: Float[Array, "b n kd"],
    v: Float[Array, "b n kd"],
    ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"],
    text: tuple[Array, ...] | None,
    out: Float[Array, "b l hd"],
    logs: list[Float[Array, "b h 1 l"]],
    gradient: Float[Array, "b l hd"],
    *,
    interpret: Interpret,
) -> list[Array]:
    """Gradients of q, k and v; then, where there is text, of its keys, values, of every gate by token [b h 1 l], and
    of the text's own queries. `plan.keys` are all keys: they are taken in windows of `plan.blocks.kv_backward`.

    Args:
      out, logs: as `flash_forward.forward` returned them.
      gradient: of the output.
    """
    sizes = plan.blocks
    move: Any = functools.partial(regrouped, width=plan.width, dtype=q.dtype, interpret=interpret)
    spread = functools.partial(move, old=sizes.heads, new=sizes.heads_backward)
    tokens = (spread(k), spread(v), key_ids)
    if text is not None:
        gate, text_keys, text_values, text_ids, *own = text
        text = (gate, spread(text_keys), spread(text_values), text_ids, *map(spread, own))
    call = functools.partial(_call, plan, spread(q), spread(gradient), ids, key_ids, interpret=interpret)
    if plan.keys == sizes.kv_backward:
        found = call(spread(out), tokens, text, logs)
    else:
        delta = jnp.where(ids[:, None, None] > 0, _delta(plan, out, gradient), 0.0)
        found = _by_windows(call, plan, tokens, text, logs, delta)
    back = functools.partial(move, old=sizes.heads_backward, new=sizes.heads)
    return [x if x.ndim == 4 else back(x) for x in found]


def _by_windows(
    call: Any,
    plan: Plan,
    tokens: tuple[Array, ...],
    text: tuple[Array, ...] | None,
    logs: list[Float[Array, "b h 1 l"]],
    delta: Float[Array, "b h 1 l"],
) -> list[Array]:
    """As `backward`, with the gradient of q in float32."""
    k, v, key_ids = tokens
    # Padding is cleared before, not in VMEM: what is written to a block that gradients replace may come back over them.
    k, v = (jnp.where(key_ids[:, :, None] > 0, x, jnp.zeros((), x.dtype)) for x in (k, v))
    if text is not None:
        dq, *of_text, delta = call(delta, None, text, logs)
    else:
        lanes = k.shape[2] * plan.repeats
        dq, of_text = jnp.zeros((plan.batch, plan.length, lanes), jnp.float32), []

    def step(sums: Any, window: Int[Array, ""]) -> Any:
        dq, k, v = sums
        return tuple(call(delta, (k, v, key_ids), None, logs, window=window, total=dq)), None

    (dq, dk, dv), _ = jax.lax.scan(step, (dq, k, v), jnp.arange(plan.keys // plan.blocks.kv_backward))
    return [dq, dk, dv, *of_text]


def _delta(plan: Plan, out: Float[Array, "b l hd"], gradient: Float[Array, "b l hd"]) -> Float[Array, "b h 1 l"]:
    """do . o of every head, by a product with what tells whose a lane is, which leaves the tokens in lanes."""
    group, lane = plan.blocks.heads, jnp.arange(out.shape[2])
    place = lane % padded(group * plan.width)
    head = jnp.where(place < group * plan.width, lane // padded(group * plan.width) * group + place // plan.width, -1)
    products = jnp.where(head >= 0, out.astype(jnp.float32) * gradient.astype(jnp.float32), 0.0)
    owner = (head[:, None] == jnp.arange(plan.heads)).astype(jnp.float32)
    return jnp.einsum("blx,xh->bhl", products, owner, precision=jax.lax.Precision.HIGHEST)[:, :, None]


def _call(
    plan: Plan,
    q: Float[Array, "b l hd"],
    gradient: Float[Array, "b l hd"],
    ids: Int[Array, "b l"],
    all_ids: Int[Array, "b n"],
    of_out: Array,
    tokens: tuple[Array, ...] | None,
    text: tuple[Array, ...] | None,
    logs: list[Float[Array, "b h 1 l"]],
    *,
    interpret: Interpret,
    window: Int[Array, ""] | None = None,
    total: Float[Array, "b l hd"] | None = None,
) -> list[Array]:
    """Gradients through all keys; or those through the text alone, or through one window of the keys.

    Args:
      all_ids: segments of all keys.
      of_out: the output, or delta where something is left out: do . o of what is not text, once that is known.
      tokens: keys, values and segments; None: the text alone.
      window: which window. Its gradients of keys and values are put into the arrays of `tokens`.
      total: the gradient of q so far.

    Returns:
      The gradients; of the text alone that of q in float32, and last the delta of the tokens.
    """
    blocks, built = plan.blocks, _Built(plan, tokens is not None, text is not None)
    cut = functools.partial(visits, ids, block=blocks.q_backward, tile_q=blocks.tile_q_backward)
    seen = all_ids
    if window is not None:
        seen = jax.lax.dynamic_slice_in_dim(all_ids, window * blocks.kv_backward, blocks.kv_backward, axis=1)
    # A window may be longer than a sample: what counts is whether the queries are of one.
    of_tokens = cut(seen, tile_kv=blocks.tile_kv_backward, most=WHOLE if window is None else 0.0)
    scalars, arrays, aliases = [*of_tokens], [q, gradient, of_out, ids[:, None]], {}
    if tokens is not None:
        arrays += [*tokens[:2], tokens[2][:, None], logs[0]]
    if text is not None:
        gate, text_keys, text_values, text_ids, *own = text
        scalars += [gate.astype(jnp.float32), *cut(text_ids, tile_kv=plan.text_tile)[:2]]
        arrays += [text_keys, text_values, text_ids[:, None], logs[1], *own]
    if window is not None and total is not None:
        scalars += [window[None], *_range(of_tokens, plan)]
        arrays.append(total)
        places = {len(arrays) - 1: 0, 4: 1, 5: 2}
        aliases = {len(scalars) + place: result for place, result in places.items()}
    specs, shapes = built.blocks(q, q.shape[2] // plan.repeats)
    call = pl.pallas_call(
        functools.partial(_kernel, built),
        grid_spec=built.grid(len(scalars), specs[: len(arrays)], specs[len(arrays) :]),
        out_shape=shapes,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=plan.vmem
        ),
        cost_estimate=built.cost([*arrays, *shapes], q.dtype.itemsize),
        interpret=interpret,
        name="lumina_flash_backward" if built.tokens else "lumina_flash_backward_text",
    )
    return list(call(*scalars, *arrays))


def _range(of_tokens: Visits, plan: Plan) -> list[Int[Array, " b"]]:
    """First and last block of queries of each row that see something of the window; 0 and -1 where none does."""
    sees = (of_tokens.end > of_tokens.first).reshape(plan.batch, plan.length // plan.blocks.q_backward, -1)
    sees = jnp.any(sees, axis=-1)
    last = sees.shape[1] - 1 - jnp.argmax(sees[:, ::-1], axis=-1)
    return [jnp.argmax(sees, axis=-1), jnp.where(jnp.any(sees, axis=-1), last, -1)]


class _Built:
    """The blocks of one call: what goes in and out, in the order of `_call`."""

    def __init__(self, plan: Plan, tokens: bool, text: bool):
        self.plan, self.tokens, self.text = plan, tokens, text
        self.in_parts = plan.keys > plan.blocks.kv_backward
        self.in_window = self.in_parts and tokens
        self.own_queries = text and plan.own_queries

    def blocks(self, q: Array, key_lanes: int) -> tuple[list[pl.BlockSpec], list[jax.ShapeDtypeStruct]]:
        plan, sizes = self.plan, self.plan.blocks
        heads, lanes = sizes.heads_backward, padded(sizes.heads_backward * plan.width)

        def block(b: Any, i: Any, scalars: Any) -> Any:
            # The blocks before and after those that see something are not brought: the nearest that does stays.
            return jnp.maximum(jnp.minimum(i, scalars[-1][b]), scalars[-2][b]) if self.in_window else i

        def window(scalars: Any) -> Any:
            return scalars[-3][0] if self.in_window else 0

        def of_queries(b: Any, g: Any, t: Any, i: Any, *scalars: Any) -> Any:
            return b, block(b, i, scalars), g * plan.repeats + t

        def of_rows(b: Any, g: Any, t: Any, i: Any, *scalars: Any) -> Any:
            return b, g * plan.repeats + t, 0, block(b, i, scalars)

        queries = pl.BlockSpec((None, sizes.q_backward, lanes), of_queries)
        rows = pl.BlockSpec((None, heads, 1, sizes.q_backward), of_rows)
        ids = pl.BlockSpec((None, 1, sizes.q_backward), lambda b, g, t, i, *scalars: (b, 0, block(b, i, scalars)))
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=q.dtype)
        by_token = jax.ShapeDtypeStruct((plan.batch, plan.heads, 1, plan.length), jnp.float32)
        specs, result = [queries, queries, rows if self.in_parts else queries, ids], [queries]
        shapes = [jax.ShapeDtypeStruct(q.shape, jnp.float32 if self.in_parts else q.dtype)]
        if self.tokens:
            keys = pl.BlockSpec((None, sizes.kv_backward, lanes), lambda b, g, t, i, *scalars: (b, window(scalars), g))
            key_ids = pl.BlockSpec((None, 1, sizes.kv_backward), lambda b, g, t, i, *scalars: (b, 0, window(scalars)))
            specs += [keys, keys, key_ids, rows]
            result += [keys, keys]
            shapes += [shape((plan.batch, plan.keys, key_lanes))] * 2
        if self.text:
            of_text = pl.BlockSpec((None, plan.text, lanes), lambda b, g, t, i, *_: (b, 0, g))
            text_ids = pl.BlockSpec((None, 1, plan.text), lambda b, g, t, i, *_: (b, 0, 0))
            specs += [of_text, of_text, text_ids, rows] + [queries] * plan.own_queries
            result += [of_text, of_text, rows] + [queries] * plan.own_queries + [rows] * self.in_parts
            shapes += [shape((plan.batch, plan.text, key_lanes))] * 2 + [by_token]
            shapes += [shape(q.shape)] * plan.own_queries + [by_token] * self.in_parts
        return specs + [queries] * self.in_window + result, shapes

    def cost(self, arrays: list[Any], itemsize: int) -> pl.CostEstimate:
        """For rows of one sample. Every array goes through HBM once, of those as long as all keys a window."""
        plan, size = self.plan, self.plan.blocks.kv_backward
        part = replace(plan, keys=size * self.tokens, text=plan.text * self.text)
        moved = sum(x.size * x.dtype.itemsize for x in arrays)
        if self.in_window:
            lanes = padded(plan.blocks.heads_backward * plan.width) * plan.key_heads // plan.blocks.heads_backward
            moved -= 4 * plan.batch * (plan.keys - size) * lanes * itemsize
        return replace(part.cost(products=5, itemsize=itemsize), bytes_accessed=moved)

    def grid(self, scalars: int, before: list[pl.BlockSpec], after: list[pl.BlockSpec]) -> Any:
        """Rows, groups of key heads, query heads that share them, blocks of queries."""
        plan, sizes = self.plan, self.plan.blocks
        groups, blocks = plan.key_heads // sizes.heads_backward, plan.length // sizes.q_backward
        return pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=scalars,
            grid=(plan.batch, groups, plan.repeats, blocks),
            in_specs=before,
            out_specs=after,
            scratch_shapes=self._scratch(),
        )

    def _scratch(self) -> list[Any]:
        plan, heads = self.plan, self.plan.blocks.heads_backward
        rows = [plan.blocks.kv_backward] * self.tokens + [plan.text] * self.text
        sums = [pltpu.VMEM((heads, size, plan.lanes), jnp.float32) for size in rows for _ in "kv"]
        return sums + [pltpu.VMEM((size, LANES), jnp.int32) for size in rows]


def _kernel(built: _Built, *references: Ref) -> None:
    plan, refs = built.plan, iter(references)

    def take(count: int) -> list[Any]:
        return [next(refs) for _ in range(count)]

    of_tokens = Visits(*take(5))
    gate, *text_visits = take(3) if built.text else [None]
    ends = take(3)[1:] if built.in_window else []
    q, gradient, of_out, ids = take(4)
    tokens = take(4) if built.tokens else []
    text = take(4) if built.text else []
    own = take(built.own_queries)
    total = take(built.in_window)
    dq, *to_tokens = take(1 + 2 * built.tokens)
    to_text = take(3) if built.text else []
    down, deltas = take(built.own_queries), take(built.text and built.in_parts)
    kinds = [kind for kind in (tokens, text) if kind]
    sums = [Gradients(*take(2)) for _ in kinds]
    columns = take(len(kinds))
    keys = [Keys(Heads(kind[0], plan.width), Heads(kind[1], plan.width), of) for kind, of in zip(kinds, columns)]
    place = [pl.program_id(axis) for axis in range(4)]
    step = BackwardStep(
        plan=plan,
        group=place[1],
        repeat=place[2],
        row=place[0] * (plan.length // plan.blocks.q_backward) + place[3],
        visits=of_tokens,
        text_visits=tuple(text_visits),
        gate=gate,
        queries=Heads(q, plan.width),
        gradient=Heads(gradient, plan.width),
        out=None if built.in_parts else Heads(of_out, plan.width),
        text_queries=Heads(own[0] if own else q, plan.width),
        ids=ids,
        logs=tokens[3] if tokens else None,
        delta=of_out if built.in_parts else None,
        tokens=keys[0] if tokens else None,
        text=keys[-1] if text else None,
        text_logs=text[3] if text else None,
        of_tokens=sums[0] if tokens else None,
        of_text=sums[-1] if text else None,
        total=Heads(total[0], plan.width) if total else None,
        dq=Heads(dq, plan.width),
        text_dq=Heads(down[0], plan.width) if down else None,
        gates=to_text[2] if text else None,
        deltas=deltas[0] if deltas else None,
    )
    pl.when(place[3] == 0)(lambda: step.read_keys([kind[2] for kind in kinds]))
    pl.when((place[3] == 0) & (place[2] == 0))(step.start)
    if built.in_window:
        low, high = (end[place[0]] for end in ends)
        seen = (place[3] >= low) & (place[3] <= high)
        pl.when(seen)(step.queries_of_block)
        pl.when((place[3] == 0) & jnp.logical_not(seen))(step.keep)
    else:
        step.queries_of_block()
    last = (place[3] == pl.num_programs(3) - 1) & (place[2] == plan.repeats - 1)
    to_keys = [Heads(block, plan.width) for block in (*to_tokens, *to_text[:2])]
    pl.when(last)(lambda: step.write_keys(to_keys))
