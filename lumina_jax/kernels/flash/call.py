"""Attention for TPU by our kernels, forward and backward: what `attend(implementation="pallas")` calls.

In: queries, keys and values [b l h d] and all that `attend` takes. Out: attention [b l h d], differentiable with
respect to every array but the segment ids. Arrays go to the kernels as [b l h*d], the layout of the projections: where
a projection or a reshape made them, nothing is copied, transposed or padded, unless keys are streamed or taken in
windows. The last block of a row may end beyond it.
"""

import functools
from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.flash.backward import backward
from lumina_jax.kernels.flash.blocks import BlockSizes, Sizes, choose, known_chip, padded
from lumina_jax.kernels.flash.forward import ForwardOutputs, forward
from lumina_jax.kernels.flash.plan import Interpret, KernelPlan, PaddedText, kernel_plan, rows_in_hbm, sizes_of

MOST_WIDTH = 256
WIDTH_UNIT = 8

Residuals = tuple[Array, Array, Array, Array, PaddedText | None, ForwardOutputs[Array]]
"""Queries, keys, values, segment ids, text and what the forward pass returned."""


def refusal(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], text_tokens: int, *, auto: bool) -> str | None:
    """Why the kernels cannot serve these arrays where this is traced; None: they can.

    Args:
      auto: nobody asked for the kernels, so it must be certain that XLA need not divide them over devices.
    """
    chip, why_not = known_chip(), refusal_here(auto=auto)
    if chip is None or why_not:
        return why_not
    try:
        check(q, k)
        choose(sizes_of(q, k, text_tokens), chip)
    except ValueError as error:
        return str(error)
    return None


def refusal_here(*, auto: bool) -> str | None:
    """Why no kernel can run where this is traced, whatever its arrays; None: kernels can. `auto` as in `refusal`."""
    if known_chip() is None:
        return "neither the default device nor the mesh in context is a TPU that the kernels know"
    alone = jax.default_backend() == "tpu" and jax.device_count() == 1
    if auto and not alone and not jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return "several devices may share the arrays, and XLA cannot divide a kernel: call it inside jax.shard_map"
    return None


def row_length(sizes: Sizes, *, auto: bool) -> int:
    """The tokens that rows should have where this is traced, so that no call appends some: a few more, or as many."""
    chip = known_chip()
    if chip is None or refusal_here(auto=auto):
        return sizes.length
    try:
        return rows_in_hbm(sizes, choose(sizes, chip))
    except ValueError:  # the kernels cannot serve them
        return sizes.length


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


def flash_attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    v: Float[Array, "b l k d"],
    *,
    segment_ids: Int[Array, "b l"],
    scale: float,
    text: GatedText | None = None,
    blocks: BlockSizes | None = None,
    interpret: Interpret = False,
) -> Float[Array, "b l h d"]:
    """softmax(scale q k^T) v within segments, plus gated attention to text.

    Args:
      text: its logits have the factor 1/sqrt(d). Heads without text, and those whose gates are 0, skip it, unless there
        will be a backward pass.
      blocks: how the work is cut; None: the best known for the chip.
      interpret: run on any device, slowly: True shows the values, `pltpu.InterpretParams(detect_races=True)` also
        races and reads of memory that was never written.

    Raises:
      ValueError: sizes or types that the kernels do not take; blocks that do not divide the row, or do not fit.
    """
    check(q, k)
    plan = kernel_plan(
        q,
        k,
        scale=scale,
        text_tokens=0 if text is None else text.keys.shape[1],
        text_has_queries=text is not None and text.queries is not None,
        blocks=blocks,
    )
    queries, keys, values = (side_by_side(x, plan, plan.rows) for x in (q, k, v))
    padded_text = None if text is None else _padded_text(plan, text.for_heads(plan.heads))
    out = _attention(plan, interpret, queries, keys, values, padded_rows(segment_ids, plan.length), padded_text)
    return apart(out, plan, q)


def _padded_text(plan: KernelPlan, text: GatedText) -> PaddedText:
    keys, queries = text.keys, text.queries
    if queries is None and plan.text_scale != plan.scale:
        keys = (keys.astype(jnp.float32) * (plan.text_scale / plan.scale)).astype(keys.dtype)
    return PaddedText(
        gate=jnp.tanh(text.gate.astype(jnp.float32)),
        keys=side_by_side(keys, plan, plan.text),
        values=side_by_side(text.values, plan, plan.text),
        segment_ids=padded_rows(text.segment_ids, plan.text),
        queries=None if queries is None else side_by_side(queries, plan, plan.rows),
    )


def side_by_side(x: Float[Array, "b l h d"], plan: KernelPlan, length: int) -> Float[Array, "b n lanes"]:
    """Heads side by side, and rows padded to `length`. Nothing is copied where a block has all heads, or its heads fill
    registers; else those of a block are padded to whole registers."""
    together = _heads_of_a_block(x, plan) * plan.width
    groups = x.reshape(*x.shape[:2], -1, together)
    if groups.shape[2] > 1 and together % LANES:
        groups = jnp.pad(groups, [(0, 0)] * 3 + [(0, padded(together) - together)])
    return padded_rows(groups.reshape(*x.shape[:2], -1), length)


def apart(x: Float[Array, "b n lanes"], plan: KernelPlan, like: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """The inverse of `side_by_side`, for an array in the shape of `like`."""
    heads = _heads_of_a_block(like, plan)
    groups = x[:, : like.shape[1]].reshape(*like.shape[:2], like.shape[2] // heads, -1)
    return groups[..., : heads * plan.width].reshape(like.shape)


def _heads_of_a_block(x: Float[Array, "b l h d"], plan: KernelPlan) -> int:
    return plan.query_heads if x.shape[2] == plan.heads else plan.blocks.heads


def padded_rows(x: Array, length: int) -> Array:
    """Zeros after the tokens [b l ...] of each row."""
    missing = length - x.shape[1]
    return x if not missing else jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    plan: KernelPlan, interpret: Interpret, q: Array, k: Array, v: Array, ids: Array, text: PaddedText | None
) -> Array:
    return forward(plan, q, k, v, ids, ids, text, interpret=interpret).out


def _attention_forward(
    plan: KernelPlan, interpret: Interpret, q: Array, k: Array, v: Array, ids: Array, text: PaddedText | None
) -> tuple[Array, Residuals]:
    found = forward(replace(plan, residuals=True), q, k, v, ids, ids, text, interpret=interpret)
    named = ForwardOutputs(
        checkpoint_name(found.out, "attention_out"),
        checkpoint_name(found.logs, "attention_lse"),
        None if found.text_logs is None else checkpoint_name(found.text_logs, "attention_lse"),
    )
    return named.out, (q, k, v, ids, text, named)


def _attention_backward(
    plan: KernelPlan, interpret: Interpret, saved: Residuals, gradient: Array
) -> tuple[Array, Array, Array, None, PaddedText | None]:
    q, k, v, ids, text, found = saved
    gradients = backward(plan, q, k, v, ids, ids, text, found, gradient, interpret=interpret)
    assert gradients.tokens is not None
    to_text = None
    if gradients.text is not None and gradients.gates is not None:
        gates, no_gradient = jnp.sum(gradients.gates, axis=(0, 2, 3)), cast("Array", None)
        to_text = PaddedText(
            gates, gradients.text.keys, gradients.text.values, no_gradient, queries=gradients.text_queries
        )
    return gradients.queries, gradients.tokens.keys, gradients.tokens.values, None, to_text


_attention.defvjp(_attention_forward, _attention_backward)
