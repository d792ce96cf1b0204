"""Moves heads from registers that they share to registers that each has alone, and back, in one pass over HBM.

In: heads side by side [b l lanes], in groups that are each padded to whole registers. Out: the same heads in groups of
another size. XLA would go through [b l heads width], which is tiled differently, and copy three times.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lumina_jax.chips import LANES
from lumina_jax.kernels.flash.blocks import padded
from lumina_jax.kernels.flash.heads import Head
from lumina_jax.kernels.flash.plan import Interpret

ROWS = 256
"""Most tokens of a grid step."""


def regrouped(
    x: Float[Array, "b l lanes"], *, heads: int, width: int, old: int, new: int, dtype: DTypeLike, interpret: Interpret
) -> Float[Array, "b l other"]:
    """Heads of `width` values in groups of `new` instead of `old`, each padded with zeros to whole registers.

    A single group of all `heads` is not padded.

    Args:
      dtype: type of the result.
    """
    if old == new or (old * width % LANES == 0 and new * width % LANES == 0):
        return x.astype(dtype)
    together = math.lcm(old, new)
    lanes = [together // group * padded(group * width) for group in (old, new)]
    batch, length, rows = *x.shape[:2], min(padded(x.shape[1]), ROWS)
    shape = jax.ShapeDtypeStruct(
        (batch, length, heads * width if new == heads else heads // new * padded(new * width)), dtype
    )
    here, there = (pl.BlockSpec((None, rows, count), lambda b, i, g: (b, i, g)) for count in lanes)
    return pl.pallas_call(
        functools.partial(_kernel, width=width, old=old, new=new),
        grid=(batch, pl.cdiv(length, rows), heads // together),
        in_specs=[here],
        out_specs=there,
        out_shape=shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=x.size * x.dtype.itemsize + shape.size * shape.dtype.itemsize,
        ),
        interpret=interpret,
        name="lumina_regroup",
    )(x)


def _kernel(source: jax.Ref, target: jax.Ref, *, width: int, old: int, new: int) -> None:
    target[...] = jnp.zeros_like(target)
    for head in range(math.lcm(old, new)):
        here, there = _head(source, head, width, old), _head(target, head, width, new)
        there.write(slice(None), here.alone(slice(None)), here)


def _head(block: jax.Ref, index: int, width: int, group: int) -> Head:
    return Head(block, index // group * padded(group * width) + index % group * width, width)
