"""A contestant of `bench kernels`: an implementation of attention, and the block sizes to try for it.

In: a Problem and block sizes by name. Out: a function and abstract arguments for the compiler, which compute softmax
attention within segments, plus gated text attention, and on request the gradients of every input.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lumina_jax.chips import LANES
from lumina_jax.kernel_bench.measurements import Measurement
from lumina_jax.kernel_bench.problems import Problem

Blocks = Mapping[str, int]
"""Sizes by name: q, kv and kv_compute of the forward kernel, q_backward, kv_backward, kv_compute_backward, fused."""


class Case(NamedTuple):
    """A function and the abstract arguments to compile it for."""

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    values: Mapping[int, np.ndarray]
    """Values, by index, of the arguments that steer kernels."""

    def example(self) -> list[Array]:
        """Arguments to run with: `values`, open gates (the arrays with one number a head), and zeros."""
        return [
            jnp.asarray(self.values[index])
            if index in self.values
            else jnp.full(of.shape, len(of.shape) == 1, of.dtype)
            for index, of in enumerate(self.arguments)
        ]


class Contestant(NamedTuple):
    """One implementation.

    Attributes:
      name: as in the table.
      package: the package that must be installed.
      case: (problem, blocks) -> the program to compile.
      forward, backward: block sizes to try for either pass, likeliest first.
      note: a remark that a fair comparison needs.
      keep: records the blocks of measurements; None: they go into the record of `tuning`.
    """

    name: str
    package: str
    case: Callable[[Problem, Blocks], Case]
    forward: Callable[[Problem], Iterable[Blocks]]
    backward: Callable[[Problem], Iterable[Blocks]]
    note: str = ""
    keep: Callable[[Sequence[Measurement]], None] | None = None

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def with_gradients(
    attention: Callable[..., Array],
    ids: Sequence[np.ndarray],
    inputs: Sequence[jax.ShapeDtypeStruct],
    out: jax.ShapeDtypeStruct,
    *,
    backward: bool,
) -> Case:
    """The call `attention(*ids, *inputs)` itself, or with the gradients of all `inputs` for a cotangent of `out`."""
    of_ids = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in ids]
    if not backward:
        return Case(attention, (*of_ids, *inputs), dict(enumerate(ids)))

    def gradients(cotangent: Array, *arguments: Array) -> tuple[Array, ...]:
        chosen, rest = arguments[: len(ids)], arguments[len(ids) :]
        result, pull_back = jax.vjp(lambda *rest: attention(*chosen, *rest), *rest)
        return result, *pull_back(cotangent)

    return Case(gradients, (out, *of_ids, *inputs), dict(enumerate(ids, start=1)))


def padded(tokens: int) -> int:
    return -(-tokens // LANES) * LANES


def near(tokens: int, target: int) -> int:
    """The divisor of the padded `tokens` that is a multiple of LANES and nearest to `target` by ratio."""
    parts = padded(tokens) // LANES
    divisors = [part for part in range(1, parts + 1) if parts % part == 0]
    return LANES * min(divisors, key=lambda part: max(part * LANES / target, target / (part * LANES)))
