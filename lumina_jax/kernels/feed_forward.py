"""The gated feed-forward (silu(x G) * (x U)) D by kernels for TPUs, forward and backward.

In: tokens [n m], and the matrices G and U [m f] and D [f m]. Out: [n m].

XLA writes both input products to memory, reads them again in every product of the backward pass, and computes SiLU and
its derivative in each. On a v6e that is slower than the products themselves. Here a kernel computes all products of one
block of tokens and hidden values and what follows them, and writes only the factors of other products:

    forward     h = silu(x G) * (x U)
    backward    h again, and the gradients of x G and x U, from those two products and dy D^T

so that nothing but x is kept for the backward pass. All other products are XLA's.
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
from lumina_jax.kernels.flash.blocks import UNKNOWN, known_chip
from lumina_jax.kernels.flash.plan import Interpret, asked_vmem

NAME = "lumina_feed_forward"
"""With which the names of the kernels begin."""
WITH_KERNELS = ("v6e",)
"""Chips on which they are faster than XLA's program; others were not compared."""
MOST_ROWS, CHUNK, COLUMNS = (1408, 704, 352), 352, 512
"""Most tokens of a block, the first that fit; tokens that are multiplied together; hidden values of a block."""
SUBLANES = 16
"""Rows of a register of bfloat16."""

Tokens = Float[Array, "b l m"]
Hidden = Float[Array, "b l f"]
Inwards = Float[Array, "m f"]
Outwards = Float[Array, "f m"]
Formula = Callable[..., tuple[Array, ...]]
"""Results of a chunk, from its products in float32."""


class Blocks(NamedTuple):
    """How tokens and hidden values are cut."""

    chunk: int
    chunks: int
    columns: int

    @property
    def rows(self) -> int:
        return self.chunk * self.chunks


def refusal(x: Tokens, weights: Sequence[Any]) -> str | None:
    """Why the kernels do not compute this feed-forward; None: they do."""
    chip = known_chip()
    if chip is None or chip.name not in WITH_KERNELS:
        return f"they serve {', '.join(WITH_KERNELS)}"
    if not all(isinstance(weight, jax.Array) for weight in weights):
        return "a weight has an adapter, or few bits"
    if x.dtype != jnp.bfloat16:
        return f"activations are {x.dtype}"
    _, length, width = _long(x).shape
    if length < CHUNK:
        return f"{length} tokens are fewer than {CHUNK}"
    fits = _step_bytes(_cut(length, width, weights[0].shape[1], chip), width, _BACKWARD) <= _room(chip)
    return None if fits else f"tokens of {width} values are too wide for the chip's vector memory"


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def gated_feed_forward(x: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret = False) -> Tokens:
    """(silu(x gate) * (x up)) down; all arrays have the type of x."""
    return (_joined(_hidden(_long(x), gate, up, interpret)) @ down).reshape(x.shape)


def _forward(x: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret) -> tuple[Tokens, tuple]:
    return gated_feed_forward(x, gate, up, down, interpret), (x, gate, up, down)


def _backward(interpret: Interpret, saved: tuple, gradient: Tokens) -> tuple[Tokens, Inwards, Inwards, Outwards]:
    x, gate, up, down = saved
    hidden, of_gate, of_up = map(_joined, _hidden_gradients(_long(x), _long(gradient), gate, up, down, interpret))
    rows, of_rows = _joined(x), _joined(gradient)
    of_x = (of_gate @ gate.T + of_up @ up.T).reshape(x.shape)
    return of_x, rows.T @ of_gate, rows.T @ of_up, hidden.T @ of_rows


gated_feed_forward.defvjp(_forward, _backward)


def _long(x: Tokens) -> Float[Array, "r n m"]:
    """Short rows as one. Long ones stay apart: XLA would write the shifts and scales of each, which vary by row, for
    all tokens, before it puts the rows together."""
    return x if x.shape[1] >= MOST_ROWS[1] else x.reshape(1, -1, x.shape[2])


def _joined(x: Float[Array, "b l w"]) -> Float[Array, "n w"]:
    return x.reshape(-1, x.shape[2])


def _hidden(x: Tokens, gate: Inwards, up: Inwards, interpret: Interpret) -> Hidden:
    """silu(x gate) * (x up)."""

    def formula(g: Array, u: Array) -> tuple[Array, ...]:
        return (g * jax.nn.sigmoid(g) * u,)

    (hidden,) = _call(formula, _FORWARD, [x], [gate, up], interpret, NAME)
    return hidden


