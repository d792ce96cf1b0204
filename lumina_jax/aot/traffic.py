"""What a compiled program does in one call: collectives, bytes moved through HBM, products, and cycles.

In: a `Module` of `aot/hlo.py`; all of it is per device. Out: counts in which the trip counts of loops are included.

Collectives hide in two kinds of fusions. A fusion whose computation is named all-reduce-scatter holds an all-reduce
and keeps one shard of it: it is a reduce-scatter. An asynchronous collective appears in the fusion that starts it,
again in each matrix product that it overlaps, and in the fusion that ends it: only the start counts.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.aot.hlo import HBM, STARTS_OF_SEQUENCES, ArrayShape, Computation, Instruction, Module
from lumina_jax.kernels import feed_forward, projections

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "async-update"),
    *STARTS_OF_SEQUENCES,
}
"""Instructions that move no bytes."""
WHOLE = 0.99
"""A kernel that moves this share of its arrays moves all of them; the rest are scalars."""
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls that move none."""


class Collective(NamedTuple):
    """One collective instruction."""

    kind: str
    operand_bytes: float
    """Of one device, each time."""
    dtype: str
    groups: tuple[tuple[int, ...], ...]
    """Devices that take part together; of a permute (source, target) each. None listed: all devices, in one group."""
    times: int
    """Runs in a step."""

    def size(self, devices: int) -> int:
        return len(self.groups[0]) if self.groups else devices

    def sent_bytes(self, devices: int) -> float:
        """Bytes that each device has to send in one run, by the best algorithm on a ring."""
        n = self.size(devices)
        share = {
            "all-gather": n - 1,
            "reduce-scatter": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "collective-permute": 1,
        }
        return self.operand_bytes * share[self.kind]


class Work(NamedTuple):
    """Arithmetic and memory traffic of a step."""

    product_flops: float
    """Operations of matrix products without batch dimensions."""
    batched_flops: float
    """Operations of batched matrix products: attention that is not a kernel."""
    kernel_flops: float
    """Operations of attention kernels, by their CostEstimate, for samples of equal length in a row."""
    silent_kernels: int
    """Pallas kernels without a CostEstimate."""
    hbm_bytes: float
    cycles: float
    """The compiler's estimates for its fusions; it has none for kernels and collectives."""
    unknown_loops: int
    """Loops whose trip count is decided while they run: those of a sampler over its steps, and of adaptive solvers."""
    token_product_flops: float = 0.0
    """Operations of kernels that multiply tokens with matrices, by their CostEstimate."""


def collectives(module: Module, assumed_trips: Sequence[int] = ()) -> list[Collective]:
    """Every collective of the program, with how often it runs; `assumed_trips` as in `Module.runs`."""
    found = []
    for computation, one, times in module.executed(assumed_trips):
        collective = collective_of(module, computation, one, times)
        if collective is not None:
            found.append(collective)
    return found


def collective_of(module: Module, computation: Computation, one: Instruction, times: int = 1) -> Collective | None:
    """The collective that an instruction runs or starts; None where it does neither."""
    fused = module.fused(one)
    if fused is None:
        kind = one.opcode.removesuffix("-start")
        return _collective(kind, one, computation, times) if kind in COLLECTIVES else None
    inner = next((part for part in fused.instructions.values() if part.opcode in COLLECTIVES), None)
    if inner is None:
        return None
    if "all-reduce-scatter" in fused.name:
        return _collective("reduce-scatter", inner, fused, times, outer=(one, computation))
    return _collective(inner.opcode, inner, fused, times) if "AsyncCollectiveStart" in fused.root.attributes else None


def work(module: Module, assumed_trips: Sequence[int] = (), samples: int = 1) -> Work:
    """Products, kernels, bytes through HBM and the compiler's cycles; `assumed_trips` as in `Module.runs`.

    `samples` of a row: a kernel's CostEstimate cannot know of them and says what one sample would cost that fills the
    row, but what they cannot see of each other is not computed.
    """
    flops = {"product": 0.0, "batched": 0.0, "kernel": 0.0, "token product": 0.0}
    silent, moved, cycles = 0, 0.0, 0
    for computation, one, times in module.executed(assumed_trips):
        moved += times * hbm_bytes(module, computation, one, samples)
        cycles += times * (noted_number(one, "estimated_cycles") or 0)
        for kind, count in products(module, computation, one):
            flops[kind] += times * count
        if "tpu_custom_call" in one.attributes:
            estimate = noted_number(one, "flops")
            kind = "kernel" if is_of_attention(one) else "token product"
            flops[kind] += times * float(estimate or 0) / samples_seen(one, samples)
            silent += estimate is None
    unknown = sum(loop.trips is None for loop in module.loops())
    product, batched, kernel, token_product_flops = flops.values()
    return Work(product, batched, kernel, silent, moved, cycles, unknown, token_product_flops)


