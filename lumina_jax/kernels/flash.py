"""Attention for TPU by our own kernels, forward and backward: what `attend(implementation="pallas")` calls.

In: queries, keys and values [b l h d] and all that `attend` takes. Out: attention [b l h d], differentiable with
respect to every array but the segment ids. Arrays go to the kernels as [b l h*d], the layout of the projections: where
a projection or a reshape made them, nothing is copied or transposed. Rows are padded to whole blocks.
"""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.blocks import (
    UNKNOWN,
    BlockSizes,
    Sizes,
    choose,
    known_chip,
    padded,
    padded_length,
)
from lumina_jax.kernels.flash_backward import backward
from lumina_jax.kernels.flash_forward import Interpret, forward
from lumina_jax.kernels.plan import Plan

MOST_WIDTH = 256
WIDTH_UNIT = 8


def refusal(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], text_tokens: int, *, auto: bool) -> str | None:
    """Why the kernels cannot serve these arrays where this is traced; None: they can.

    `auto`: nobody asked for them, so that it must be certain that XLA need not divide them over devices.
    """
    chip = known_chip()
    if chip is None:
        return "neither the default device nor the mesh in context is a TPU that the kernels know"
    alone = jax.default_backend() == "tpu" and jax.device_count() == 1
    if auto and not alone and not jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return "several devices may share the arrays, and XLA cannot divide a kernel: call it inside jax.shard_map"
    try:
        check(q, k)
        choose(sizes_of(q, k, text_tokens), chip)
    except ValueError as error:
        return str(error)
    return None


def check(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"]) -> None:
    """Refuse what the kernels cannot compute.

    Raises:
      ValueError: a head width or a type of values.
    """
    width = q.shape[-1]
    if width % WIDTH_UNIT or width > MOST_WIDTH:
        raise ValueError(
            f"heads are {width} wide, but the kernels take multiples of {WIDTH_UNIT} up to {MOST_WIDTH}; "
            "use implementation='xla'"
        )
    if q.dtype not in (jnp.bfloat16, jnp.float32) or k.dtype != q.dtype:
        raise ValueError(
            f"queries are {q.dtype} and keys {k.dtype}, but the kernels take bfloat16 or float32, and one for both; "
            "convert them, or use implementation='xla'"
        )


def sizes_of(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], text_tokens: int) -> Sizes:
    return Sizes(q.shape[1], text_tokens, q.shape[2], k.shape[2], q.shape[3], q.dtype.itemsize)


def flash_attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    *,
    segment_ids: Int[Array, "b l"],
    scale: float,
    text: Any = None,
    blocks: BlockSizes | None = None,
    interpret: Interpret = False,
) -> Float[Array, "b l h d"]:
    """softmax(scale q k^T) v within segments, plus gated attention to text.

    Args:
      text: keys and values [b t k d], gate [h] before its tanh, segment ids [b t], and queries [b l h d] or None; the
        fields of `attention.GatedText`. Its logits have the factor 1/sqrt(d).
      blocks: how the work is cut; None: the best known for the chip.
      interpret: run on any device, slowly, to see the values (True), or races and reads of nothing as well
        (`pltpu.InterpretParams(detect_races=True)`).

    Raises:
      ValueError: sizes or types that the kernels do not take; blocks that do not divide the row, or do not fit.
    """
    check(q, k)
    text_tokens = 0 if text is None else text[0].shape[1]
    sizes, chip = sizes_of(q, k, text_tokens), known_chip() or UNKNOWN
    length = padded_length(sizes.length)
    blocks = blocks or choose(sizes, chip)
    blocks.check(length, sizes.key_heads, sizes.width)
    width, own = sizes.width, text is not None and text[4] is not None
    plan = Plan(
        batch=q.shape[0],
        length=length,
        keys=length,
        text=padded(text_tokens) if text_tokens else 0,
        heads=sizes.heads,
        key_heads=sizes.key_heads,
        width=width,
        scale=scale,
        text_scale=1 / math.sqrt(width),
        own_queries=own,
        blocks=blocks,
        unit=chip.matrix_unit,
        residuals=False,
        vmem=int(0.95 * chip.vmem),
    )
    arrays = [side_by_side(x, plan, length) for x in (q, k, v)]
    of_text: Any = None
    if text is not None:
        keys, values, gate, text_ids, queries = text
        if not own and plan.text_scale != scale:
            keys = (keys.astype(jnp.float32) * (plan.text_scale / scale)).astype(keys.dtype)
        of_text = (jnp.tanh(gate.astype(jnp.float32)), *(side_by_side(x, plan, plan.text) for x in (keys, values)))
        of_text += (padded_rows(text_ids, plan.text), *([side_by_side(queries, plan, length)] if own else []))
    out = _attention(plan, interpret, *arrays, padded_rows(segment_ids, length), of_text)
    return apart(out, plan, q)


def side_by_side(x: Float[Array, "b l h d"], plan: Plan, length: int) -> Float[Array, "b n lanes"]:
    """Heads side by side, those of a grid step filled up to whole registers, and rows to `length`."""
    together = plan.blocks.heads * plan.width
    groups = x.reshape(*x.shape[:2], -1, together)
    if together % LANES:
        groups = jnp.pad(groups, [(0, 0)] * 3 + [(0, padded(together) - together)])
    return padded_rows(groups.reshape(*x.shape[:2], -1), length)


def apart(x: Float[Array, "b n lanes"], plan: Plan, like: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """The inverse of `side_by_side`, for an array in the shape of `like`."""
    together = plan.blocks.heads * plan.width
    groups = x[:, : like.shape[1]].reshape(*like.shape[:2], -1, padded(together))
    return groups[..., :together].reshape(like.shape)


def padded_rows(x: Array, length: int) -> Array:
    """Zeros after the tokens [b l ...] of each row."""
    missing = length - x.shape[1]
    return x if not missing else jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(plan: Plan, interpret: Interpret, q: Array, k: Array, v: Array, ids: Array, text: Any) -> Array:
    return forward(plan, q, k, v, ids, ids, text, interpret=interpret)[0]


def _attention_forward(
    plan: Plan, interpret: Interpret, q: Array, k: Array, v: Array, ids: Array, text: Any
) -> tuple[Array, Any]:
    out, *logs = forward(replace(plan, residuals=True), q, k, v, ids, ids, text, interpret=interpret)
    out, logs = checkpoint_name(out, "attention_out"), [checkpoint_name(log, "attention_lse") for log in logs]
    return out, (q, k, v, ids, text, out, logs)


def _attention_backward(plan: Plan, interpret: Interpret, saved: Any, gradient: Array) -> tuple[Any, ...]:
    q, k, v, ids, text, out, logs = saved
    dq, dk, dv, *of_text = backward(plan, q, k, v, ids, ids, text, out, logs, gradient, interpret=interpret)
    if text is None:
        return dq, dk, dv, None, None
    dkeys, dvalues, gates, *own = of_text
    return dq, dk, dv, None, (jnp.sum(gates, axis=(0, 2, 3)), dkeys, dvalues, None, *own)


_attention.defvjp(_attention_forward, _attention_backward)
