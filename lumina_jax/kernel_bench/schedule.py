"""Reads the compiler's final schedule of a TPU kernel: its bundles, branches, slot use and memory.

In: three texts that libtpu writes for each kernel under --xla_jf_dump_to (docs/kernels.md has the flags):
`final_bundles` lists the VLIW bundles in order, one issue slot each, `final_hlo-static-per-bundle-utilization` how much
of each functional slot a bundle uses, `post-delay-converter` the allocations. Out: a Schedule.

A bundle reads `0x1f : > { instructions ;; instructions } /* Start region 31 */`, with one `>` for every loop around it.
`sbr.rel (%p) target = $region32` branches to where region 32 starts; a branch backwards closes a loop, one forwards
skips a region. The DELAY bundles after a branch are executed either way, or fewer where a marked bundle (`PF:` after a
region that may be skipped, `LB:` in a loop ...) begins another block before.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

DELAY = 4
BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+((?:(?:LH|LB|LE|PB|PF|CT)\s*)*):([> ]*)\{")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
BRANCH = re.compile(r"sbr\.rel(?:\.\w+)? (?:\((!?)%(\w+)\) )?target ?= ?\$region(\d+)")
ALLOCATION = re.compile(r"space=vmem, size = (0x[0-9a-f]+|\d+), offset = (0x[0-9a-f]+|\d+)")
SCALARS = re.compile(r"(#allocation\d+) \[.*space=smem, size = (0x[0-9a-f]+|\d+),.*'prefetched SMEM operand (\d+)'")
NAME = re.compile(r"/\* entry bundle: %(\S+) = custom-call\(")


class Bundle(NamedTuple):
    """One issue slot."""

    depth: int
    """Number of loops around it."""
    text: str
    """Its instructions, without comments."""
    begins: bool
    """Whether it is marked as the first of a block."""


class Branch(NamedTuple):
    """After the bundles of its delay the program continues at `target`, if the predicate is as wanted."""

    predicate: str
    """The register's name; '' for a branch that is always taken."""
    wanted: bool
    target: int


@dataclass(frozen=True)
class Schedule:
    """A kernel as it will be issued; `branches` by bundle, `slot_use` [bundles, slots] in units of `capacity`."""

    name: str
    grid: tuple[int, ...]
    bundles: tuple[Bundle, ...]
    branches: Mapping[int, Branch]
    capacity: Mapping[str, int]
    slot_use: Int[np.ndarray, "n slots"]
    vmem_bytes: int
    scalars: Mapping[int, tuple[str, int]]
    """The allocation in scalar memory and the bytes of each operand that steers the kernel."""

    def delay_end(self, branch: int) -> int:
        """The last bundle that is executed whether the branch is taken or not."""
        after = self.bundles[branch + 1 : branch + 1 + DELAY]
        return branch + next((index for index, bundle in enumerate(after) if bundle.begins), len(after))


def kernel_name(bundles: str) -> str | None:
    """The instruction of the program that a schedule belongs to; None if it is no custom kernel."""
    found = NAME.search(bundles)
    return found[1] if found else None


def read_schedule(bundles: str, utilization: str, allocations: str) -> Schedule:
    """The schedule in three texts of the compiler.

    Raises:
      ValueError: a text is not what its name says, as after a change of libtpu's format.
    """
    numbered, starts = _bundles(bundles)
    name = kernel_name(bundles)
    if name is None or not numbered:
        raise ValueError("the text holds no bundles of a custom kernel; give the final_bundles file of one")
    capacity, slot_use = _slots(utilization)
    if len(slot_use) < len(numbered):
        raise ValueError(f"the slots of {len(slot_use)} bundles are given for {len(numbered)}; they are of two kernels")
    spans = [(int(size, 0), int(offset, 0)) for size, offset in ALLOCATION.findall(allocations)]
    return Schedule(
        name,
        _grid(bundles),
        tuple(numbered),
        _branches(numbered, starts),
        capacity,
        slot_use[: len(numbered)],
        max((size + offset for size, offset in spans), default=0),
        {int(number): (allocation, int(size, 0)) for allocation, size, number in SCALARS.findall(allocations)},
    )


def _bundles(text: str) -> tuple[list[Bundle], dict[int, int]]:
    """The bundles, and the number of the bundle at which each region starts. Comments may run over several lines."""
    raw: list[tuple[int, bool, list[str]]] = []
    for line in text.splitlines():
        if found := BUNDLE.match(line):
            raw.append((found[2].count(">"), bool(found[1]), [line]))
        elif raw:
            raw[-1][2].append(line)
    bundles: list[Bundle] = []
    starts: dict[int, int] = {}
    for number, (depth, begins, lines) in enumerate(raw):
        whole = "\n".join(lines)
        for comment in COMMENT.findall(whole):
            starts |= {int(region): number for region in REGION.findall(comment)}
        bundles.append(Bundle(depth, COMMENT.sub("", whole), begins))
    return bundles, starts


def _branches(bundles: Sequence[Bundle], starts: Mapping[int, int]) -> dict[int, Branch]:
    """Branches by bundle. The end of the program is a region that starts at no bundle; two of them are a mistake."""
    found = {number: match for number, bundle in enumerate(bundles) if (match := BRANCH.search(bundle.text))}
    nowhere = {int(match[3]) for match in found.values()} - starts.keys()
    if len(nowhere) > 1:
        raise ValueError(f"regions {sorted(nowhere)} are branched to and start nowhere; only the end may")
    return {
        number: Branch(match[2] or "", not match[1], starts.get(int(match[3]), len(bundles)))
        for number, match in found.items()
    }


def _grid(text: str) -> tuple[int, ...]:
    """The grid that most of the kernel's transfers name; () without a grid."""
    bounds = Counter(re.findall(r"iteration_bounds: \(([^)]*)\)", text))
    if not bounds:
        return ()
    return tuple(int(size) for size in bounds.most_common(1)[0][0].split(",") if size.strip())


def _slots(text: str) -> tuple[dict[str, int], Int[np.ndarray, "n slots"]]:
    """`== CAPACITY:` (libtpu misspells it), names, numbers; then `== UTILIZATION:` and one line of numbers a bundle."""
    lines = text.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("== UTIL")]
    if len(lines) < 4 or not starts:
        raise ValueError("the text has no `== UTILIZATION:` line; give the per-bundle utilization file of a kernel")
    names = [name.strip() for name in lines[1].split(",")]
    capacity = dict(zip(names, map(int, lines[2].split()), strict=True))
    rows = [[int(value) for value in line.split()] for line in lines[starts[0] + 1 :] if line.strip()]
    return capacity, np.array(rows, int).reshape(-1, len(names))
