"""How the TPU attention kernels cut their work: block sizes, who chooses them, and whether they fit into VMEM.

In: the sizes of one call and the chip. Out: BlockSizes and the length to pad the tokens to. The choice for a chip,
length and head width comes from `tuned.py`; where that has no row, from a rule: the larger the blocks, the less of the
time goes to filling and draining the matrix units, and blocks must divide the row.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from jax.experimental.pallas import tpu as pltpu

from lumina_jax.kernels.tuned import TUNED

LANES = 128
"""Width of a vector register: blocks along tokens are multiples of it."""
MEBIBYTE = 2**20
VMEM = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}
"""Vector memory of a core, MiB."""
RESIDENT = 16384
"""Most keys of a head that stay in VMEM; longer rows are streamed."""
LEAST_RESIDENT = 1024
"""Fewer keys than this are in VMEM at once only where nothing else fits."""
USABLE = 0.85
"""The share of VMEM that blocks may fill; the compiler needs the rest for what does not fit into registers."""
UNKNOWN_VMEM = 64
"""Assumed where the chip is not known: lowering ahead of time without a mesh in context."""


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """Tokens, and heads, that are worked on at a time.

    Attributes:
      q: queries of a grid step of the forward pass.
      kv: keys and values in VMEM at once in the forward pass; the whole row, or streamed in steps of this many.
      kv_compute: keys of one matrix product where a block of queries sees the whole row.
      tile_q, tile_kv: the same where it sees a part; a tile that nobody sees is not computed.
      q_backward, kv_backward, kv_compute_backward: as q, kv and kv_compute, in the backward pass.
      heads, heads_backward: key heads of a grid step.
    """

    q: int
    kv: int
    kv_compute: int
    tile_q: int
    tile_kv: int
    q_backward: int
    kv_backward: int
    kv_compute_backward: int
    heads: int
    heads_backward: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size, of_heads = getattr(self, field.name), field.name.startswith("heads")
            if of_heads and size < 1:
                raise ValueError(f"{field.name}={size} must be at least 1")
            if not of_heads and (size < LANES or size % LANES):
                raise ValueError(
                    f"{field.name}={size} must be a positive multiple of {LANES}, the lanes of a vector register, "
                    "because blocks of logits are cut along both axes"
                )
        for whole, part in (
            ("q", "tile_q"),
            ("kv", "kv_compute"),
            ("kv", "tile_kv"),
            ("q_backward", "tile_q"),
            ("kv_backward", "kv_compute_backward"),
            ("kv_backward", "tile_kv"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} must be a multiple of {part}={getattr(self, part)}, "
                    "because a block is worked on in whole parts"
                )

    def check(self, length: int, key_heads: int, width: int) -> None:
        """Refuse blocks that do not divide a row of `length` tokens, or heads that do not fill registers.

        Raises:
          ValueError: what does not divide what, and what would.
        """
        for name in ("q", "kv", "q_backward", "kv_backward"):
            if length % getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} must divide the {length} tokens of a padded row; choose from "
                    f"{[LANES * part for part in divisors(length // LANES)]}"
                )
        for name in ("heads", "heads_backward"):
            heads = getattr(self, name)
            if key_heads % heads or (heads != key_heads and heads * width % LANES):
                raise ValueError(
                    f"{name}={heads} must divide the {key_heads} key heads and be a multiple of "
                    f"{least_heads(key_heads, width)}, so that heads of {width} values fill whole registers"
                )


@dataclass(frozen=True)
class Sizes:
    """What the choice of blocks depends on.

    Attributes:
      length, text: tokens of a row and of its text (0: none), before padding.
      heads, key_heads, width: of queries, of keys and values, and of a head.
      itemsize: bytes of a value.
    """

    length: int
    text: int
    heads: int
    key_heads: int
    width: int
    itemsize: int = 2


def chip() -> str | None:
    """The generation of the default device, or of the mesh in context; None where neither is a TPU."""
    try:
        version = str(pltpu.get_tpu_info().chip_version)
    except ValueError:
        return None
    return "tpu7x" if version.startswith("7") else version


def divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def least_heads(key_heads: int, width: int) -> int:
    """The fewest heads whose values, side by side, fill whole registers; all of them where none do."""
    fewest = math.lcm(width, LANES) // width
    return fewest if key_heads % fewest == 0 else key_heads


def padded(tokens: int) -> int:
    return -(-tokens // LANES) * LANES


def padded_length(tokens: int) -> int:
    """The length to pad a row to: a multiple of 128 with a divisor that makes a good block of queries.

    A block of p x 128 queries loses about 0.3 / p of the time to filling and draining the matrix units, so a few more
    tokens are worth it where the exact multiple has only small divisors (a prime number of registers).
    """
    least = padded(tokens) // LANES
    return LANES * min(range(least, least + 4), key=lambda parts: parts * (1 + 0.3 / _largest_divisor(parts, 12)))


def choose(sizes: Sizes, of_chip: str | None) -> BlockSizes:
    """Blocks for a call: the row of `tuned.py`, else the rule; heads and resident keys as VMEM allows.

    Raises:
      ValueError: even the smallest resident keys need more VMEM than the chip has.
    """
    length = padded_length(sizes.length)
    capacity = VMEM.get(of_chip or "", UNKNOWN_VMEM) * MEBIBYTE
    parts = length // LANES
    tuned = TUNED.get((of_chip or "v6e", length, -(-sizes.width // LANES) * LANES), {})
    least = least_heads(sizes.key_heads, sizes.width)
    most = next(count for count in (4, 2, 1) if sizes.key_heads % count == 0)
    head_counts = sorted({least, *(count for count in (1, 2, 4) if count % least == 0 and count <= most)}, reverse=True)

    def blocks(q: int, kv: int, heads: int, forward: BlockSizes | None = None) -> BlockSizes:
        """For the forward pass; or, given its blocks, with those of the backward pass in their place."""
        ahead = (forward.q, forward.kv, forward.heads) if forward else (q, kv, heads)
        within = functools.partial(_divisor, tuned)
        return BlockSizes(
            q=ahead[0],
            kv=ahead[1],
            kv_compute=within("kv_compute", 12, ahead[1]),
            tile_q=within("tile_q", 4, math.gcd(ahead[0], q)),
            tile_kv=within("tile_kv", 4, math.gcd(ahead[1], kv)),
            q_backward=q,
            kv_backward=kv,
            kv_compute_backward=within("kv_compute_backward", 4, kv),
            heads=ahead[2],
            heads_backward=heads,
        )

    def largest(name: str, forward: BlockSizes | None, need: Callable[[BlockSizes], int]) -> BlockSizes:
        """The first that fits: all keys resident before many queries at once, and both before many heads."""
        sizes_of_q = sorted({_divisor(tuned, name, count, length) for count in (12, 6, 3, 1)}, reverse=True)
        windows = [LANES * part for part in reversed(divisors(parts)) if LANES * part <= RESIDENT]
        for enough in (min(length, LEAST_RESIDENT), 0):
            for q, kv, heads in itertools.product(sizes_of_q, windows, [least] if forward else head_counts):
                if kv >= enough and need(found := blocks(q, kv, heads, forward)) <= capacity * USABLE:
                    return found
        raise ValueError(
            f"attention over {sizes} needs {need(found) / MEBIBYTE:.0f} MiB of VMEM with the smallest blocks, but the "
            f"chip has {capacity / MEBIBYTE:.0f}; use implementation='xla', or heads of which fewer fill registers"
        )

    ahead = largest("q", None, functools.partial(forward_vmem, sizes))
    return largest("q_backward", ahead, functools.partial(backward_vmem, sizes))


def _divisor(tuned: Mapping[str, int], name: str, most: int, of: int) -> int:
    """The largest divisor of `of` tokens of at most the tuned size, or `most` registers."""
    return LANES * _largest_divisor(of // LANES, tuned[name] // LANES if name in tuned else most)


def _largest_divisor(parts: int, most: int) -> int:
    return max(part for part in divisors(parts) if part <= max(most, 1))


def forward_vmem(sizes: Sizes, blocks: BlockSizes) -> int:
    """Bytes of vector memory of a grid step: blocks twice, because transfers overlap, and what is computed on."""
    heads, wide, text = blocks.heads, -(-sizes.width // LANES) * LANES, padded(sizes.text) if sizes.text else 0
    lanes = padded(heads * sizes.width)
    moved = 2 * sizes.itemsize * lanes * (2 * blocks.q + 2 * blocks.kv + 2 * text + (blocks.q if text else 0))
    gathered = 0 if sizes.width % LANES == 0 else sizes.itemsize * heads * wide * 2 * (blocks.q + blocks.kv + text)
    carried = 0 if blocks.kv >= sizes.length else 4 * heads * blocks.q * (wide + 2 * LANES)
    return moved + gathered + carried + 4 * blocks.q * (2 * blocks.kv_compute + 4 * LANES)


def backward_vmem(sizes: Sizes, blocks: BlockSizes) -> int:
    """The same of the backward pass."""
    heads, wide, text = blocks.heads_backward, padded(sizes.width), padded(sizes.text) if sizes.text else 0
    lanes, rows = padded(heads * sizes.width), blocks.kv_backward + text
    moved = 2 * lanes * (sizes.itemsize * (4 * rows + 5 * blocks.q_backward) + 4 * blocks.q_backward)
    gathered = 0 if sizes.width % LANES == 0 else sizes.itemsize * heads * wide * (2 * rows + 5 * blocks.q_backward)
    sums = 4 * rows * (2 * heads * wide + LANES)
    return moved + gathered + sums + 4 * 4 * blocks.q_backward * blocks.kv_compute_backward
