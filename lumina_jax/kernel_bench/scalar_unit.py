"""Follows a kernel's scalar unit through its schedule: which bundles are issued how often, for given scalars.

In: a Schedule and the values of the scalar arrays that the kernel reads (grid positions it counts itself). Out: times
issued, bundle by bundle. The vector units are not followed: what a kernel learns from them (whether a sum is within
its safe range) is taken to be 1, and the first of all cores is followed.

Registers are the numbers behind the names (%s1246_s26 is s26, %p33_p0 is p0). Within a bundle all reads come before all
writes; a branch takes effect after the bundles of its delay. Straight pieces are translated to Python once.
"""

import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lumina_jax.kernel_bench.schedule import Schedule

FROM_VECTOR = struct.unpack("<i", struct.pack("<f", 1.0))[0]
"""The number that vector units are assumed to report; true as an integer too."""
MOST_PIECES = 20_000_000
"""Branch-free pieces to follow before a kernel counts as endless."""
MEMORY_WORDS = 1 << 16
"""Pseudo-addresses between two allocations."""

INSTRUCTION = re.compile(r"%(\w+) = ([a-z_]+)([\w.]*)\s?(.*)", re.DOTALL)
GUARD = re.compile(r"\((!?)%\w+_p(\d+)(?:, ([^)]+))?\),?")
OPERAND = re.compile(r"\[([^\]]*)\]|(%\w+_[sp]\d+)|(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\b")
WRAPPED = "((({}) + 0x80000000 & 0xffffffff) - 0x80000000)"
ARITHMETIC = {
    "sadd": "{0} + {1}",
    "ssub": "{0} - {1}",
    "smul": "{0} * {1}",
    "smulhi": "({0} & 0xffffffff) * ({1} & 0xffffffff) >> 32",
    "sand": "{0} & {1}",
    "sor": "{0} | {1}",
    "sxor": "{0} ^ {1}",
    "sshll": "{0} << ({1} & 31)",
    "sshrl": "({0} & 0xffffffff) >> ({1} & 31)",
    "sshra": "{0} >> ({1} & 31)",
    "smin": "min({0}, {1})",
    "smax": "max({0}, {1})",
}
LOGIC = {
    "por": "{0} or {1}",
    "pand": "{0} and {1}",
    "pnand": "not ({0} and {1})",
    "pnor": "not ({0} or {1})",
    "pxor": "{0} != {1}",
    "pneg": "not {0}",
    "pmov": "{0}",
}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class Piece(NamedTuple):
    """A branch-free piece, translated: `run(s, p, memory)` returns whether its branch is taken."""

    last: int
    target: int | None
    run: Callable[[list[Any], list[Any], dict[int, int]], bool]


def follow(schedule: Schedule, scalars: Mapping[int, np.ndarray]) -> Float[np.ndarray, " n"]:
    """Times issued of every bundle; `scalars` are the kernel's scalar operands by their numbers.

    Raises:
      ValueError: operands are missing, or the kernel does not end.
    """
    missing = schedule.scalars.keys() - scalars.keys()
    if missing:
        raise ValueError(f"{schedule.name} reads its scalar operands {sorted(missing)}, which are not given")
    memory = _memory(schedule, scalars)
    pieces: dict[int, Piece] = {}
    visited: Counter[tuple[int, int]] = Counter()
    s, p, bundle = [0] * 64, [False] * 32, 0
    for _ in range(MOST_PIECES):
        piece = pieces.get(bundle)
        if piece is None:
            piece = pieces[bundle] = _translate(schedule, bundle, scalars)
        visited[bundle, piece.last] += 1
        taken = piece.run(s, p, memory)
        bundle = piece.target if taken and piece.target is not None else piece.last + 1
        if bundle >= len(schedule.bundles):
            break
    else:
        raise ValueError(f"{schedule.name} did not end within {MOST_PIECES} pieces")
    issued = np.zeros(len(schedule.bundles))
    for (first, last), times in visited.items():
        issued[first : last + 1] += times
    return issued


def _memory(schedule: Schedule, scalars: Mapping[int, np.ndarray]) -> dict[int, int]:
    """Scalar memory with the operands in it, as 32-bit words; each repeated until it fills its allocation."""
    memory: dict[int, int] = {}
    for number, (allocation, size) in schedule.scalars.items():
        words = np.resize(np.frombuffer(scalars[number].tobytes(), np.uint8), size).view(np.int32)
        memory |= {_address(allocation) + offset: int(word) for offset, word in enumerate(words)}
    return memory


def _address(allocation: str) -> int:
    """A pseudo-address for #allocation12 or #allocation12_spill, which are two allocations."""
    number = int(re.sub(r"\D", "", allocation))
    return (2 * number + ("spill" in allocation) + 1) * MEMORY_WORDS


def _translate(schedule: Schedule, first: int, scalars: Mapping[int, np.ndarray]) -> Piece:
    """The piece from `first` to the end of the delay of the next branch."""
    at = next((number for number in sorted(schedule.branches) if number >= first), None)
    last = len(schedule.bundles) - 1 if at is None else schedule.delay_end(at)
    lines = []
    for number in range(first, last + 1):
        if number == at:
            branch = schedule.branches[at]
            lines.append(f"taken = {_register(branch.predicate) if branch.predicate else True} == {branch.wanted}")
        elif number in schedule.branches:
            raise ValueError(f"bundle {number} branches in the delay of another branch")
        lines += _statements(schedule.bundles[number].text, scalars)
    source = "\n ".join(["def run(s, p, memory):", *lines, f"return {at is not None and 'taken'}"])
    space: dict[str, Any] = {"as_float": _as_float}
    exec(compile(source, f"<bundles {first} to {last}>", "exec"), space)
    return Piece(last, None if at is None else schedule.branches[at].target, space["run"])


