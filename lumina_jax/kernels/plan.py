"""What is fixed when an attention kernel for TPU is built: sizes, factors and how the work is cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax.experimental import pallas as pl

from lumina_jax.chips import LANES, MIB
from lumina_jax.kernels.blocks import BlockSizes, padded


@dataclass(frozen=True)
class Plan:
    """What is fixed when a kernel is built.

    Attributes:
      batch, length, keys, text: rows, and tokens of queries, of keys and of text in one (padded; 0: no text).
      heads, key_heads, width: of queries, of keys and values, and of a head.
      scale, text_scale: factors of the logits; the second counts only where text has its own queries.
      own_queries: text has its own queries.
      blocks: how the work is cut.
      unit: rows and columns of the chip's matrix units.
      residuals: the forward pass writes what the backward pass needs.
      vmem: bytes the kernel may use.
    """

    batch: int
    length: int
    keys: int
    text: int
    heads: int
    key_heads: int
    width: int
    scale: float
    text_scale: float
    own_queries: bool
    blocks: BlockSizes
    unit: int
    residuals: bool
    vmem: int = 100 * MIB

    @property
    def repeats(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads

    @property
    def steps(self) -> int:
        """Steps in which the keys are streamed; 1: they stay in VMEM."""
        return self.keys // self.blocks.kv

    @property
    def text_tile(self) -> int:
        return self.text if self.text <= 2 * LANES else LANES

    @property
    def lanes(self) -> int:
        """Lanes of the registers that hold a head."""
        return padded(self.width)

    @property
    def logs(self) -> int:
        """How many arrays of logarithms of denominators the forward pass writes."""
        return self.residuals * (1 + bool(self.text))

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows, groups of key heads, query heads that share them, blocks of queries, parts of the keys."""
        blocks = self.blocks
        return self.batch, self.key_heads // blocks.heads, self.repeats, self.length // blocks.q, self.steps

    def each_head(self, work: Callable[[list[Any]], None], *, side_by_side: int, count: int = 0) -> None:
        """Work on all heads of a grid step (or on the first `count`), some at a time."""
        count = count or self.blocks.heads
        size = max(part for part in range(1, count + 1) if count % part == 0 and part <= side_by_side)
        if size == count:
            work(list(range(count)))
            return

        @pl.loop(0, count // size)
        def _(index):
            work([index * size + part for part in range(size)])

    def cost(self, *, products: int, itemsize: int) -> pl.CostEstimate:
        """For `products` matrix products of queries, keys and width, when every token sees every other.

        Arrays go through HBM once, streamed keys once for each block of queries.
        """
        pairs = self.batch * self.heads * self.length * (self.keys + self.text)
        fetches = self.repeats * self.length // self.blocks.q if self.steps > 1 else 1
        values = self.length * self.heads + (self.keys * fetches + self.text) * self.key_heads
        return pl.CostEstimate(
            flops=2 * products * pairs * self.width,
            transcendentals=pairs,
            bytes_accessed=products * self.batch * values * self.width * itemsize,
        )