def hbm_bytes(module: Module, computation: Computation, one: Instruction, samples: int = 1) -> float:
    """Bytes that one run of an instruction reads from and writes to HBM: every operand and result that lies there,
    once; of one that is only sliced or overwritten, the slice. `samples` as in `work`."""
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0.0
    fused = module.fused(one)
    is_free = any(f'"{target}"' in one.attributes for target in FREE_CALLS)
    if is_free or (fused is not None and "AsyncCollectiveDone" in fused.root.attributes):
        return 0.0
    if fused is not None:
        parameters = [part for part in fused.instructions.values() if part.opcode == "parameter"]
        return sum(_read(module, fused, part.name) for part in parameters) + _written(module, fused, fused.root)
    operands = [computation.instructions[name] for name in one.operands]
    if one.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1])
    if one.opcode == "slice-start":  # its result: what is sliced, the slice, and a semaphore
        source, target = one.shapes[0], one.shapes[1]
        return (spanned_bytes(one, source) if source.space == HBM else 0.0) + (target.space == HBM) * target.bytes
    results = one.shapes[:1] if one.opcode.endswith("-start") else one.shapes
    written = sum(shape.bytes for shape in results if shape.space == HBM)
    if one.opcode == "slice":
        return written + min(_in_hbm(operands[0]), spanned_bytes(one, operands[0].shapes[0]))
    if one.opcode in ("dynamic-slice", "gather"):
        return written + min(_in_hbm(operands[0]), sum(shape.bytes for shape in results))
    moved = written + sum(map(_in_hbm, operands))
    noted = noted_number(one, "bytes_accessed") if "tpu_custom_call" in one.attributes else None
    if noted is None:
        return moved
    if not noted_number(one, "flops"):
        return min(moved, float(noted))
    return kernel_bytes(float(noted), moved, samples) if is_of_attention(one) else float(noted)


def is_of_attention(kernel: Instruction) -> bool:
    """Whether a kernel computes attention, and not products of tokens with matrices."""
    return not any(name in kernel.name for name in (feed_forward.NAME, projections.NAME))


def samples_seen(kernel: Instruction, samples: int) -> int:
    """The `samples` of a row by which the FLOPs of a kernel are divided: tokens of others do not see each other."""
    return samples if is_of_attention(kernel) else 1


def kernel_bytes(noted: float, arrays: float, samples: int) -> float:
    """Bytes that a kernel moves if a row holds `samples` of equal length, from those of one sample that fills the row.

    Args:
      noted: the CostEstimate of the kernel.
      arrays: bytes of its operands and results. What it moves beyond them it fetches again, once for each block of
        queries that sees it, of which each sample has its share. Where it moves clearly less, it works on one window
        of the keys, and reads only the queries that see the window.
    """
    if noted > arrays:
        return arrays + (noted - arrays) / samples
    return noted if noted > WHOLE * arrays else noted / samples


def spanned_bytes(one: Instruction, source: ArrayShape) -> float:
    """Bytes of `source` between the first and the last element that a slice takes of it, along every axis."""
    limits = re.search(r"slice=\{([^}]*)\}", one.attributes)
    taken = [range(*map(int, axis.split(":"))) for axis in re.findall(r"\[([^\]]*)\]", limits[1])] if limits else []
    return math.prod(axis[-1] - axis[0] + 1 for axis in taken) * source.bytes / max(source.elements, 1)