def _as_float(word: int | float) -> float:
    return struct.unpack("<f", struct.pack("<i", word))[0] if isinstance(word, int) else word


def _statements(text: str, scalars: Mapping[int, np.ndarray]) -> list[str]:
    """A bundle in Python: first every right side, then every assignment."""
    reads, writes = [], []
    body = text[text.find("{") + 1 : text.rfind("}")]
    for number, instruction in enumerate(body.split(";;")):
        found = INSTRUCTION.match(instruction.strip())
        if not found:
            continue
        translated = _instruction(found[1], found[2], found[3], found[4], scalars)
        if translated:
            target, value, condition = translated
            reads.append(f"new{number} = {value}")
            writes.append(f"{target} = new{number}")
            if condition:
                reads.append(f"if{number} = {condition}")
                writes[-1] = f"if if{number}: {writes[-1]}"
    return reads + writes


def _instruction(
    name: str, operation: str, kind: str, rest: str, scalars: Mapping[int, np.ndarray]
) -> tuple[str, str, str] | None:
    """(target, value, condition or '') of an instruction; None if it changes neither registers nor memory."""
    if operation in ("sphi", "pphi"):
        return None
    if operation == "sdivrem":
        raise ValueError(f"{operation} {rest} is not followed; write the kernel without a remainder of scalars")
    if operation == "sst":
        guard, operands = _operands(rest)
        return f"memory[{operands[0]}]", operands[1], guard
    if not re.search(r"_[sp]\d+$", name):
        return None
    target, condition = _register(f"%{name}"), ""
    if operation == "inlined_call_operand":
        return target, str(_operand_value(rest, scalars)), condition
    guarded = GUARD.search(rest)
    guard, operands = _operands(rest)
    value = _value(operation, kind, operands)
    if guarded and guarded[3]:  # smov (%p, other), value: one or the other
        value = f"{value} if {guard} else {_operand(guarded[3])}"
    elif guard:
        condition = guard
    return target, value, condition


def _value(operation: str, kind: str, operands: list[str]) -> str:
    if operation in ("smin", "smax") and "u32" in kind:
        operands = [f"({operand} & 0xffffffff)" for operand in operands]
    if operation in ARITHMETIC and "f32" not in kind:
        return WRAPPED.format(ARITHMETIC[operation].format(*operands))
    if operation in LOGIC:
        return LOGIC[operation].format(*operands)
    if operation == "scmp":
        relation, of = kind.split(".")[1:3]
        if of == "f32":
            operands = [f"as_float({operand})" for operand in operands]
        elif of == "u32":
            operands = [f"({operand} & 0xffffffff)" for operand in operands]
        return f"{operands[0]} {COMPARISONS[relation]} {operands[1]}"
    if operation == "sld":
        return f"memory.get({operands[0]}, 0)"
    if operation == "scalar_select":
        return f"{operands[1]} if {operands[0]} else {operands[2]}"
    if operation in ("scalar_lea", "int_to_ptr", "smov", "scopy"):
        return WRAPPED.format(" + ".join(operands)) if operands else "0"
    return str(FROM_VECTOR)


def _operands(text: str) -> tuple[str, list[str]]:
    """The condition of a predicated instruction ('' without), and its operands in Python."""
    guarded = GUARD.search(text)
    guard = f"{'not ' if guarded[1] else ''}p[{guarded[2]}]" if guarded else ""
    text = re.sub(r"\[resolvable:\$\w+\]|smem:", "", GUARD.sub("", text))
    text = re.sub(r"\[\[([^\]]*)\]\]", r"[\1]", text)
    return guard, [_operand(found[0]) for found in OPERAND.finditer(text)]


def _operand(text: str) -> str:
    """A register, a number, or an address in brackets."""
    if text.startswith("["):
        terms = [term.strip() for term in text.strip("[]").split("+")]
        return "(" + " + ".join(_term(term) for term in terms) + ")"
    return _term(text)


def _term(text: str) -> str:
    if text.startswith("#allocation"):
        return str(_address(text))
    if text.startswith("$"):
        return str(int(text[1:], 0))
    if text.startswith("%"):
        return _register(text)
    number = float(text) if not re.fullmatch(r"-?\d+", text) else int(text)
    return str(number - (1 << 32) if isinstance(number, int) and number >= 1 << 31 else number)


def _register(name: str) -> str:
    kind, number = re.search(r"_([sp])(\d+)$", name).groups()  # type: ignore[union-attr]
    return f"{kind}[{number}]"


def _operand_value(rest: str, scalars: Mapping[int, np.ndarray]) -> int:
    """The value of an operand's register at the start: a scalar, or an address, on which nothing depends."""
    index = re.search(r"index: (\d+)", rest)
    array = scalars.get(int(index[1])) if index else None
    return int(array.reshape(-1).view(np.int32)[0]) if array is not None and array.size == 1 else 0
