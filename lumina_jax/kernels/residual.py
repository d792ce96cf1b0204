"""What lies between two branches of a network by one kernel for TPUs, forward and backward.

In: activations x [b l m], the output y of one branch, and how the next branch reads the activations. Out: both of

    x' = x + factor norm(y)
    z  = norm(x') factor' + shift'

where norm divides by the root of the mean square (for y it may be missing), and each row has its factors and shift.
Either line may be missing. XLA reads an array once for the mean and again to divide, and divides x' anew in each
product that reads z. The kernels read each array once, and write what products and the backward pass read.

All is computed in float32; x' is rounded to the type of x before it is normed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import LANES, MIB
from lumina_jax.kernels.flash.blocks import known_chip
from lumina_jax.kernels.flash.heads import Span
from lumina_jax.kernels.flash.plan import Interpret, from_hbm

NAME = "lumina_residual"
"""With which the names of the kernels begin."""
WITH_KERNELS = ("v5p", "v6e")
"""Chips on which they are faster than XLA's program; others were not compared."""
CHUNK, SUBLANES = 16, 8
"""Tokens that are in registers at a time, and rows of a register of float32."""
ROWS = (256, 128, 64, 32, CHUNK)
"""Tokens of a grid step, the first for which blocks fit."""
MOST_BYTES, ASKED = 12 * MIB, 16 * MIB
"""Vector memory of the blocks of a grid step, and what a kernel asks for: as much as libtpu gives to any. The rest
holds arrays of the program around it."""

Tokens = Float[Array, "b l m"]
OfRows = Float[Array, "b m"]
"""A vector for each row, float32."""


class Leaving(NamedTuple):
    """How the output of a branch joins the activations: x + factor norm(y)."""

    y: Tokens
    factor: OfRows
    eps: float | None
    """Added to the mean square of y; None: y is not normed."""
    kept_as: str | None = None
    """The name by which y may be kept for the backward pass (`jax.ad_checkpoint.checkpoint_name`)."""


class Entering(NamedTuple):
    """How the next branch reads the activations: norm(x) factor + shift."""

    factor: OfRows
    shift: OfRows | None
    eps: float


class _Plan(NamedTuple):
    """What is fixed when a kernel is built."""

    eps_left: float | None
    eps_entered: float
    kept_as: str | None
    interpret: Interpret


Held = Any
"""An array, or in a kernel its block; None where a line is missing."""


class _Vectors(NamedTuple):
    """What each row has, or, in the backward pass, what its gradient is summed in."""

    left: Held
    entered: Held
    shift: Held


class _Results(NamedTuple):
    """x', which is x where y is missing, and z."""

    out: Held
    z: Held


class _Given(NamedTuple):
    """What the backward kernel reads: gradients of both results, and from the forward pass y and x'."""

    of_out: Held
    of_z: Held
    y: Held
    out: Held


class _Gradients(NamedTuple):
    """What the backward kernel writes; that of x is that of x' where z is missing."""

    of_x: Held
    of_y: Held


def refusal(x: Tokens) -> str | None:
    """Why the kernels cannot serve these activations; None: they can."""
    chip, width = known_chip(), x.shape[2]
    if chip is None or chip.name not in WITH_KERNELS:
        return f"they serve {', '.join(WITH_KERNELS)}"
    if x.dtype != jnp.bfloat16:
        return f"activations are {x.dtype}"
    if width % LANES:
        return f"tokens have {width} values, no multiple of {LANES}"
    return None


