"""How the TPU attention kernels cut their work: block sizes, how they are chosen, and whether they fit into VMEM.

In: the sizes of one call and the chip. Out: BlockSizes and the length to pad the tokens to. The choice for a chip,
length and head width comes from `tuned.py`. Where that has no row it comes from a rule: the larger the blocks, the less
of the time goes to filling and draining the matrix units, and blocks must divide the row.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from jax.experimental.pallas import tpu as pltpu

from lumina_jax.chips import CHIPS, LANES, MIB, Chip
from lumina_jax.kernels.flash.tuned import TUNED

ROWS_OF_A_REGISTER = 16
"""Rows of two-byte values that a vector register holds: tiles within a block start at multiples of it."""
RUN_Q, RUN_KV = 288, 9 * LANES
"""Queries and most keys of a piece of a sample where a row holds several."""
RESIDENT = 32768
"""Most keys of a head that stay in VMEM; longer rows are streamed."""
STRAIGHT = {"tpu7x": 1024 * 8192}
"""Most logits of a head in a branch-free piece of program, where it is not USUAL_STRAIGHT: spills need memory."""
USUAL_STRAIGHT = 1536 * 16384
SIDE_BY_SIDE = 8 * 1152 * 1152
"""Most logits of several heads in one such piece: a longer one spills more than it hides."""
STREAMED_SIDE_BY_SIDE = 4
"""Most heads in one such piece where keys are streamed, because each has sums to carry."""
MOST_QUERIES = 4608
"""Most queries of a grid step."""
LEAST_RESIDENT = 2048
"""Fewer keys than this are in VMEM at once only where nothing else fits."""
USABLE = 0.85
"""The share of VMEM that blocks may fill; the compiler needs the rest for what does not fit into registers."""
UNKNOWN = replace(CHIPS["v6e"], vmem=64 * MIB)
"""Assumed where the chip is not known, as it is when a program is lowered ahead of time without a mesh in context."""


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """Numbers of tokens and of heads that are computed at a time.

    Attributes:
      q: queries of a grid step of the forward pass.
      q_compute, kv_compute: queries and keys of one matrix product where a block of queries sees the whole row.
      kv: keys and values in VMEM at once in the forward pass: the whole row, or one part of it.
      tile_q, tile_kv: queries and keys of one product where a block sees a part of the row; a tile of which nothing is
        seen is not computed.
      run_q, run_kv: queries and most keys of a piece of one sample, where samples lie one after the other.
      q_backward, q_compute_backward, kv_backward, kv_compute_backward, tile_q_backward, tile_kv_backward: the same for
        the backward pass.
      heads, heads_backward: key heads of a grid step. Those of the backward pass need not fill whole registers: they
        are moved to registers that each has alone (`regroup.py`).
    """

    q: int
    q_compute: int
    kv: int
    kv_compute: int
    tile_q: int
    tile_kv: int
    run_q: int
    run_kv: int
    q_backward: int
    q_compute_backward: int
    kv_backward: int
    kv_compute_backward: int
    tile_q_backward: int
    tile_kv_backward: int
    heads: int
    heads_backward: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size, of_heads = getattr(self, field.name), field.name.startswith("heads")
            if of_heads and size < 1:
                raise ValueError(f"{field.name}={size} must be at least 1")
            if field.name == "run_q" and (size < ROWS_OF_A_REGISTER or size % ROWS_OF_A_REGISTER):
                raise ValueError(f"run_q={size} must be a positive multiple of {ROWS_OF_A_REGISTER}, where rows start")
            if not of_heads and field.name != "run_q" and (size < LANES or size % LANES):
                raise ValueError(
                    f"{field.name}={size} must be a positive multiple of {LANES}, the lanes of a vector register, "
                    "because blocks of logits are cut along both axes"
                )
        for whole, part in (
            ("q", "q_compute"),
            ("q", "tile_q"),
            ("kv", "kv_compute"),
            ("kv", "tile_kv"),
            ("q_backward", "q_compute_backward"),
            ("q_backward", "tile_q_backward"),
            ("kv_backward", "kv_compute_backward"),
            ("kv_backward", "tile_kv_backward"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} must be a multiple of {part}={getattr(self, part)}, "
                    "because a block is worked on in whole parts"
                )

        if self.run_q > self.q:
            raise ValueError(f"run_q={self.run_q} must be at most q={self.q}, because a piece lies within a block")

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
        if self.kv < length and self.q != self.q_compute:
            raise ValueError(
                f"q={self.q} must be q_compute={self.q_compute} where only kv={self.kv} of {length} keys are in "
                "VMEM, because a block that turns to a running maximum turns as a whole"
            )
        for name in ("heads", "heads_backward"):
            heads = getattr(self, name)
            is_spread = name == "heads_backward"  # to registers of their own, where they fill none
            if key_heads % heads or not (is_spread or heads == key_heads or heads * width % LANES == 0):
                raise ValueError(
                    f"{name}={heads} must divide the {key_heads} key heads and be a multiple of "
                    f"{least_heads(key_heads, width)}, so that heads of {width} values fill whole registers"
                )


@dataclass(frozen=True)
class Sizes:
    """The sizes on which the choice of blocks depends.

    Attributes:
      length, text: tokens of a row and of its text (0: none), before padding.
      heads, key_heads: heads of queries, and of keys and values.
      width: values of a head.
      itemsize: bytes of a value.
    """

    length: int
    text: int
    heads: int
    key_heads: int
    width: int
    itemsize: int = 2

    @property
    def repeats(self) -> int:
        return self.heads // self.key_heads

    def __str__(self) -> str:
        shared = f" ({self.key_heads} of keys)" if self.key_heads != self.heads else ""
        text = f" and {self.text} text tokens" if self.text else ""
        return f"{self.length} tokens{text} with {self.heads} heads of {self.width}{shared}"


def known_chip() -> Chip | None:
    """The chip of the default device, or of the mesh in context; None where neither is a TPU of the table."""
    try:
        version = str(pltpu.get_tpu_info().chip_version)
    except ValueError:
        return None
    return CHIPS.get("tpu7x" if version.startswith("7") else version)


def repeats_together(repeats: int, lanes: int, *, streamed: bool) -> int:
    """Query heads of a key head in one block of queries: as few as end where a register ends, or all.

    `lanes` are those of the key heads of a block. Where keys are streamed, sums of each query head are carried, so that
    one is taken, and the lanes of a block are padded.
    """
    if streamed:
        return 1
    return next(count for count in divisors(repeats) if count == repeats or count * lanes % LANES == 0)


def side_by_side(blocks: BlockSizes, *, streamed: bool) -> int:
    """Heads to compute side by side: products of one head do not hide their latency, those of others do."""
    return min(
        STREAMED_SIDE_BY_SIDE if streamed else blocks.heads, max(1, SIDE_BY_SIDE // (blocks.q_compute * blocks.kv))
    )


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
    if largest_divisor(least, 12) >= 6:
        return LANES * least
    return LANES * min(range(least, least + 4), key=lambda parts: parts * (1 + 0.3 / largest_divisor(parts, 12)))


def choose(sizes: Sizes, chip: Chip) -> BlockSizes:
    """Blocks for a call: from the row of `tuned.py`, else by the rule; as many heads and resident keys as VMEM holds.

    Raises:
      ValueError: even the smallest blocks need more VMEM than the chip has.
    """
    length, wide = padded_length(sizes.length), padded(sizes.width)
    tuned = TUNED.get((chip.name, length, wide), {})
    least = least_heads(sizes.key_heads, sizes.width)
    heads = sorted({least, *(n for n in (1, 2, 4) if n % least == 0 and sizes.key_heads % n == 0)}, reverse=True)
    of_forward, straight = functools.partial(_forward, length, tuned), STRAIGHT.get(chip.name, USUAL_STRAIGHT)
    forward = _first_that_fits(sizes, chip, tuned.get("q_compute"), heads, of_forward, forward_vmem, straight)
    of_backward = functools.partial(_backward, length, tuned, forward)
    few = max(n for n in divisors(sizes.key_heads) if n == 1 or n * sizes.width <= LANES)
    tuned_q = tuned.get("q_compute_backward")
    return _first_that_fits(sizes, chip, tuned_q, [few], of_backward, backward_vmem, whole=[least])


def _first_that_fits(
    sizes: Sizes,
    chip: Chip,
    tuned_q: int | None,
    heads: list[int],
    build: Callable[[int, int, int, bool], BlockSizes],
    need: Callable[[Sizes, BlockSizes], int],
    logits: int | float = math.inf,
    whole: Sequence[int] = (),
) -> BlockSizes:
    """The first blocks that fit into VMEM: all keys resident before many queries in one product, and both before many
    heads in a step. The numbers of heads in `whole` are tried first, but only with all keys resident."""
    length = padded_length(sizes.length)
    counts = [tuned_q // LANES] if tuned_q else []
    queries = sorted({_divisor(length, count) for count in (*(counts or [12]), 6, 3, 1)}, reverse=True)
    windows = [LANES * part for part in reversed(divisors(length // LANES)) if LANES * part <= RESIDENT]
    for enough, of_heads in ((length, whole), (min(length, LEAST_RESIDENT), heads), (0, heads)):
        for q, kv, together, count in itertools.product(queries, windows, (True, False), of_heads):
            blocks = build(q, kv, count, together)
            if kv >= enough and q * kv <= logits and need(sizes, blocks) <= chip.vmem * USABLE:
                return blocks
    raise ValueError(
        f"attention over {sizes} needs {need(sizes, blocks) / MIB:.0f} MiB of VMEM with the smallest blocks, but the "
        f"chip has {chip.vmem / MIB:.0f}, of which blocks may fill {USABLE:.0%}: the text and {heads[-1]} heads, which "
        "fill whole registers together, must be in it at once; use implementation='xla', fewer text tokens, or heads "
        "of which fewer fill registers"
    )


def _forward(length: int, tuned: Mapping[str, int], q: int, kv: int, heads: int, together: bool) -> BlockSizes:
    """With a backward pass in the same blocks, which `_backward` replaces."""
    block, tile = _block(length, q, together and kv == length)
    of_window = _of_window(tuned, kv)
    return BlockSizes(
        q=block,
        q_compute=q,
        kv=kv,
        kv_compute=_divisor(kv, tuned.get("kv_compute", 12 * LANES) // LANES),
        tile_q=tile,
        tile_kv=of_window["tile_kv_backward"],
        run_q=min(tuned.get("run_q", RUN_Q), block),
        run_kv=tuned.get("run_kv", RUN_KV),
        q_backward=block,
        q_compute_backward=q,
        tile_q_backward=tile,
        heads=heads,
        heads_backward=heads,
        **of_window,
    )


def _backward(
    length: int, tuned: Mapping[str, int], forward: BlockSizes, q: int, kv: int, heads: int, together: bool
) -> BlockSizes:
    block, tile = _block(length, q, together)
    sizes = {"q_backward": block, "q_compute_backward": q, "tile_q_backward": tile, "heads_backward": heads}
    return replace(forward, **sizes, **_of_window(tuned, kv))


def _block(length: int, q: int, together: bool) -> tuple[int, int]:
    """Queries of a grid step, which whole products and whole tiles divide where possible; and queries of a tile."""
    tile = LANES * _tile(length // LANES)
    block = math.lcm(q, tile)
    return (block, tile) if together and block <= MOST_QUERIES else (q, math.gcd(q, tile))


def _of_window(tuned: Mapping[str, int], kv: int) -> dict[str, int]:
    parts = kv // LANES
    likely = max(largest_divisor(parts, 4), largest_divisor(parts, 12) if largest_divisor(parts, 4) == 1 else 1)
    compute = _divisor(kv, tuned.get("kv_compute_backward", likely * LANES) // LANES)
    return {"kv_backward": kv, "kv_compute_backward": compute, "tile_kv_backward": LANES * _tile(parts)}


def _divisor(tokens: int, most: int) -> int:
    """The largest divisor of at most `most` registers."""
    return LANES * largest_divisor(tokens // LANES, most)


def _tile(parts: int) -> int:
    """Registers of a tile of a packed row: small enough to skip hidden keys, large enough for a product."""
    return next(part for part in (3, 2, 4, 5, 1) if parts % part == 0)


def largest_divisor(parts: int, most: int) -> int:
    return max(part for part in divisors(parts) if part <= max(most, 1))


def forward_vmem(sizes: Sizes, blocks: BlockSizes) -> int:
    """Bytes of vector memory of a grid step: two copies of each block, because transfers overlap, and intermediates."""
    heads, wide, text = blocks.heads, -(-sizes.width // LANES) * LANES, padded(sizes.text) if sizes.text else 0
    lanes = padded(heads * sizes.width)
    repeats = repeats_together(sizes.repeats, heads * sizes.width, streamed=blocks.kv < padded_length(sizes.length))
    of_queries = padded(repeats * heads * sizes.width) * (3 if text else 2) * blocks.q
    moved = 2 * sizes.itemsize * (of_queries + lanes * 2 * (blocks.kv + text))
    together = min(heads, side_by_side(blocks, streamed=True))
    sums = 4 * blocks.q * (heads * (2 * wide + 3 * LANES) + (together - 1) * (wide + LANES))
    carried = 0 if blocks.kv >= sizes.length else sums
    logs = 2 * 4 * blocks.q * LANES
    return moved + carried + logs + 4 * blocks.q_compute * (2 * blocks.kv_compute + 4 * LANES)


def backward_vmem(sizes: Sizes, blocks: BlockSizes) -> int:
    """The same for the backward pass, whose text has a separate call where keys are taken in windows."""
    heads, wide, text = blocks.heads_backward, padded(sizes.width), padded(sizes.text) if sizes.text else 0
    is_whole = blocks.kv_backward == padded_length(sizes.length)
    rows = blocks.kv_backward + text if is_whole else max(blocks.kv_backward, text)
    lanes, repeats = padded(heads * sizes.width), 1
    if heads == blocks.heads:
        streamed = blocks.kv < padded_length(sizes.length)
        repeats = repeats_together(sizes.repeats, heads * sizes.width, streamed=streamed)
    of_queries = padded(repeats * heads * sizes.width) * (5 * sizes.itemsize + 4) * blocks.q_backward
    moved = 2 * (of_queries + lanes * sizes.itemsize * 4 * rows)
    sums = 4 * rows * (2 * heads * wide + LANES)
    return moved + sums + 4 * 4 * blocks.q_compute_backward * blocks.kv_compute_backward
