"""The scalar arrays that a program hands to its kernels, computed on this machine.

A kernel that skips blocks, as ours does with packed rows, reads which ones from small integer arrays; they follow from
segment ids alone. Here the program runs without its kernels: everything around them is computed, each call of a kernel
returns zeros, and the scalars of each call are kept.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from lumina_jax.kernel_bench.schedule import Schedule


class Call(NamedTuple):
    """A kernel call and its scalar operands, which come first."""

    name: str
    scalars: tuple[np.ndarray, ...]


def kernel_calls(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Call]:
    """The kernel calls of `function(*arguments)`, in order."""
    calls: list[Call] = []
    with _recorded(calls), jax.disable_jit():
        function(*arguments)
    return calls


@contextlib.contextmanager
def _recorded(calls: list[Call]) -> Iterator[None]:
    def pallas_call(kernel: Any, out_shape: Any = None, *, grid_spec: Any = None, name: str = "", **_: Any) -> Any:
        count = getattr(grid_spec, "num_scalar_prefetch", 0)

        def call(*operands: Any) -> Any:
            calls.append(Call(name, tuple(map(np.asarray, jax.tree.leaves(operands[:count])))))
            return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), out_shape)

        return call

    with mock.patch.object(pl, "pallas_call", pallas_call):
        yield


def scalars_of(schedule: Schedule, calls: Sequence[Call]) -> dict[int, np.ndarray]:
    """The scalars of the call that a schedule belongs to: the first call of its name whose scalars fit the schedule's.

    Differentiation wraps the name of the call (`jvp_NAME_.1`). An array of one value a head may come from a call with
    fewer heads.
    """
    for call in calls:
        found = {number: call.scalars[number] for number in schedule.scalars if number < len(call.scalars)}
        fits = all(found[number].nbytes <= size for number, (_, size) in schedule.scalars.items() if number in found)
        if call.name in schedule.name and len(found) == len(schedule.scalars) and fits:
            return found
    return {}