def between_branches(
    x: Tokens, leaving: Leaving | None, entering: Entering | None, *, interpret: Interpret = False
) -> tuple[Tokens, Tokens | None]:
    """The activations after a branch, and what the next one reads; None where there is no next one.

    Args:
      x: as wide as a multiple of 128.
      leaving, entering: at least one.
      interpret: run on any device, slowly.
    """
    y, left, eps_left, kept_as = (None, None, None, None) if leaving is None else leaving
    entered, shift, eps_entered = (None, None, 0.0) if entering is None else entering
    return _between(_Plan(eps_left, eps_entered, kept_as, interpret), x, y, _Vectors(left, entered, shift))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _between(plan: _Plan, x: Tokens, y: Tokens | None, vectors: _Vectors) -> tuple[Tokens, Tokens | None]:
    results = _Results(None if y is None else x, None if vectors.entered is None else x)
    grid = _Grid((x, y), results)

    def kernel(inputs: tuple[Held, Held], vectors: _Vectors, results: _Results) -> None:
        x, y = inputs

        @grid.each_chunk
        def _(tokens: Span, exists: Array | None) -> None:
            value = _wide(x[tokens, :])
            if y is not None:
                addend = _wide(y[tokens, :])
                if plan.eps_left is not None:
                    addend = addend * _root(addend, plan.eps_left)
                value = (value + addend * vectors.left[...]).astype(x.dtype)
                results.out[tokens, :] = value
                value = _wide(value)
            if results.z is not None:
                z = value * _root(value, plan.eps_entered) * vectors.entered[...]
                z = z if vectors.shift is None else z + vectors.shift[...]
                results.z[tokens, :] = z.astype(x.dtype)

    ((out, z),) = grid.call(kernel, NAME, plan, (x, y), vectors, results)
    return x if out is None else out, z


def _between_forward(
    plan: _Plan, x: Tokens, y: Tokens | None, vectors: _Vectors
) -> tuple[tuple[Tokens, Tokens | None], tuple]:
    out, z = _between(plan, x, y, vectors)
    if plan.kept_as is not None:
        y = checkpoint_name(y, plan.kept_as)  # here alone, or JAX would round it again before the kernel reads it
    return (out, z), (y, vectors, None if z is None else out)


def _between_backward(
    plan: _Plan, saved: tuple, gradients: tuple[Tokens, Tokens | None]
) -> tuple[Tokens, Tokens | None, _Vectors]:
    y, vectors, out = saved
    of_out, of_z = gradients
    given = _Given(of_out, of_z, y, out)
    results = _Gradients(None if out is None else of_out, None if y is None else of_out)
    grid = _Grid(given, results)

    def kernel(given: _Given, vectors: _Vectors, results: _Gradients, sums: _Vectors) -> None:
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            for total in jax.tree.leaves(sums):
                total[...] = jnp.zeros_like(total)

        @grid.each_chunk
        def _(tokens: Span, exists: Array | None) -> None:
            def read(ref: jax.Ref) -> Array:
                value = _wide(ref[tokens, :])
                return value if exists is None else jnp.where(exists, value, 0.0)

            gradient = read(given.of_out)
            if results.of_x is not None:
                of_z = read(given.of_z)
                if sums.shift is not None:
                    sums.shift[...] += _by_sublane(of_z)
                gradient += _through_norm(of_z, read(given.out), vectors.entered, sums.entered, plan.eps_entered)
                gradient = gradient.astype(results.of_x.dtype)
                results.of_x[tokens, :] = gradient
                gradient = _wide(gradient)
            if results.of_y is not None:
                of_y = _through_norm(gradient, read(given.y), vectors.left, sums.left, plan.eps_left)
                results.of_y[tokens, :] = of_y.astype(results.of_y.dtype)

    (of_x, of_y), sums = grid.call(kernel, f"{NAME}_backward", plan, given, vectors, results, with_sums=True)
    return of_out if of_x is None else of_x, of_y, jax.tree.map(lambda total: jnp.sum(total, axis=(1, 2)), sums)


_between.defvjp(_between_forward, _between_backward)


def _through_norm(gradient: Array, x: Array, factor: jax.Ref, total: jax.Ref, eps: float | None) -> Array:
    """The gradient of x from that of factor norm(x); that of the factor is added to `total`. None: without a norm."""
    if eps is None:
        total[...] += _by_sublane(gradient * x)
        return gradient * factor[...]
    root = _root(x, eps)
    standard = x * root
    total[...] += _by_sublane(gradient * standard)
    inner = gradient * factor[...]
    return root * (inner - standard * jnp.mean(inner * standard, axis=1, keepdims=True))


