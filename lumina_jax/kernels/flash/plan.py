"""What is fixed when the attention kernels for a call are built: sizes, factors of the logits, and how work is cut."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES, MIB, Chip
from lumina_jax.kernels.flash.blocks import (
    UNKNOWN,
    BlockSizes,
    Sizes,
    backward_vmem,
    choose,
    forward_vmem,
    known_chip,
    largest_divisor,
    padded,
    padded_length,
    repeats_together,
)
from lumina_jax.kernels.flash.heads import Scalar

Interpret = bool | pltpu.InterpretParams
"""Whether to run a kernel on any device, slowly: True shows its values, parameters also races."""
Scalars, Inputs, Outputs = TypeVar("Scalars"), TypeVar("Inputs"), TypeVar("Outputs")
VMEM_LIMIT = 0.95
"""The largest share of a core's vector memory that a kernel asks for; the compiler keeps the rest."""
VMEM_MARGIN, VMEM_SPARE = 1.25, 16 * MIB
"""A kernel asks for its blocks this many times, and for these bytes: room for values that do not fit into registers."""
VMEM_UNIT = 2 * MIB
"""A kernel asks for whole units: beside other numbers, libtpu 0.0.42 fills the rest with more arrays than fit."""


class PaddedText(NamedTuple):
    """Text as the kernels take it; `gate` is after its tanh, `queries` are None where those of the tokens serve."""

    gate: Float[Array, " h"]
    keys: Float[Array, "b t kd"]
    values: Float[Array, "b t kd"]
    segment_ids: Int[Array, "b t"]
    queries: Float[Array, "b l hd"] | None


