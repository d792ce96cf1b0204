"""The gated feed-forward (silu(x G) * (x U)) D by kernels for TPUs, where it is differentiated.

In: tokens [b l m], and the matrices G and U [m f] and D [f m]. Out: [b l m].

XLA writes both input products to memory, reads them again in every product of the backward pass, and computes SiLU and
its derivative in each. On a v6e that takes longer than the products. Here a kernel computes all products of a block of
tokens with a block of hidden values, and what follows them, and writes only the factors of other products:

    forward     h = silu(x G) * (x U)
    backward    h again; the gradients of x G and x U, from those two products and dy D^T; and that of x, from these

so that nothing but x is kept for the backward pass. The other products, with D and of the gradients of the matrices,
are XLA's, and so is all of it where no gradient is asked for: XLA's program for that is as fast, and needs no x that is
normed, scaled and written first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import Chip
from lumina_jax.kernels import token_blocks
from lumina_jax.kernels.flash.blocks import UNKNOWN, known_chip
from lumina_jax.kernels.flash.plan import Interpret
from lumina_jax.kernels.token_blocks import Kernel, TokenBlocks, Tokens, cut, joined_rows, long_rows, product

NAME = "lumina_feed_forward"
"""With which the names of the kernels begin."""
WITH_KERNELS = ("v6e",)
"""Chips on which they are faster than XLA's program; others were not compared."""
COLUMNS = (512, 256, 128)
"""Hidden values of a block, the first of these that divides all."""

Hidden = Float[Array, "b l f"]
Inwards = Float[Array, "m f"]
Outwards = Float[Array, "f m"]


class _Arrays(NamedTuple):
    """The number of arrays of each kind in a kernel."""

    tokens: int
    matrices: int
    hidden: int
    sums: int
    """Results of the width of tokens, which are summed over blocks of hidden values in float32."""

    def step_bytes(self, rows: int, columns: int, width: int) -> int:
        """Vector memory of a grid step: two copies of each block of bfloat16, and the sums."""
        blocks = width * (rows * (self.tokens + self.sums) + columns * self.matrices) + rows * columns * self.hidden
        return 2 * 2 * blocks + 4 * rows * width * self.sums


_FORWARD, _BACKWARD = _Arrays(1, 2, 1, 0), _Arrays(2, 3, 3, 1)


def refusal(x: Tokens, weights: Sequence[Any]) -> str | None:
    """Why the kernels do not compute this feed-forward; None: they do."""
    reason, chip = token_blocks.refusal(x, weights, WITH_KERNELS), known_chip()
    if reason is not None or chip is None:
        return reason
    (_, length, width), hidden = long_rows(x).shape, weights[0].shape[1]
    if hidden % COLUMNS[-1]:
        return f"{hidden} hidden values are no multiple of {COLUMNS[-1]}"
    if _cut(length, width, hidden, chip, _BACKWARD) is None:
        return f"tokens of {width} values are too wide for the chip's vector memory"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def gated_feed_forward(x: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret = False) -> Tokens:
    """(silu(x gate) * (x up)) down; all arrays have the type of x, and hidden values are a multiple of 128."""
    rows = joined_rows(x)
    return (jax.nn.silu(rows @ gate) * (rows @ up) @ down).reshape(x.shape)


def _forward(x: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret) -> tuple[Tokens, tuple]:
    hidden = _hidden(long_rows(x), gate, up, interpret)
    return (joined_rows(hidden) @ down).reshape(x.shape), (x, gate, up, down)


def _backward(interpret: Interpret, saved: tuple, gradient: Tokens) -> tuple[Tokens, Inwards, Inwards, Outwards]:
    x, gate, up, down = saved
    of_x, *rest = _gradients(long_rows(x), long_rows(gradient), gate, up, down, interpret)
    hidden, of_gate, of_up = map(joined_rows, rest)
    rows = joined_rows(x)
    return of_x.reshape(x.shape), rows.T @ of_gate, rows.T @ of_up, hidden.T @ joined_rows(gradient)


gated_feed_forward.defvjp(_forward, _backward)


def _hidden(x: Tokens, gate: Inwards, up: Inwards, interpret: Interpret) -> Hidden:
    """silu(x gate) * (x up)."""
    grid = _Grid(x, gate, _FORWARD)

    def kernel(x: jax.Ref, gate: jax.Ref, up: jax.Ref, hidden: jax.Ref) -> None:
        for at in grid.blocks.slices:
            g, u = (product(x[at, :], weight[...], 0) for weight in (gate, up))
            hidden[at, :] = (g * jax.nn.sigmoid(g) * u).astype(hidden.dtype)

    call = grid.call(kernel, NAME, interpret, [grid.row, grid.inwards, grid.inwards], [grid.block], scratch=[])
    return call(x, gate, up)[0]


