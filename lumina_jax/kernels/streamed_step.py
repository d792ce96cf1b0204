"""What a grid step of the forward kernel does where keys are streamed, a part of them in each step.

In: a `Step` with `sums`, which are carried from part to part, from the first that the block of queries needs to the
last. Out: nothing; the step's output is written after the last part. A block of queries of one segment stays without
shift until a row leaves the safe range; from that part on it has a running maximum, as blocks of several segments have
from the first.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from lumina_jax.kernels.forward_step import Step
from lumina_jax.kernels.softmax_tiles import LOWEST, Carry, empty, within_safety


def start(step: Step) -> None:
    """Before the first part nothing is summed."""
    values, weights, shifts = step.sums
    for sums in (values, weights):
        sums[0] = jnp.zeros(sums.shape[1:], sums.dtype)
    several = step.visits.single[step.row] <= 0
    for head in range(step.plan.blocks.heads):
        step.failed[head] = jnp.where(several, 1, 0)

    @pl.when(several)
    def _() -> None:
        shifts[...] = jnp.full_like(shifts, LOWEST)


def whole(step: Step, heads: list[Any]) -> None:
    """All rows of some heads against a part of the keys, which are of one segment or hidden.

    Sums are written before it is known whether they are safe, so that this overlaps the products; those before this
    part are still there for the running maximum.
    """
    (values, weights, shifts), (before, after) = step.sums, step.sides
    failed = step.failed

    @pl.when(failed[heads[0]] == 0)
    def _() -> None:
        rows = pl.ds(0, step.plan.blocks.q)
        zeros = empty(step.plan.blocks.q, step.plan.lanes)
        carries = [step.without_shift(head, rows, zeros, of_text=False) for head in heads]
        for head, carry in zip(heads, carries):
            values[after, head] = values[before, head] + carry.values
            weights[after, head] = weights[before, head] + carry.weights

        @pl.when(jnp.logical_not(within_safety([weights[after, head] for head in heads])))
        def _() -> None:
            totals = [jnp.sum(weights[after, head], axis=1, keepdims=True) for head in heads]

            @pl.when(jnp.logical_not(within_safety(totals)) & step.sees(step.tokens))
            def _() -> None:
                for head in heads:
                    failed[head] = 1
                    summed = jnp.sum(weights[before, head], axis=1, keepdims=True) > 0
                    shifts[head] = jnp.broadcast_to(jnp.where(summed, 0.0, LOWEST), shifts.shape[1:])

    @pl.when(failed[heads[0]] == 1)
    def _() -> None:
        step.tiles(heads)


def finish(step: Step, heads: list[Any]) -> None:
    """After the last part: divide, add the text, and write."""
    (values, weights, shifts), (_, after) = step.sums, step.sides

    def write(head: Any, shifted: bool) -> None:
        def carry(rows: Any) -> Carry:
            shift = shifts[head, rows, :][:, :1] if shifted else None
            return Carry(values[after, head, rows, :], weights[after, head, rows, :], shift)

        def tile(index: Any) -> None:
            step.finish([head], index, [carry(step.rows_of(index))])

        if step.text is None:
            rows = pl.ds(0, step.plan.blocks.q)
            step.write(head, rows, carry(rows), None)
        else:
            step.each_tile(tile)

    for head in heads:
        pl.when(step.failed[head] == 0)(functools.partial(write, head, shifted=False))
        pl.when(step.failed[head] == 1)(functools.partial(write, head, shifted=True))
    step.hide_padding(heads, pl.ds(0, step.plan.blocks.q))
