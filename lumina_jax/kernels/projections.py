"""Products of the same tokens with several matrices by kernels for TPUs.

In: tokens [b l m], and matrices [m w], such as those to queries, keys and values. Out: a product [b l w] for each.

XLA reads the tokens for each product. In the backward pass it writes the gradient of the tokens by each matrix, and
reads it again to add them up. Narrow matrices, such as those to the keys of a few heads, leave its pipeline empty. Here
one kernel computes all products of a block of tokens, and one the gradient of the tokens, which is summed in float32:

    forward     y_k = x W_k
    backward    sum_k dy_k W_k^T

Gradients of the matrices are XLA's. Where nobody differentiates, the kernel serves matrices that lie in the stack of
all layers (`stacked.py`), as that of the feed-forward does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import LANES, Chip
from lumina_jax.kernels import token_blocks
from lumina_jax.kernels.flash.blocks import UNKNOWN, known_chip
from lumina_jax.kernels.flash.plan import Interpret
from lumina_jax.kernels.stacked import Matrix, StackedMatrix, block
from lumina_jax.kernels.token_blocks import Kernel, TokenBlocks, Tokens, cut, joined_rows, long_rows, product

NAME = "lumina_projections"
"""With which the names of the kernels begin."""
WITH_KERNELS = ("v6e",)
"""Chips on which they are faster than XLA's program; others were not compared."""
COLUMNS = (768, 512, 256, LANES)
"""Columns of a block of a matrix, the first of these that divides all."""
WHOLE, UNIT = 1280, 256
"""The widest matrix that is one block, if its columns do not fill whole matrix units of this width."""

Products = tuple[Float[Array, "b l _"], ...]


class _Part(NamedTuple):
    """A matrix in the grid: its width, the columns of a block, and its first step among those of all matrices."""

    width: int
    columns: int
    start: int

    @property
    def steps(self) -> int:
        return self.width // self.columns


def refusal(x: Tokens, weights: Sequence[Any]) -> str | None:
    """Why the kernels do not compute these products; None: they do."""
    reason, chip = token_blocks.refusal(x, weights, WITH_KERNELS), known_chip()
    if reason is not None or chip is None:
        return reason
    widths = [weight.shape[1] for weight in weights]
    if not all(map(_columns, widths)):
        return f"matrices are {', '.join(map(str, widths))} wide: multiples of {LANES}, or at most {WHOLE}"
    if any(_blocks(x, weights, chip, sums) is None for sums in (0, 1)):
        return f"tokens of {x.shape[2]} values are too wide for the chip's vector memory"
    return None