def _gradients(
    x: Tokens, gradient: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret
) -> Sequence[Tokens | Hidden]:
    """The gradient of x, silu(x gate) * (x up), and the gradients of x gate and of x up."""
    grid = _Grid(x, gate, _BACKWARD)

    def kernel(
        x: jax.Ref, gradient: jax.Ref, gate: jax.Ref, up: jax.Ref, down: jax.Ref,
        of_x: jax.Ref, hidden: jax.Ref, of_gate: jax.Ref, of_up: jax.Ref, total: jax.Ref,
    ) -> None:  # fmt: skip
        block = pl.program_id(2)

        @pl.when(block == 0)
        def _() -> None:
            total[...] = jnp.zeros_like(total)

        for at in grid.blocks.slices:
            g, u = (product(x[at, :], weight[...], 0) for weight in (gate, up))
            back = product(gradient[at, :], down[...], 1)
            share = jax.nn.sigmoid(g)
            silu = g * share
            hidden[at, :] = (silu * u).astype(hidden.dtype)
            of_g = (back * u * (share + silu * (1 - share))).astype(of_gate.dtype)
            of_u = (back * silu).astype(of_up.dtype)
            of_gate[at, :], of_up[at, :] = of_g, of_u
            total[at, :] += product(of_g, gate[...], 1) + product(of_u, up[...], 1)

        @pl.when(block == pl.num_programs(2) - 1)
        def _() -> None:
            of_x[...] = total[...].astype(of_x.dtype)

    inputs = [grid.row, grid.row, grid.inwards, grid.inwards, grid.outwards]
    sums = [pltpu.VMEM((grid.blocks.rows, x.shape[2]), jnp.float32)]
    call = grid.call(kernel, f"{NAME}_backward", interpret, inputs, [grid.row, *[grid.block] * 3], scratch=sums)
    return call(x, gradient, gate, up, down)


class _Grid:
    """Steps (row, block of tokens, block of hidden values), and the blocks of arrays."""

    def __init__(self, x: Tokens, gate: Inwards, arrays: _Arrays):
        (batch, length, width), hidden = x.shape, gate.shape[1]
        self.chip, self.arrays, self.dtype = known_chip() or UNKNOWN, arrays, x.dtype
        blocks = _cut(length, width, hidden, self.chip, arrays)
        assert blocks is not None  # or `refusal` would have said so
        self.blocks, self.columns, self.sizes = blocks, _columns(hidden), (batch, length, width, hidden)
        self.steps = (batch, pl.cdiv(length, blocks.rows), hidden // self.columns)
        self.row = pl.BlockSpec((None, blocks.rows, width), lambda b, i, j: (b, i, 0))
        self.block = pl.BlockSpec((None, blocks.rows, self.columns), lambda b, i, j: (b, i, j))
        self.inwards = pl.BlockSpec((width, self.columns), lambda b, i, j: (0, j))
        self.outwards = pl.BlockSpec((self.columns, width), lambda b, i, j: (j, 0))

    def call(
        self,
        kernel: Callable[..., None],
        name: str,
        interpret: Interpret,
        inputs: Sequence[pl.BlockSpec],
        outputs: Sequence[pl.BlockSpec],
        scratch: Sequence[Any],
    ) -> Callable[..., Sequence[Array]]:
        batch, length, width, hidden = self.sizes
        arrays, tokens, weights = self.arrays, batch * length, width * hidden
        moved = tokens * (width * (arrays.tokens + arrays.sums) + hidden * arrays.hidden)
        moved += self.steps[0] * self.steps[1] * weights * arrays.matrices
        widths = [width if one is self.row else hidden for one in outputs]
        needed = arrays.step_bytes(self.blocks.rows, self.columns, width)
        return Kernel(
            grid=self.steps,
            inputs=inputs,
            outputs=outputs,
            results=[jax.ShapeDtypeStruct((batch, length, each), self.dtype) for each in widths],
            sums=scratch,
            step_bytes=needed,
            cost=pl.CostEstimate(
                flops=2 * tokens * weights * (arrays.matrices + 2 * arrays.sums),
                transcendentals=tokens * hidden,
                bytes_accessed=self.dtype.itemsize * moved,
            ),
        ).call(kernel, name, self.chip, interpret)


def _cut(length: int, width: int, hidden: int, chip: Chip, arrays: _Arrays) -> TokenBlocks | None:
    return cut(length, chip, lambda rows: arrays.step_bytes(rows, _columns(hidden), width))


def _columns(hidden: int) -> int:
    """Hidden values of a block."""
    return next(size for size in COLUMNS if hidden % size == 0)