@dataclass(frozen=True)
class KernelPlan:
    """What is fixed when a kernel is built.

    Attributes:
      batch: rows.
      rows: tokens of a row in HBM: fewer than `length` where the last block ends beyond the row.
      length, keys, text: tokens of queries, of keys and of text in a row, padded; `text` is 0 where there is none.
      heads, key_heads: of queries, and of keys and values.
      width: values of a head.
      scale: factor of the logits.
      text_scale: factor of the text's logits where it has queries of its own.
      text_has_queries: the text is seen by queries of its own.
      blocks: how the work is cut.
      unit: rows and columns of the chip's matrix units.
      residuals: the forward pass writes what the backward pass needs.
      vmem, vmem_backward: bytes of vector memory that the forward and the backward kernel ask for. What they do not ask
        for holds arrays of the program around them.
    """

    batch: int
    rows: int
    length: int
    keys: int
    text: int
    heads: int
    key_heads: int
    width: int
    scale: float
    text_scale: float
    text_has_queries: bool
    blocks: BlockSizes
    unit: int
    residuals: bool
    vmem: int
    vmem_backward: int

    @property
    def repeats(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads

    @property
    def query_heads(self) -> int:
        """Query heads of a grid step of the forward pass."""
        lanes = self.blocks.heads * self.width
        return self.blocks.heads * repeats_together(self.repeats, lanes, streamed=self.parts > 1)

    @property
    def query_heads_backward(self) -> int:
        """Query heads of a grid step of the backward pass."""
        few = self.blocks.heads_backward
        return self.query_heads if few == self.blocks.heads else few

    @property
    def parts(self) -> int:
        """Parts in which the forward pass streams the keys; 1: all keys stay in VMEM."""
        return self.keys // self.blocks.kv

    @property
    def text_tile(self) -> int:
        return self.text if self.text <= 2 * LANES else LANES

    @property
    def lanes(self) -> int:
        """Lanes of the registers that hold a head."""
        return padded(self.width)

    def each_head(self, work: Callable[[list[Scalar]], None], *, side_by_side: int, count: int | None = None) -> None:
        """Call `work` with all query heads of a grid step (or `count` of them), at most `side_by_side` at a time."""
        count = count or self.query_heads
        size = largest_divisor(count, side_by_side)
        if size == count:
            work(list(range(count)))
            return

        @pl.loop(0, count // size)
        def _(index: Int[Array, ""]) -> None:
            work([index * size + part for part in range(size)])

    def cost(self, *, products: int, itemsize: int) -> pl.CostEstimate:
        """The cost of `products` matrix products of queries, keys and width, when every token sees every other.

        Arrays go through HBM once, streamed keys once for each block of queries.
        """
        pairs = self.batch * self.heads * self.length * (self.keys + self.text)
        fetches = self.repeats * self.length // self.blocks.q if self.parts > 1 else 1
        values = self.length * self.heads + (self.keys * fetches + self.text) * self.key_heads
        return pl.CostEstimate(
            flops=2 * products * pairs * self.width,
            transcendentals=pairs,
            bytes_accessed=products * self.batch * values * self.width * itemsize,
        )


def sizes_of(q: Float[Array, "b l h d"], k: Float[Array, "b l k d"], text_tokens: int) -> Sizes:
    """What the choice of blocks for these arrays depends on."""
    return Sizes(q.shape[1], text_tokens, q.shape[2], k.shape[2], q.shape[3], q.dtype.itemsize)


def rows_in_hbm(sizes: Sizes, blocks: BlockSizes) -> int:
    """Tokens of a row in HBM: more than it has only where a block would lie beyond it, or where keys are taken in parts
    or windows."""
    length = padded_length(sizes.length)
    is_whole = blocks.kv == blocks.kv_backward == length
    fits = length - sizes.length < min(blocks.q, blocks.q_backward)
    return sizes.length if is_whole and fits else length


def asked_vmem(needed: int, chip: Chip) -> int:
    """Bytes of vector memory to ask for, for a kernel whose blocks need this many."""
    return min(int(VMEM_LIMIT * chip.vmem), int(VMEM_MARGIN * needed) + VMEM_SPARE) // VMEM_UNIT * VMEM_UNIT


def from_hbm(
    call: Callable[[Scalars, Inputs], Outputs], *, interpret: Interpret
) -> Callable[[Scalars, Inputs], Outputs]:
    """The call of a kernel with its tokens [b l hd] in HBM, from which blocks are fetched while others are computed.

    XLA would move tokens that fit into the vector memory that the kernel does not ask for. From there a kernel copies
    its blocks with the instructions that compute: up to 9 % of a backward pass over 1152 tokens on v6e.
    """
    if interpret:
        return call
    return jax.jit(lambda scalars, inputs: call(scalars, jax.tree.map(_in_hbm, inputs)))  # only compiled code can ask


@jax.custom_batching.custom_vmap
def _in_hbm(x: Array) -> Array:
    is_tokens = x.ndim == 3 and jnp.issubdtype(x.dtype, jnp.floating)
    return pltpu.with_memory_space_constraint(x, pltpu.HBM) if is_tokens else x


@_in_hbm.def_vmap
def _in_hbm_together(size: int, is_batched: list[bool], x: Array) -> tuple[Array, bool]:
    """Under vmap XLA chooses the memory."""
    return x, is_batched[0]


def kernel_plan(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l k d"],
    *,
    scale: float,
    text_tokens: int = 0,
    text_has_queries: bool = False,
    residuals: bool = False,
    blocks: BlockSizes | None = None,
) -> KernelPlan:
    """The plan of a call with these arrays.

    Args:
      blocks: how the work is cut; None: the best known for the chip.

    Raises:
      ValueError: blocks that do not divide the padded row, or that do not fit into the chip's vector memory.
    """
    sizes, chip = sizes_of(q, k, text_tokens), known_chip() or UNKNOWN
    length = padded_length(sizes.length)
    blocks = blocks or choose(sizes, chip)
    blocks.check(length, sizes.key_heads, sizes.width)
    return KernelPlan(
        batch=q.shape[0],
        rows=rows_in_hbm(sizes, blocks),
        length=length,
        keys=length,
        text=padded(text_tokens),
        heads=sizes.heads,
        key_heads=sizes.key_heads,
        width=sizes.width,
        scale=scale,
        text_scale=1 / math.sqrt(sizes.width),
        text_has_queries=text_has_queries,
        blocks=blocks,
        unit=chip.matrix_unit,
        residuals=residuals,
        vmem=asked_vmem(forward_vmem(sizes, blocks), chip),
        vmem_backward=asked_vmem(backward_vmem(sizes, blocks), chip),
    )