def _hidden_gradients(
    x: Tokens, gradient: Tokens, gate: Inwards, up: Inwards, down: Outwards, interpret: Interpret
) -> Sequence[Hidden]:
    """silu(x gate) * (x up), and the gradients of x gate and of x up."""

    def formula(g: Array, u: Array, back: Array) -> tuple[Array, ...]:
        share = jax.nn.sigmoid(g)
        silu = g * share
        return silu * u, back * u * (share + silu * (1 - share)), back * silu

    return _call(formula, _BACKWARD, [x, gradient], [gate, up, down], interpret, f"{NAME}_backward")


class _Shape(NamedTuple):
    """The arrays of a kernel."""

    factors: tuple[int, ...]
    """The index of the tokens that each matrix multiplies: the first two matrices are `Inwards`, others `Outwards`."""
    tokens: int
    results: int


_FORWARD, _BACKWARD = _Shape((0, 0), 1, 1), _Shape((0, 0, 1), 2, 3)


def _call(
    formula: Formula,
    shape: _Shape,
    tokens: Sequence[Tokens],
    matrices: Sequence[Inwards | Outwards],
    interpret: Interpret,
    name: str,
) -> Sequence[Hidden]:
    """The results of a formula, from products of tokens with `Inwards` and with the transpose of `Outwards`."""
    (batch, length, width), hidden = tokens[0].shape, matrices[0].shape[1]
    chip = known_chip() or UNKNOWN
    blocks = _cut(length, width, hidden, chip)

    def kernel(*refs: jax.Ref) -> None:
        given, weights, results = refs[: shape.tokens], refs[shape.tokens : -shape.results], refs[-shape.results :]
        for start in range(0, blocks.rows, blocks.chunk):
            at = slice(start, start + blocks.chunk)
            factors = [given[index][at, :] for index in shape.factors]
            products = [_product(x, w[...], int(i > 1)) for i, (x, w) in enumerate(zip(factors, weights))]
            for result, value in zip(results, formula(*products)):
                result[at, :] = value.astype(result.dtype)

    inwards = pl.BlockSpec((width, blocks.columns), lambda b, i, j: (0, j))
    outwards = pl.BlockSpec((blocks.columns, width), lambda b, i, j: (j, 0))
    results = pl.BlockSpec((None, blocks.rows, blocks.columns), lambda b, i, j: (b, i, j))
    grid = (batch, pl.cdiv(length, blocks.rows), pl.cdiv(hidden, blocks.columns))
    moved = batch * length * (width * shape.tokens + hidden * shape.results)
    moved += grid[0] * grid[1] * width * hidden * len(matrices)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            *[pl.BlockSpec((None, blocks.rows, width), lambda b, i, j: (b, i, 0))] * shape.tokens,
            *[inwards if index < 2 else outwards for index in range(len(matrices))],
        ],
        out_specs=[results] * shape.results,
        out_shape=[jax.ShapeDtypeStruct((batch, length, hidden), tokens[0].dtype)] * shape.results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=asked_vmem(_step_bytes(blocks, width, shape), chip),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * length * width * hidden * len(matrices),
            transcendentals=batch * length * hidden,
            bytes_accessed=tokens[0].dtype.itemsize * moved,
        ),
        interpret=interpret,
        name=name,
    )(*tokens, *matrices)


def _product(x: Array, weight: Array, dimension: int) -> Array:
    """The product, float32, over the last axis of `x` and one of the weight."""
    dimensions = ((1,), (dimension,)), ((), ())
    return jax.lax.dot_general(x, weight, dimensions, preferred_element_type=jnp.float32)


def _cut(length: int, width: int, hidden: int, chip: Chip) -> Blocks:
    """Blocks that cover a row with little beyond them, in chunks of about `CHUNK`; as large as fit the chip."""
    for most in MOST_ROWS:
        rows = pl.cdiv(length, pl.cdiv(length, most))
        chunks = max(1, round(rows / CHUNK))
        chunk = pl.cdiv(pl.cdiv(rows, chunks), SUBLANES) * SUBLANES
        blocks = Blocks(chunk, chunks, min(COLUMNS, hidden))
        if _step_bytes(blocks, width, _BACKWARD) <= _room(chip):
            break
    return blocks


def _step_bytes(blocks: Blocks, width: int, shape: _Shape) -> int:
    """Vector memory of a grid step, two copies of each block of bfloat16."""
    values = width * (blocks.rows * shape.tokens + blocks.columns * len(shape.factors))
    return 2 * 2 * (values + blocks.rows * blocks.columns * shape.results)


def _room(chip: Chip) -> int:
    """The vector memory that blocks may take."""
    return chip.vmem * 5 // 8