def _collective(
    kind: str,
    one: Instruction,
    computation: Computation,
    times: int,
    outer: tuple[Instruction, Computation] | None = None,
) -> Collective:
    """Sizes are those of the operands; of a fused reduce-scatter those of the fusion, which may pad them inside."""
    user, within = outer or (one, computation)
    operands = [shape for name in user.operands for shape in within.instructions[name].shapes]
    groups = _pairs(one.attributes) if kind == "collective-permute" else _groups(one.attributes)
    return Collective(kind, sum(shape.bytes for shape in operands), operands[0].dtype, groups, times)


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """replica_groups, written out {{0,1},{2,3}} or as a reshaped range [2,2]<=[4]T(0)."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return tuple(tuple(int(one) for one in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    ranged = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if not ranged:
        return ()
    shape, extent, order = (tuple(int(one) for one in part.split(",")) if part else None for part in ranged.groups())
    assert shape is not None
    assert extent is not None
    numbers = np.arange(np.prod(extent)).reshape(extent).transpose(order).reshape(shape)
    return tuple(tuple(int(one) for one in group) for group in numbers)


def _pairs(attributes: str) -> tuple[tuple[int, ...], ...]:
    listed = re.search(r"source_target_pairs=\{([\d,{}]*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", listed[1] if listed else "")
    return tuple((int(source), int(target)) for source, target in pairs)


def products(module: Module, computation: Computation, one: Instruction) -> Iterator[tuple[str, float]]:
    """Multiplications and additions of the matrix products of an instruction, or of all that it fuses."""
    fused = module.fused(one)
    if fused is not None:
        for part in fused.instructions.values():
            yield from products(module, fused, part)
    elif one.opcode == "dot":
        left = computation.instructions[one.operands[0]].shapes[0]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        depth = np.prod([left.dims[int(index)] for index in contracted[1].split(",") if index]) if contracted else 1
        batched = "lhs_batch_dims={}" not in one.attributes and "lhs_batch_dims=" in one.attributes
        yield "batched" if batched else "product", 2.0 * one.shapes[0].elements * float(depth)
    elif one.opcode == "convolution":
        yield _convolution(computation, one)


def _convolution(computation: Computation, one: Instruction) -> tuple[str, float]:
    """TPU programs write matrix products as convolutions: `bf_io->bf` contracts f with i. A spatial dimension is a
    batch dimension (as long on both sides and in the result) or a contracted one (as long on both sides)."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None
    left, right = (computation.instructions[name].shapes[0].dims for name in one.operands)
    sizes = [dict(zip(labels[index], dims)) for index, dims in ((1, left), (2, right), (3, one.shapes[0].dims))]
    spatial = [label for label in labels[1] if label.isdigit()]
    pairs = float(np.prod([max(size.get(label, 1) for size in sizes) for label in spatial]))
    flops = 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs
    is_batched = any(min(size.get(label, 1) for size in sizes) > 1 for label in spatial)
    return ("batched" if is_batched else "product"), flops


def _read(module: Module, computation: Computation, name: str) -> float:
    """Bytes of a value inside a fusion that the fusion reads from HBM."""
    one = computation.instructions[name]
    if all(shape.space != HBM for shape in one.shapes):
        return 0.0
    return min(_in_hbm(one), _used(module, computation, name))


def _used(module: Module, computation: Computation, name: str) -> float:
    """As `_read`, wherever the value lies."""
    whole, total = float(sum(shape.bytes for shape in computation.instructions[name].shapes)), 0.0
    for user in computation.instructions.values():
        if name not in user.operands:
            continue
        nested = module.fused(user)
        if user.opcode in ("dynamic-slice", "gather") and user.operands[0] == name:
            total += user.shapes[0].bytes
        elif user.opcode == "slice":
            total += spanned_bytes(user, computation.instructions[name].shapes[0])
        elif _is_underway(computation, user):
            continue
        elif user.opcode == "bitcast":
            total += _used(module, computation, user.name)
        elif nested is not None:
            parameters = {
                part.argument: part.name for part in nested.instructions.values() if part.opcode == "parameter"
            }
            indices = [index for index, operand in enumerate(user.operands) if operand == name]
            total += sum(_used(module, nested, parameters[str(index)]) for index in indices)
        elif user.opcode != "tuple" and not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            total += whole
    return min(total, whole)


def _written(module: Module, computation: Computation, one: Instruction) -> float:
    """Bytes of HBM that a fusion writes for the value `one` of its root."""
    if one.opcode == "tuple":
        return sum(_written(module, computation, computation.instructions[name]) for name in one.operands)
    if one.opcode == "parameter" or _is_underway(computation, one) or all(shape.space != HBM for shape in one.shapes):
        return 0.0
    source = one
    while source.opcode == "bitcast":
        source = computation.instructions[source.operands[0]]
    nested = module.fused(source)
    if nested is not None:
        return min(_in_hbm(one), _written(module, nested, nested.root) or _in_hbm(one))
    if source.opcode == "dynamic-update-slice":
        return float(sum(shape.bytes for shape in computation.instructions[source.operands[1]].shapes))
    return _in_hbm(one)


def _is_underway(computation: Computation, one: Instruction) -> bool:
    """Whether this is a collective that started before this fusion and ends after it."""
    return one.opcode in COLLECTIVES and computation.root.opcode == "tuple"


def _in_hbm(one: Instruction) -> float:
    return float(sum(shape.bytes for shape in one.shapes if shape.space == HBM))


def noted_number(one: Instruction, key: str) -> int | None:
    """A number that the compiler or a kernel's author wrote beside an instruction."""
    match = re.search(rf'"{key}":"(\d+)"', one.attributes)
    return int(match[1]) if match else None
