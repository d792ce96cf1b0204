"""QK-norm and rotary embedding by one kernel for TPUs, forward and backward.

In: the projections [b l w] that queries and keys come from, heads side by side. Out: the same arrays normed and turned,
in the layout that the attention kernels read. XLA would go through [b l h d], whose tiles are others, and copy several
times before and after it.

Pairs are interleaved, (x[2i], x[2i + 1]), as in the released models. Both values of a pair lie in one register, because
a register has an even number of lanes. So the partner of a value is one lane away, and no head must be moved, whatever
its width: y = x cos + partner(x) sin, with the sign of each lane in sin. The transpose turns back.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import LANES, Chip
from lumina_jax.kernels.flash.blocks import UNKNOWN, known_chip, padded
from lumina_jax.kernels.flash.plan import Interpret, asked_vmem

CHUNK, SUBLANES = 16, 8
"""Tokens that are in registers at a time, and rows of a register of float32."""
ROWS = (256, 128, 64, 32, CHUNK)
"""Tokens of a grid step, the first for which blocks fit."""


class RotaryLanes(NamedTuple):
    """Cosines and signed sines of each token for lanes of heads side by side, until heads and registers both end."""

    cos: Float[Array, "b l lanes"]
    sin: Float[Array, "b l lanes"]


class HeadsAffine(NamedTuple):
    """Weight and bias of a LayerNorm over all heads."""

    weight: Float[Array, " w"]
    bias: Float[Array, " w"]


Projection = Float[Array, "b l _"]


class _Plan(NamedTuple):
    """What is fixed when a kernel is built."""

    eps: float
    interpret: Interpret


def rotary_lanes(cos: Float[Array, "b l 1 half"], sin: Float[Array, "b l 1 half"]) -> RotaryLanes:
    """Cosines and sines of the pairs of a head, as the kernel reads them."""
    heads = math.lcm(2 * cos.shape[-1], LANES) // (2 * cos.shape[-1])

    def laid(even: Array, odd: Array) -> Array:
        head = jnp.stack([even, odd], axis=-1).reshape(*cos.shape[:2], -1)
        return jnp.tile(head, (1, 1, heads)).astype(jnp.float32)

    # Without the barrier XLA would repeat them in each layer, to keep less.
    return jax.lax.optimization_barrier(RotaryLanes(laid(cos, cos), laid(-sin, sin)))


def refusal(widths: Sequence[int], head_width: int) -> str | None:
    """Why the kernel cannot serve projections of these widths; None: it can."""
    if head_width % 2:
        return f"heads are {head_width} wide, but the values of a head are pairs"
    chip = known_chip() or UNKNOWN
    if _step_bytes(ROWS[-1], widths, math.lcm(head_width, LANES), 4) > chip.vmem // 4:
        return f"projections are {', '.join(map(str, widths))} wide, too much for the chip's vector memory"
    return None


def turned_heads(
    projections: Sequence[Projection],
    norms: Sequence[HeadsAffine | None],
    lanes: RotaryLanes,
    *,
    eps: float,
    interpret: Interpret = False,
) -> list[Projection]:
    """Each projection through a LayerNorm over all its heads, if it has one, and turned, all in float32.

    Args:
      projections: heads side by side, each array of any width.
      norms: for each projection.
      lanes: the angles of tokens; no gradient flows to them.
      eps: added to the variances.
      interpret: run on any device, slowly.
    """
    affine = tuple(None if norm is None else _in_registers(jnp.stack(norm).astype(jnp.float32)) for norm in norms)
    return list(_turned(_Plan(eps, interpret), tuple(projections), affine, lanes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _turned(
    plan: _Plan, xs: tuple[Projection, ...], affine: tuple[Array | None, ...], lanes: RotaryLanes
) -> tuple[Projection, ...]:
    grid = _Grid(xs, lanes, arrays=2)
    normed = [norm for norm in affine if norm is not None]

    def kernel(*refs: jax.Ref) -> None:
        cos, sin, *rest = refs
        inputs, weights, outputs = rest[: len(xs)], iter(rest[len(xs) : -len(xs)]), rest[-len(xs) :]
        ours = [(x, None if norm is None else next(weights), out) for x, norm, out in zip(inputs, affine, outputs)]

        @pl.loop(0, grid.rows // CHUNK)
        def _(index: Array) -> None:
            at = pl.ds(pl.multiple_of(index * CHUNK, CHUNK), CHUNK)
            for (x, norm, out), width in zip(ours, grid.widths):
                z = x[at, :].astype(jnp.float32)
                if norm is not None:
                    z = _standard(z, width, plan.eps)[0] * norm[0:1, :] + norm[1:2, :]
                out[at, :] = _turn(z, cos[at, :], sin[at, :]).astype(out.dtype)

    return tuple(
        pl.pallas_call(
            kernel,
            grid=grid.steps,
            in_specs=[*map(grid.block, lanes), *map(grid.block, xs), *map(_whole, normed)],
            out_specs=[grid.block(x) for x in xs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs],
            compiler_params=grid.compiler_params("parallel"),
            cost_estimate=grid.cost([*lanes, *xs, *xs]),
            interpret=plan.interpret,
            name="lumina_rotary",
        )(*lanes, *xs, *normed)
    )


def _turned_forward(
    plan: _Plan, xs: tuple[Projection, ...], affine: tuple[Array | None, ...], lanes: RotaryLanes
) -> tuple[tuple[Projection, ...], tuple]:
    # A turn alone needs no input for its gradient.
    kept = tuple(None if norm is None else x for x, norm in zip(xs, affine))
    return _turned(plan, xs, affine, lanes), (kept, affine, lanes)


def _turned_backward(plan: _Plan, saved: tuple, gradients: tuple[Projection, ...]) -> tuple:
    kept, affine, lanes = saved
    xs, norms = ([one for one in given if one is not None] for given in (kept, affine))
    grid = _Grid(gradients, lanes, arrays=3)
    count, length = len(gradients), gradients[0].shape[1]

    def kernel(*refs: jax.Ref) -> None:
        cos, sin, *rest = refs
        given, rest = rest[:count], rest[count:]
        inputs, weights, rest = iter(rest[: len(xs)]), iter(rest[len(xs) : 2 * len(xs)]), rest[2 * len(xs) :]
        outputs, sums = rest[:count], iter(rest[count:])
        ours = [
            (g, out) if norm is None else (g, out, next(inputs), next(weights), next(sums))
            for g, out, norm in zip(given, outputs, affine)
        ]
        first = (pl.program_id(1) * grid.steps[2] + pl.program_id(2)) * grid.rows

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            for total in rest[count:]:
                total[...] = jnp.zeros_like(total)

        @pl.loop(0, grid.rows // CHUNK)
        def _(index: Array) -> None:
            at = pl.ds(pl.multiple_of(index * CHUNK, CHUNK), CHUNK)
            exists = None
            if length % grid.rows:  # what lies beyond the row may be anything
                token = first + index * CHUNK + jax.lax.broadcasted_iota(jnp.int32, (CHUNK, 1), 0)
                exists = token < length
            for (g, out, *norm), width in zip(ours, grid.widths):
                back = _turn(g[at, :].astype(jnp.float32), cos[at, :], -sin[at, :])
                if norm:
                    x, weights, total = norm
                    value = x[at, :].astype(jnp.float32)
                    back = _norm_backward(back, value, width, weights[0:1, :], total, exists, plan.eps)
                out[at, :] = back.astype(out.dtype)

    outputs = pl.pallas_call(
        kernel,
        grid=grid.steps,
        in_specs=[*map(grid.block, (*lanes, *gradients, *xs)), *map(_whole, norms)],
        out_specs=[*map(grid.block, gradients), *map(_sums_block, norms)],
        out_shape=[
            *(jax.ShapeDtypeStruct(g.shape, g.dtype) for g in gradients),
            *(jax.ShapeDtypeStruct((*grid.steps[:2], 2, SUBLANES, n.shape[1]), jnp.float32) for n in norms),
        ],
        compiler_params=grid.compiler_params("arbitrary"),
        cost_estimate=grid.cost([*lanes, *gradients, *xs, *gradients]),
        interpret=plan.interpret,
        name="lumina_rotary_backward",
    )(*lanes, *gradients, *xs, *norms)
    totals = iter([jnp.sum(total, axis=(0, 1, 3)) for total in outputs[count:]])
    return tuple(outputs[:count]), tuple(None if norm is None else next(totals) for norm in affine), None


_turned.defvjp(_turned_forward, _turned_backward)


class _Grid:
    """How tokens are cut: steps (row, part, block within the part), and the blocks of arrays.

    The parts of a row are independent, so that the cores of a chip that has two share them.
    """

    def __init__(self, xs: Sequence[Projection], lanes: RotaryLanes, *, arrays: int):
        self.widths = [x.shape[2] for x in xs]
        self.lanes, self.itemsize, self.arrays = lanes.cos.shape[2], xs[0].dtype.itemsize, arrays
        self.chip: Chip = known_chip() or UNKNOWN
        batch, length, _ = xs[0].shape
        self.rows = next(
            rows
            for rows in ROWS
            if rows == ROWS[-1] or (self._bytes(rows) <= self.chip.vmem // 4 and rows < length + CHUNK)
        )
        blocks = pl.cdiv(length, self.rows)
        parts = 1 if blocks % 2 else 2
        self.steps = (batch, parts, blocks // parts)

    def _bytes(self, rows: int) -> int:
        return _step_bytes(rows, self.widths, self.lanes, self.itemsize, self.arrays)

    def block(self, x: Array) -> pl.BlockSpec:
        each = self.steps[2]
        return pl.BlockSpec((None, self.rows, padded(x.shape[2])), lambda b, p, i: (b, p * each + i, 0))

    def compiler_params(self, last: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", last),
            vmem_limit_bytes=asked_vmem(self._bytes(self.rows), self.chip),
        )

    def cost(self, arrays: Sequence[Array]) -> pl.CostEstimate:
        moved = sum(array.size * array.dtype.itemsize for array in arrays)
        return pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=moved)


def _step_bytes(rows: int, widths: Sequence[int], lanes: int, itemsize: int, arrays: int = 3) -> int:
    """Bytes of vector memory of a grid step, two copies of each block: angles, and `arrays` for each projection."""
    return 2 * rows * (arrays * itemsize * sum(map(padded, widths)) + 2 * 4 * lanes)


def _whole(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda b, p, i: (0, 0))


def _sums_block(norm: Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, 2, SUBLANES, norm.shape[1]), lambda b, p, i: (b, p, 0, 0, 0))


def _turn(
    z: Float[Array, "rows w"], cos: Float[Array, "rows lanes"], sin: Float[Array, "rows lanes"]
) -> Float[Array, "rows w"]:
    """Each value times its cosine, plus its partner times its signed sine, one register of lanes at a time."""
    is_even = jax.lax.broadcasted_iota(jnp.int32, (z.shape[0], LANES), 1) % 2 == 0
    turned = []
    for start in range(0, z.shape[1], LANES):
        value, angles = z[:, start : start + LANES], slice(start % cos.shape[1], start % cos.shape[1] + LANES)
        partner = jnp.where(is_even, pltpu.roll(value, LANES - 1, 1), pltpu.roll(value, 1, 1))
        turned.append(value * cos[:, angles] + partner * sin[:, angles])
    return turned[0] if len(turned) == 1 else jnp.concatenate(turned, axis=1)


def _in_registers(x: Float[Array, "n w"]) -> Float[Array, "n lanes"]:
    """Zeros after the values, up to the end of the last register."""
    return jnp.pad(x, [(0, 0), (0, padded(x.shape[1]) - x.shape[1])])


def _within(x: Float[Array, "rows lanes"], width: int) -> Float[Array, "rows lanes"]:
    """x with zeros after the first `width` lanes: a block may end beyond its array, where anything is."""
    if width == x.shape[1]:
        return x
    last = x[:, x.shape[1] - LANES :]
    inside = jax.lax.broadcasted_iota(jnp.int32, last.shape, 1) < width % LANES
    last = jnp.where(inside, last, 0.0)
    return last if x.shape[1] == LANES else jnp.concatenate([x[:, : x.shape[1] - LANES], last], axis=1)


def _mean(x: Float[Array, "rows lanes"], width: int) -> Float[Array, "rows 1"]:
    """The mean of each row's first `width` values, after which zeros follow."""
    return jnp.sum(x, axis=1, keepdims=True) * (1 / width)


