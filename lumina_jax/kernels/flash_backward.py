"""The backward kernel for TPU: gradients of `flash_forward.py` with respect to queries, keys, values, text and gate.

In: what the forward pass had and wrote, and the gradient of its output. Out: gradients in the same layouts.

Weights are computed again from the logarithms of the denominators (Dao et al., arXiv 2205.14135), so that no tensor of
queries x keys exists. A grid step takes a block of queries against a window of the keys; it has keys along sublanes and
queries along lanes, so that only one of the five products needs a transposed operand. Gradients of keys and values are
summed in VMEM over the blocks of queries, in a fixed order: the result is the same every time.

With p the weights, o the output and g the gate: dv = p^T do; ds = p (do v^T - delta), delta = do . (o of this softmax);
dq = ds k; dk = ds^T q. The output o holds both softmaxes, so delta of the tokens is do . o - g delta_text, and
delta_text = sum of p_text (do v_text^T) is also the gradient of the gate.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from lumina_jax.kernels.backward_step import BackwardStep, Gradients
from lumina_jax.kernels.blocks import padded
from lumina_jax.kernels.flash_forward import Interpret
from lumina_jax.kernels.lanes import LANES, Heads, Ref
from lumina_jax.kernels.plan import Plan
from lumina_jax.kernels.segments import Visits, visits
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
    windows = plan.keys // plan.blocks.kv_backward
    call: Any = functools.partial(_window, plan, q, ids, out=out, gradient=gradient, interpret=interpret)
    if windows == 1:
        return call(k, v, key_ids, text, logs, summed=False)
    cut = [x.reshape(x.shape[0], windows, plan.blocks.kv_backward, *x.shape[2:]) for x in (k, v, key_ids)]
    first, *rest = (jnp.moveaxis(x, 1, 0) for x in cut)
    parts = (first, *rest)
    dq, dk, dv, *of_text = call(*(x[0] for x in parts), text, logs, summed=True)
    delta = of_text.pop() if text is not None else None

    def step(total: Array, part: Any) -> Any:
        # The barrier: XLA would make the copy to its place in the stack a part of the kernel, which then lacks VMEM.
        more, *of_keys = jax.lax.optimization_barrier(call(*part, None, logs[:1], summed=True, delta=delta))
        return total + more, tuple(of_keys)

    dq, (more_dk, more_dv) = jax.lax.scan(step, dq, tuple(x[1:] for x in parts))
    dk, dv = (
        jnp.moveaxis(jnp.concatenate([one[None], more]), 0, 1).reshape(x.shape)
        for one, more, x in ((dk, more_dk, k), (dv, more_dv, v))
    )
    return [dq.astype(q.dtype), dk, dv, *of_text]


def _window(
    plan: Plan,
    q: Float[Array, "b l hd"],
    ids: Int[Array, "b l"],
    k: Float[Array, "b n kd"],
    v: Float[Array, "b n kd"],
    key_ids: Int[Array, "b n"],
    text: tuple[Array, ...] | None,
    logs: list[Float[Array, "b h 1 l"]],
    *,
    out: Float[Array, "b l hd"],
    gradient: Float[Array, "b l hd"],
    summed: bool,
    interpret: Interpret,
    delta: Float[Array, "b h 1 l"] | None = None,
) -> list[Array]:
    """Gradients through one window of the keys.

    Args:
      summed: this is one of several windows: the gradient of q stays in float32, and with text `delta` is returned.
      delta: do . o of the tokens' softmax, where another window has computed it.
    """
    blocks, built = plan.blocks, _Built(plan, text is not None, summed, delta is not None)
    cut = functools.partial(visits, ids, block=blocks.q_backward, tile_q=blocks.tile_q_backward)
    scalars: list[Array] = [*cut(key_ids, tile_kv=blocks.tile_kv_backward)]
    arrays = [q, k, v, out if delta is None else delta, gradient, ids[:, None], key_ids[:, None], logs[0]]
    if text is not None:
        gate, text_keys, text_values, text_ids, *own = text
        scalars += [gate.astype(jnp.float32), *cut(text_ids, tile_kv=plan.text_tile)[:2]]
        arrays += [text_keys, text_values, text_ids[:, None], logs[1], *own]
    specs, shapes = built.blocks(q, k)
    call = pl.pallas_call(
        functools.partial(_kernel, built),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(plan.batch, plan.key_heads // blocks.heads_backward, plan.repeats, plan.length // blocks.q_backward),
            in_specs=specs[: len(arrays)],
            out_specs=specs[len(arrays) :],
            scratch_shapes=built.scratch(),
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=plan.vmem
        ),
        cost_estimate=built.cost(q.dtype.itemsize),
        interpret=interpret,
        name="lumina_flash_backward",
    )
    return list(call(*scalars, *arrays))


class _Built:
    """The blocks of one call: what goes in and out, in the order of `_window`."""

    def __init__(self, plan: Plan, has_text: bool, summed: bool, has_delta: bool):
        self.plan, self.has_text, self.summed, self.has_delta = plan, has_text, summed, has_delta
        self.own_queries = has_text and plan.own_queries

    def blocks(self, q: Array, k: Array) -> tuple[list[pl.BlockSpec], list[jax.ShapeDtypeStruct]]:
        plan, sizes = self.plan, self.plan.blocks
        heads, lanes = sizes.heads_backward, padded(sizes.heads_backward * plan.width)
        queries = pl.BlockSpec((None, sizes.q_backward, lanes), lambda b, g, t, i, *_: (b, i, g * plan.repeats + t))
        keys = pl.BlockSpec((None, sizes.kv_backward, lanes), lambda b, g, t, i, *_: (b, 0, g))
        rows = pl.BlockSpec((None, heads, 1, sizes.q_backward), lambda b, g, t, i, *_: (b, g * plan.repeats + t, 0, i))
        ids = pl.BlockSpec((None, 1, sizes.q_backward), lambda b, g, t, i, *_: (b, 0, i))
        key_ids = pl.BlockSpec((None, 1, sizes.kv_backward), lambda b, g, t, i, *_: (b, 0, 0))
        specs = [queries, keys, keys, rows if self.has_delta else queries, queries, ids, key_ids, rows]
        result = [queries, keys, keys]
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=q.dtype)
        window = shape((plan.batch, sizes.kv_backward, k.shape[2]))
        shapes = [jax.ShapeDtypeStruct(q.shape, jnp.float32 if self.summed else q.dtype), window, window]
        if self.has_text:
            of_text = pl.BlockSpec((None, plan.text, lanes), lambda b, g, t, i, *_: (b, 0, g))
            text_ids = pl.BlockSpec((None, 1, plan.text), lambda b, g, t, i, *_: (b, 0, 0))
            specs += [of_text, of_text, text_ids, rows] + [queries] * plan.own_queries
            result += [of_text, of_text, rows] + [queries] * plan.own_queries + [rows] * self.summed
            by_token = jax.ShapeDtypeStruct((plan.batch, plan.heads, 1, plan.length), jnp.float32)
            words = shape((plan.batch, plan.text, k.shape[2]))
            shapes += [words, words, by_token] + [shape(q.shape)] * plan.own_queries + [by_token] * self.summed
        return specs + result, shapes

    def cost(self, itemsize: int) -> pl.CostEstimate:
        part = replace(self.plan, keys=self.plan.blocks.kv_backward, text=self.plan.text * self.has_text)
        return part.cost(products=5, itemsize=itemsize)

    def scratch(self) -> list[Any]:
        plan, heads = self.plan, self.plan.blocks.heads_backward
        rows = [plan.blocks.kv_backward, *[plan.text] * self.has_text]
        sums = [pltpu.VMEM((heads, size, plan.lanes), jnp.float32) for size in rows for _ in "kv"]
        return sums + [pltpu.VMEM((size, LANES), jnp.int32) for size in rows]


def _kernel(built: _Built, *references: Ref) -> None:
    plan, refs = built.plan, iter(references)

    def take(count: int) -> list[Any]:
        return [next(refs) for _ in range(count)]

    of_tokens = Visits(*take(5))
    gate, *text_visits = take(3) if built.has_text else [None]
    q, k, v, out, gradient, ids, key_ids, logs = take(8)
    text = take(4) if built.has_text else []
    own = take(built.own_queries)
    dq, dk, dv = take(3)
    of_text = take(3) if built.has_text else []
    down = take(built.own_queries)
    delta = take(built.has_text and built.summed)

    def heads(blocks: list[Ref]) -> list[Heads]:
        return [Heads(block, plan.width) for block in blocks]

    queries = heads([q, gradient, *([] if built.has_delta else [out]), *own])
    keys = heads([k, v, *text[:2]])
    written = heads([dq, *down])
    sums = take(4 if built.has_text else 2)
    columns = take(2 if built.has_text else 1)
    place = [pl.program_id(axis) for axis in range(4)]
    step = BackwardStep(
        plan=plan,
        group=place[1],
        repeat=place[2],
        row=place[0] * (plan.length // plan.blocks.q_backward) + place[3],
        visits=of_tokens,
        text_visits=tuple(text_visits),
        gate=gate,
        queries=queries[0],
        gradient=queries[1],
        out=None if built.has_delta else queries[2],
        text_queries=queries[-1] if built.own_queries else queries[0],
        ids=ids,
        logs=logs,
        delta=out if built.has_delta else None,
        tokens=Keys(keys[0], keys[1], columns[0]),
        text=Keys(keys[2], keys[3], columns[1]) if built.has_text else None,
        text_logs=text[3] if built.has_text else None,
        of_tokens=Gradients(sums[0], sums[1]),
        of_text=Gradients(sums[2], sums[3]) if built.has_text else None,
        dq=written[0],
        text_dq=written[1] if built.own_queries else None,
        gates=of_text[2] if built.has_text else None,
        deltas=delta[0] if delta else None,
    )
    pl.when(place[3] == 0)(lambda: step.read_keys([key_ids, *text[2:3]]))
    pl.when((place[3] == 0) & (place[2] == 0))(step.start)
    step.hide_padding()
    plan.each_head(step.head, side_by_side=1, count=plan.blocks.heads_backward)
    last = (place[3] == pl.num_programs(3) - 1) & (place[2] == plan.repeats - 1)
    pl.when(last)(lambda: step.write_keys(heads([dk, dv, *of_text[:2]])))
