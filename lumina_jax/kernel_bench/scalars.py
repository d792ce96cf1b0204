"""The scalar arrays that a program hands to its kernels, computed on this machine.

A kernel that skips blocks, as ours does with packed rows, reads which ones from small integer arrays; they follow from
segment ids alone. Here the program runs without its kernels: everything around them is computed, each call of a kernel
returns zeros, and the scalars of each call are kept.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from lumina_jax.kernel_bench.scalar_unit import follow
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

    in_hbm = mock.patch.object(pltpu, "with_memory_space_constraint", lambda x, _: x)
    with mock.patch.object(pl, "pallas_call", pallas_call), in_hbm:
        yield


def calls_of(schedule: Schedule, calls: Sequence[Call]) -> list[dict[int, np.ndarray]]:
    """The scalars of every call that a schedule may belong to: of its name, with scalars that fit the schedule's.

    Differentiation wraps the name of the call (`jvp_NAME_.1`). An array of one value a head may come from a call with
    fewer heads.
    """
    fitting = []
    for call in calls:
        found = {number: call.scalars[number] for number in schedule.scalars if number < len(call.scalars)}
        fits = all(found[number].nbytes <= size for number, (_, size) in schedule.scalars.items() if number in found)
        if _is_named(schedule.name, call.name) and len(found) == len(schedule.scalars) and fits:
            fitting.append(found)
    return fitting


def scalars_of(schedule: Schedule, calls: Sequence[Call]) -> dict[int, np.ndarray]:
    """The scalars of the first call that a schedule may belong to; none where there is no such call."""
    return next(iter(calls_of(schedule, calls)), {})


def issued_by(schedules: Sequence[Schedule], calls: Sequence[Call], *, repeated: bool) -> list[Float[np.ndarray, " n"]]:
    """How often each schedule's bundles are issued by the whole program.

    Args:
      repeated: a schedule serves all calls that fit it, as where a loop over windows of the keys calls one kernel;
        schedules that fit the same calls share them. Otherwise each serves its first call.
    """
    fitting = [calls_of(schedule, calls) for schedule in schedules]
    found = []
    for schedule, own in zip(schedules, fitting):
        if not repeated or not own:
            found.append(follow(schedule, own[0] if own else {}))
            continue
        sharing = sum(_kernel_of(other, calls) == _kernel_of(schedule, calls) for other in schedules)
        followed: dict[bytes, Float[np.ndarray, " n"]] = {}
        total = np.zeros(len(schedule.bundles))
        for scalars in own:
            key = b"|".join(scalars[number].tobytes() for number in sorted(scalars))
            if key not in followed:
                followed[key] = follow(schedule, scalars)
            total += followed[key] / sharing
        found.append(total)
    return found


def _kernel_of(schedule: Schedule, calls: Sequence[Call]) -> str:
    return next((call.name for call in calls if _is_named(schedule.name, call.name)), "")


def _is_named(instruction: str, kernel: str) -> bool:
    """Whether an instruction calls the kernel, and not one whose name goes on."""
    return re.search(rf"{re.escape(kernel)}(?![a-z0-9]|_[a-z])", instruction) is not None