def _standard(
    x: Float[Array, "rows lanes"], width: int, eps: float
) -> tuple[Float[Array, "rows lanes"], Float[Array, "rows 1"]]:
    """x with zero mean and unit variance along each row, and the reciprocal of its deviation."""
    x = _within(x, width)
    centred = _within(x - _mean(x, width), width)
    scale = jax.lax.rsqrt(_mean(centred * centred, width) + eps)
    return centred * scale, scale


def _norm_backward(
    gradient: Float[Array, "rows lanes"],
    x: Float[Array, "rows lanes"],
    width: int,
    weight: Float[Array, "1 lanes"],
    total: jax.Ref,
    exists: Array | None,
    eps: float,
) -> Float[Array, "rows lanes"]:
    """The gradient of x from that of its LayerNorm; those of weight and bias are added to `total`."""
    gradient = _within(gradient, width)
    if exists is not None:
        gradient, x = jnp.where(exists, gradient, 0.0), jnp.where(exists, x, 0.0)
    standard, scale = _standard(x, width, eps)
    total[0] += _by_sublane(gradient * standard)
    total[1] += _by_sublane(gradient)
    inner = gradient * weight
    along = _mean(inner * standard, width)
    return scale * (inner - _mean(inner, width) - standard * along)


def _by_sublane(x: Float[Array, "rows w"]) -> Float[Array, "8 w"]:
    """The sum over rows, in parts that need no exchange of sublanes."""
    return functools.reduce(jnp.add, [x[start : start + SUBLANES] for start in range(0, x.shape[0], SUBLANES)])
