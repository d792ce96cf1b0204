"""Heads moved from registers that they share to registers of their own, and back, in one pass over HBM.

In: heads side by side [b l lanes], of which every so many are filled up to whole registers. Out: the same, with another
number filled up together. XLA would go through [b l heads width], whose tiles are others, and copy three times.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumina_jax.chips import LANES
from lumina_jax.kernels.blocks import padded
from lumina_jax.kernels.flash_forward import Interpret
from lumina_jax.kernels.lanes import Head, Ref

ROWS = 256
"""Most tokens of a grid step."""


def regrouped(
    x: Float[Array, "b l lanes"], *, width: int, old: int, new: int, dtype: Any, interpret: Interpret
) -> Float[Array, "b l other"]:
    """Heads of `width`, of which every `new` are filled up with zeros to whole registers instead of every `old`, as
    values of `dtype`. `l` is a multiple of 128."""
    if old == new or (old * width % LANES == 0 and new * width % LANES == 0):
        return x.astype(dtype)
    together = math.lcm(old, new)
    lanes = [together // group * padded(group * width) for group in (old, new)]
    batch, length, rows = *x.shape[:2], math.gcd(x.shape[1], ROWS)
    shape = jax.ShapeDtypeStruct((batch, length, x.shape[2] // lanes[0] * lanes[1]), dtype)
    here, there = (pl.BlockSpec((None, rows, count), lambda b, i, g: (b, i, g)) for count in lanes)
    return pl.pallas_call(
        functools.partial(_kernel, width=width, old=old, new=new),
        grid=(batch, length // rows, x.shape[2] // lanes[0]),
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


def _kernel(source: Ref, target: Ref, *, width: int, old: int, new: int) -> None:
    target[...] = jnp.zeros_like(target)
    for head in range(math.lcm(old, new)):
        here, there = _head(source, head, width, old), _head(target, head, width, new)
        there.write(slice(None), here.alone(slice(None)), here)


def _head(block: Ref, index: int, width: int, group: int) -> Head:
    return Head(block, index // group * padded(group * width) + index % group * width, width)