def _root(x: Float[Array, "tokens m"], eps: float) -> Float[Array, "tokens 1"]:
    """1 / rms of each token."""
    return jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def _by_sublane(x: Float[Array, "tokens m"]) -> Float[Array, "8 m"]:
    """The sum over tokens, in parts that need no exchange of sublanes."""
    return functools.reduce(jnp.add, [x[start : start + SUBLANES] for start in range(0, x.shape[0], SUBLANES)])


class _Grid:
    """How tokens are cut: steps (row, part, block within the part), and the blocks of arrays.

    The parts of a row are independent, so that the cores of a chip that has two share them.
    """

    def __init__(self, inputs: Any, results: Any):
        arrays = jax.tree.leaves((inputs, results))
        self.batch, self.length, self.width = arrays[0].shape
        self.itemsize, self.arrays = arrays[0].dtype.itemsize, len(arrays)
        self.rows = next(
            rows
            for rows in ROWS
            if rows == ROWS[-1] or (self._bytes(rows) <= MOST_BYTES and rows < self.length + CHUNK)
        )
        blocks = pl.cdiv(self.length, self.rows)
        parts = 1 if blocks % 2 else 2
        self.steps = (self.batch, parts, blocks // parts)

    def _bytes(self, rows: int) -> int:
        """Vector memory of a grid step of so many tokens, two copies of each block."""
        return 2 * rows * self.width * self.itemsize * self.arrays

    def each_chunk(self, work: Callable[[Span, Array | None], None]) -> None:
        """Call `work` for some tokens of a block after others, with which of them exist; None: all."""
        first = (pl.program_id(1) * self.steps[2] + pl.program_id(2)) * self.rows

        @pl.loop(0, self.rows // CHUNK)
        def _(index: Array) -> None:
            exists = None
            if self.length % self.rows:  # what lies beyond the row may be anything
                token = first + index * CHUNK + jax.lax.broadcasted_iota(jnp.int32, (CHUNK, 1), 0)
                exists = token < self.length
            work(pl.ds(pl.multiple_of(index * CHUNK, CHUNK), CHUNK), exists)

    def call(
        self,
        kernel: Callable[..., None],
        name: str,
        plan: _Plan,
        inputs: Any,
        vectors: _Vectors,
        results: Any,
        *,
        with_sums: bool = False,
    ) -> Any:
        """The results, with the sums over tokens for the gradient of each vector where they are asked for."""
        each, (batch, parts, _) = self.steps[2], self.steps
        tokens = pl.BlockSpec((None, self.rows, self.width), lambda b, p, i: (b, p * each + i, 0))
        row = pl.BlockSpec((None, 1, self.width), lambda b, p, i: (b, 0, 0))
        total = pl.BlockSpec((None, None, SUBLANES, self.width), lambda b, p, i: (b, p, 0, 0))
        total_shape = jax.ShapeDtypeStruct((batch, parts, SUBLANES, self.width), jnp.float32)
        specs, shapes = [jax.tree.map(lambda _: tokens, results)], [jax.tree.map(_shape, results)]
        if with_sums:
            specs.append(jax.tree.map(lambda _: total, vectors))
            shapes.append(jax.tree.map(lambda _: total_shape, vectors))
        call = pl.pallas_call(
            kernel,
            grid=self.steps,
            in_specs=(jax.tree.map(lambda _: tokens, inputs), jax.tree.map(lambda _: row, vectors)),
            out_specs=specs,
            out_shape=shapes,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary" if with_sums else "parallel"),
                vmem_limit_bytes=ASKED,
            ),
            cost_estimate=pl.CostEstimate(
                flops=0,
                transcendentals=0,
                bytes_accessed=self.arrays * self.batch * self.length * self.width * self.itemsize,
            ),
            interpret=plan.interpret,
            name=name,
        )
        vectors = jax.tree.map(lambda vector: vector.astype(jnp.float32)[:, None], vectors)
        return from_hbm(lambda vectors, inputs: call(inputs, vectors), interpret=plan.interpret)(vectors, inputs)


def _shape(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