def projections(x: Tokens, weights: Sequence[Matrix], interpret: Interpret = False) -> Products:
    """x with each of the matrices; all arrays have the type of x.

    Matrices that lie in the stack of all layers are read there; nobody may differentiate by x then.
    """
    if isinstance(weights[0], StackedMatrix):
        return _products(x, weights, interpret)
    return _differentiable(x, weights, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _differentiable(x: Tokens, weights: Sequence[Array], interpret: Interpret) -> Products:
    rows = joined_rows(x)
    return tuple((rows @ weight).reshape(*x.shape[:2], -1) for weight in weights)


def _forward(x: Tokens, weights: Sequence[Array], interpret: Interpret) -> tuple[Products, tuple]:
    return _products(x, weights, interpret), (x, weights)


def _backward(interpret: Interpret, saved: tuple, gradients: Products) -> tuple[Tokens, list[Array]]:
    x, weights = saved
    of_x = _gradient([long_rows(one) for one in gradients], weights, interpret)
    rows = joined_rows(x)
    return of_x.reshape(x.shape), type(weights)(rows.T @ joined_rows(one) for one in gradients)


_differentiable.defvjp(_forward, _backward)


def _products(x: Tokens, weights: Sequence[Matrix], interpret: Interpret) -> Products:
    rows = long_rows(x)
    grid = _Grid(rows, weights, sums=0)

    def kernel(x: jax.Ref, *refs: jax.Ref) -> None:
        count = len(refs) // 2
        for part, weight, out in zip(grid.parts, refs[:count], refs[count:], strict=True):

            @pl.when(grid.is_of(part))
            def _(weight: jax.Ref = weight, out: jax.Ref = out) -> None:
                for at in grid.blocks.slices:
                    out[at, :] = product(x[at, :], weight[...], 0).astype(out.dtype)

    call = grid.call(kernel, NAME, interpret, [grid.row], grid.columns, scratch=[])
    return tuple(one.reshape(*x.shape[:2], -1) for one in call(rows))


def _gradient(gradients: Sequence[Float[Array, "b l _"]], weights: Sequence[Matrix], interpret: Interpret) -> Tokens:
    grid = _Grid(gradients[0], weights, sums=1)
    width = weights[0].shape[0]

    def kernel(*refs: jax.Ref) -> None:
        *inputs, out, total = refs
        step = pl.program_id(2)

        @pl.when(step == 0)
        def _() -> None:
            total[...] = jnp.zeros_like(total)

        count = len(inputs) // 2
        for part, gradient, weight in zip(grid.parts, inputs[:count], inputs[count:], strict=True):

            @pl.when(grid.is_of(part))
            def _(gradient: jax.Ref = gradient, weight: jax.Ref = weight) -> None:
                for at in grid.blocks.slices:
                    total[at, :] += product(gradient[at, :], weight[...], 1)

        @pl.when(step == pl.num_programs(2) - 1)
        def _() -> None:
            out[...] = total[...].astype(out.dtype)

    sums = [pltpu.VMEM((grid.blocks.rows, width), jnp.float32)]
    call = grid.call(kernel, f"{NAME}_backward", interpret, grid.columns, [grid.row], scratch=sums)
    return call(*gradients)[0]


class _Grid:
    """Steps (row, block of tokens, block of columns of one matrix after another), and the blocks of arrays."""

    def __init__(self, tokens: Float[Array, "b l _"], weights: Sequence[Matrix], *, sums: int):
        self.chip, self.dtype, self.sums, self.weights = known_chip() or UNKNOWN, tokens.dtype, sums, weights
        batch, length, _ = tokens.shape
        width = weights[0].shape[0]
        self.parts: list[_Part] = []
        steps = 0
        for weight in weights:
            part = _Part(weight.shape[1], _columns(weight.shape[1]), steps)
            self.parts.append(part)
            steps += part.steps
        blocks = _blocks(tokens, weights, self.chip, sums)
        assert blocks is not None  # or `refusal` would have said so
        self.blocks, self.sizes = blocks, (batch, length, width)
        self.steps = (batch, pl.cdiv(length, blocks.rows), steps)
        self.row = pl.BlockSpec((None, blocks.rows, width), lambda b, i, j, *_: (b, i, 0))
        self.columns = [self._of_columns(part) for part in self.parts]

    def is_of(self, part: _Part) -> Array:
        """Whether this step is one of the matrix."""
        step = pl.program_id(2)
        return (step >= part.start) & (step < part.start + part.steps)

    def _of_columns(self, part: _Part) -> pl.BlockSpec:
        shape = (None, self.blocks.rows, part.columns)
        return pl.BlockSpec(shape, lambda b, i, j, *_: (b, i, _within(part, j)))

    def _of_matrix(self, part: _Part, weight: Matrix) -> pl.BlockSpec:
        return block(weight, (weight.shape[0], part.columns), lambda b, i, j, *_: (0, _within(part, j)))

    def call(
        self,
        kernel: Callable[..., None],
        name: str,
        interpret: Interpret,
        inputs: Sequence[pl.BlockSpec],
        outputs: Sequence[pl.BlockSpec],
        scratch: Sequence[Any],
    ) -> Callable[..., Sequence[Array]]:
        batch, length, width = self.sizes
        tokens, columns = batch * length, sum(part.width for part in self.parts)
        filled = sum(pl.cdiv(part.width, self.chip.matrix_unit) for part in self.parts) * self.chip.matrix_unit
        widths = [width] if self.sums else [part.width for part in self.parts]
        moved = tokens * (width + columns) + self.steps[0] * self.steps[1] * width * columns
        return Kernel(
            grid=self.steps,
            inputs=inputs,
            weights=self.weights,
            matrices=[self._of_matrix(part, weight) for part, weight in zip(self.parts, self.weights)],
            outputs=outputs,
            results=[jax.ShapeDtypeStruct((batch, length, each), self.dtype) for each in widths],
            sums=scratch,
            step_bytes=_step_bytes(self.blocks.rows, width, self.parts, self.sums),
            cost=pl.CostEstimate(
                flops=2 * tokens * width * filled,  # with columns that a matrix unit leaves empty
                transcendentals=0,
                bytes_accessed=self.dtype.itemsize * moved,
            ),
        ).call(kernel, name, self.chip, interpret)


def _within(part: _Part, step: Any) -> Any:
    """The block of a matrix, or of its product, at a step: outside its own steps the nearest, which is there already
    or will be needed next."""
    return jnp.clip(step - part.start, 0, part.steps - 1)


def _columns(width: int) -> int:
    """Columns of a block; 0: none will do."""
    if width <= WHOLE and width % UNIT:
        return width
    return next((size for size in COLUMNS if width % size == 0), 0)


def _step_bytes(rows: int, width: int, parts: Sequence[_Part], sums: int) -> int:
    """Vector memory of a grid step: two copies of each block of bfloat16, and the sums."""
    columns = sum(part.columns for part in parts)
    return 2 * 2 * (rows * width + columns * (rows + width)) + 4 * rows * width * sums


def _blocks(tokens: Float[Array, "b l _"], weights: Sequence[Matrix], chip: Chip, sums: int) -> TokenBlocks | None:
    width = weights[0].shape[0]
    parts = [_Part(weight.shape[1], _columns(weight.shape[1]), 0) for weight in weights]
    return cut(long_rows(tokens).shape[1], chip, lambda rows: _step_bytes(rows, width, parts, sums))
