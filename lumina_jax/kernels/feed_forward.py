"""The gated feed-forward (silu(x G) * (x U)) D by kernels for TPUs.

In: tokens [b l m], and the matrices G and U [m f] and D [f m]. Out: [b l m].

XLA writes both input products to memory, reads them again in the products that follow, and computes SiLU and its
derivative in each of these. On a v6e that takes longer than the products. Here a kernel computes all products of a
block of tokens with a block of hidden values, and what follows them:

    forward     h = silu(x G) * (x U), and the sum of h D over blocks of hidden values
    backward    h again; the gradients of x G and x U, from those two products and dy D^T; and that of x, from these

so that nothing but x is kept for the backward pass, and the forward pass writes no hidden values. The backward kernel
writes h and both gradients, from which XLA computes those of the matrices.

Where nobody differentiates, the kernel serves matrices that lie in the stack of all layers (`stacked.py`). All others
have XLA's program then, because XLA gathers matrices from other devices beside its own products only.
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
from lumina_jax.kernels.stacked import Matrix, StackedMatrix, block
from lumina_jax.kernels.token_blocks import Kernel, TokenBlocks, Tokens, cut, joined_rows, long_rows, product

NAME = "lumina_feed_forward"
"""With which the names of the kernels begin."""
WITH_KERNELS = ("v6e",)
"""Chips on which they are faster than XLA's program; others were not compared."""
COLUMNS = (512, 256, 128)
"""Hidden values of a block, the first of these that divides all."""

Hidden = Float[Array, "b l f"]
Inwards = StackedMatrix | Float[Array, "m f"]
Outwards = StackedMatrix | Float[Array, "f m"]
MATRICES = 3
"""Of a feed-forward."""


class _Pass(NamedTuple):
    """What the kernel of a pass computes of a block of tokens and a block of hidden values, and its arrays."""

    products: int
    tokens: int
    """Inputs of the width of tokens. A result of that width is summed over blocks of hidden values in float32."""
    hidden: int
    """Results of the width of hidden values."""

    def step_bytes(self, rows: int, columns: int, width: int) -> int:
        """Vector memory of a grid step: two copies of each block of bfloat16, and the sum."""
        blocks = width * (rows * (self.tokens + 1) + columns * MATRICES) + rows * columns * self.hidden
        return 2 * 2 * blocks + 4 * rows * width


_FORWARD, _BACKWARD = _Pass(3, 1, 0), _Pass(5, 2, 3)


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


def gated_feed_forward(
    x: Tokens, gate: Inwards, up: Inwards, down: Outwards, *, interpret: Interpret = False
) -> Tokens:
    """(silu(x gate) * (x up)) down; all arrays have the type of x, and hidden values are a multiple of 128.

    Matrices that lie in the stack of all layers are read there; nobody may differentiate by x then.
    """
    if isinstance(gate, StackedMatrix):
        return _product(x, gate, up, down, interpret)
    return _differentiable(x, gate, up, down, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _differentiable(x: Tokens, gate: Array, up: Array, down: Array, interpret: Interpret) -> Tokens:
    rows = joined_rows(x)
    return (jax.nn.silu(rows @ gate) * (rows @ up) @ down).reshape(x.shape)


def _forward(x: Tokens, gate: Array, up: Array, down: Array, interpret: Interpret) -> tuple[Tokens, tuple]:
    return _product(x, gate, up, down, interpret), (x, gate, up, down)


def _backward(interpret: Interpret, saved: tuple, gradient: Tokens) -> tuple[Tokens, Array, Array, Array]:
    x, gate, up, down = saved
    of_x, *rest = _gradients(long_rows(x), long_rows(gradient), gate, up, down, interpret)
    hidden, of_gate, of_up = map(joined_rows, rest)
    rows = joined_rows(x)
    return of_x.reshape(x.shape), rows.T @ of_gate, rows.T @ of_up, hidden.T @ joined_rows(gradient)


_differentiable.defvjp(_forward, _backward)


def _product(x: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret) -> Tokens:
    rows = long_rows(x)
    grid = _Grid(rows, [gate, up, down], _FORWARD)

    def kernel(x: jax.Ref, gate: jax.Ref, up: jax.Ref, down: jax.Ref, out: jax.Ref, total: jax.Ref) -> None:
        step = pl.program_id(2)

        @pl.when(step == 0)
        def _() -> None:
            total[...] = jnp.zeros_like(total)

        for at in grid.blocks.slices:
            g, u = (product(x[at, :], weight[...], 0) for weight in (gate, up))
            hidden = (g * jax.nn.sigmoid(g) * u).astype(out.dtype)
            total[at, :] += product(hidden, down[...], 0)

        @pl.when(step == pl.num_programs(2) - 1)
        def _() -> None:
            out[...] = total[...].astype(out.dtype)

    call = grid.call(kernel, NAME, interpret, [grid.row], [grid.row])
    return call(rows)[0].reshape(x.shape)


def _gradients(
    x: Tokens, gradient: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret
) -> Sequence[Tokens | Hidden]:
    """The gradient of x, silu(x gate) * (x up), and the gradients of x gate and of x up."""
    grid = _Grid(x, [gate, up, down], _BACKWARD)

    def kernel(
        x: jax.Ref, gradient: jax.Ref, gate: jax.Ref, up: jax.Ref, down: jax.Ref,
        of_x: jax.Ref, hidden: jax.Ref, of_gate: jax.Ref, of_up: jax.Ref, total: jax.Ref,
    ) -> None:  # fmt: skip
        step = pl.program_id(2)

        @pl.when(step == 0)
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

        @pl.when(step == pl.num_programs(2) - 1)
        def _() -> None:
            of_x[...] = total[...].astype(of_x.dtype)

    call = grid.call(kernel, f"{NAME}_backward", interpret, [grid.row, grid.row], [grid.row, *[grid.block] * 3])
    return call(x, gradient)


class _Grid:
    """Steps (row, block of tokens, block of hidden values), and the blocks of arrays."""

    def __init__(self, x: Tokens, weights: Sequence[Matrix], which: _Pass):
        (batch, length, width), hidden = x.shape, weights[0].shape[1]
        self.chip, self.which, self.dtype, self.weights = known_chip() or UNKNOWN, which, x.dtype, weights
        blocks = _cut(length, width, hidden, self.chip, which)
        assert blocks is not None  # or `refusal` would have said so
        self.blocks, self.columns, self.sizes = blocks, _columns(hidden), (batch, length, width, hidden)
        self.steps = (batch, pl.cdiv(length, blocks.rows), hidden // self.columns)
        self.row = pl.BlockSpec((None, blocks.rows, width), lambda b, i, j, *_: (b, i, 0))
        self.block = pl.BlockSpec((None, blocks.rows, self.columns), lambda b, i, j, *_: (b, i, j))
        *inwards, outwards = weights
        self.matrices = [block(one, (width, self.columns), lambda b, i, j, *_: (0, j)) for one in inwards]
        self.matrices.append(block(outwards, (self.columns, width), lambda b, i, j, *_: (j, 0)))

    def call(
        self,
        kernel: Callable[..., None],
        name: str,
        interpret: Interpret,
        inputs: Sequence[pl.BlockSpec],
        outputs: Sequence[pl.BlockSpec],
    ) -> Callable[..., Sequence[Array]]:
        batch, length, width, hidden = self.sizes
        which, tokens, weights = self.which, batch * length, width * hidden
        moved = tokens * (width * (which.tokens + 1) + hidden * which.hidden)
        moved += self.steps[0] * self.steps[1] * weights * MATRICES
        widths = [width if one is self.row else hidden for one in outputs]
        return Kernel(
            grid=self.steps,
            inputs=inputs,
            weights=self.weights,
            matrices=self.matrices,
            outputs=outputs,
            results=[jax.ShapeDtypeStruct((batch, length, each), self.dtype) for each in widths],
            sums=[pltpu.VMEM((self.blocks.rows, width), jnp.float32)],
            step_bytes=which.step_bytes(self.blocks.rows, self.columns, width),
            cost=pl.CostEstimate(
                flops=2 * tokens * weights * which.products,
                transcendentals=tokens * hidden,
                bytes_accessed=self.dtype.itemsize * moved,
            ),
        ).call(kernel, name, self.chip, interpret)


def _cut(length: int, width: int, hidden: int, chip: Chip, which: _Pass) -> TokenBlocks | None:
    return cut(length, chip, lambda rows: which.step_bytes(rows, _columns(hidden), width))


def _columns(hidden: int) -> int:
    """Hidden values of a block."""
    return next(size for size in COLUMNS if hidden % size == 0)
