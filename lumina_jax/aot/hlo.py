"""A compiled program as text, read: which computations run how often, and what every instruction holds and does.

In: the text of `compiled.as_text()` (XLA's HLO after optimisation, of any back end). Out: a `Module`. XLA's own cost
analysis counts the body of a loop once; here every computation has the number of times that a call of the program runs
it, from the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

BYTES = {"pred": 1.0, "bf16": 2.0, "f16": 2.0, "f32": 4.0, "f64": 8.0, "c64": 8.0, "c128": 16.0, "token": 0.0}
HBM, HOST = 0, 5
"""Memory spaces in layouts, S(n): none is HBM; VMEM, scalar memory and semaphores have other numbers."""

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_START = re.compile(r"\s+(?:ROOT )?%?[^\s=()]+ = ")
_END = re.compile(r'\}(, execution_thread="\w+")?$')
STARTS_OF_SEQUENCES = ("async-start", "call-start")
"""Instructions that let a computation run beside those after them, the second on another core."""
_NAME = re.compile(r"%([^\s,(){}]+)")


class ArrayShape(NamedTuple):
    """One array."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.elements * _width(self.dtype)


class Instruction(NamedTuple):
    """One line: name = shapes opcode(operands), attributes."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    """Of the result; several for a tuple, flattened."""
    operands: tuple[str, ...]
    argument: str
    """The text in the parentheses: the value of a constant, the number of a parameter."""
    attributes: str
    is_root: bool

    def called(self, key: str) -> str | None:
        """The computation that an attribute names, such as body=%body."""
        match = re.search(rf"\b{key}=%?([^\s,(){{}}]+)", self.attributes)
        return match[1] if match else None

    def integer(self, key: str) -> int | None:
        match = re.search(rf"\b{key}=(-?\d+)", self.attributes)
        return int(match[1]) if match else None


class Computation(NamedTuple):
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    def origin(self, name: str) -> Instruction:
        """The instruction that makes a value, through copies and bitcasts."""
        one = self.instructions[name]
        while one.opcode in ("copy", "bitcast", "copy-start", "copy-done", "convert") and one.operands:
            one = self.instructions[one.operands[0]]
        return one


class Loop(NamedTuple):
    """A while instruction, the computation that holds it, and how often its body runs; None: not known beforehand."""

    instruction: Instruction
    within: Computation
    body: Computation
    trips: int | None


class Module(NamedTuple):
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation
    frames: Mapping[int, str]
    """Source lines, "file.py:12", by the number under which instructions name them."""

    def source(self, one: Instruction) -> str:
        """The line of Python that an instruction comes from; "" where the compiler added it."""
        frame, line = one.integer("stack_frame_id"), one.integer("source_line")
        file = re.search(r'source_file="([^"]*)"', one.attributes)
        return f"{file[1]}:{line}" if file else self.frames.get(frame or 0, "")

    def fused(self, one: Instruction) -> Computation | None:
        """The computation that a fusion runs as one kernel."""
        name = one.called("calls") if one.opcode == "fusion" else None
        return self.computations[name] if name else None

    def loops(self) -> list[Loop]:
        return [
            Loop(one, computation, self.computations[one.called("body") or ""], _trips(self, one, computation))
            for computation in self.computations.values()
            for one in computation.instructions.values()
            if one.opcode == "while"
        ]

    def runs(self, assumed_trips: Sequence[int] = ()) -> dict[str, int]:
        """How often each computation runs in one call of the program, by its name; those inside fusions and reducers
        are not listed. Of a conditional only the branch that makes the most bytes counts.

        Args:
          assumed_trips: trip counts of loops that decide while they run when to end: of the outermost, of one within
            it, and so on; loops further inside count once.
        """
        trips = {loop.instruction.name: loop.trips for loop in self.loops()}
        counts: dict[str, int] = {}

        def visit(computation: Computation, times: int, assumed: Sequence[int]) -> None:
            counts[computation.name] = counts.get(computation.name, 0) + times
            for one in computation.instructions.values():
                own, inner = counted(trips.get(one.name, 1), assumed)
                for name in self.callees(one):
                    visit(self.computations[name], times * own, inner)

        visit(self.entry, 1, assumed_trips)
        return counts

    def executed(self, assumed_trips: Sequence[int] = ()) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction outside of fusions, with how often it runs."""
        for name, times in self.runs(assumed_trips).items():
            for one in self.computations[name].instructions.values():
                yield self.computations[name], one, times

    def callees(self, one: Instruction) -> list[str]:
        """The computations that an instruction runs as sequences of instructions."""
        if one.opcode == "while":
            return [name for name in (one.called("body"), one.called("condition")) if name]
        if one.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
            names = (
                _NAME.findall(branches[1])
                if branches
                else [one.called("true_computation"), one.called("false_computation")]
            )
            return [max((name for name in names if name), key=self._made_bytes)]
        called = {"call": "to_apply", "async-start": "calls", "call-start": "to_apply"}.get(one.opcode)
        name = called and one.called(called)
        return [name] if name else []

    def _made_bytes(self, name: str) -> float:
        """Bytes of all results in a computation and in those that it runs."""
        return sum(
            sum(shape.bytes for shape in one.shapes) + sum(map(self._made_bytes, self.callees(one)))
            for one in self.computations[name].instructions.values()
        )


def read_hlo(text: str) -> Module:
    """The program that a text describes.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, current, pending = None, None, ""
    for line in text.splitlines():
        header = None if line[:1].isspace() or current is not None else _HEADER.match(line)
        is_end = _END.match(line) is not None and pending.count("{") == pending.count("}")
        if header:
            current = Computation(header[2], {})
            computations[current.name] = current
            entry = current if header[1] else entry
        elif current is not None and (is_end or _START.match(line)):
            _add(current, pending)  # an instruction ends where the next begins: attributes may span lines
            pending = "" if is_end else line
            current = None if is_end else current
        elif current is not None:
            pending += "\n" + line
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Module(computations, entry, _frames(text[: text.find(" {\n")]))


def counted(trips: int | None, assumed: Sequence[int]) -> tuple[int, Sequence[int]]:
    """How often a loop runs, and the assumed trips of the loops within it. One whose known trips are those that were
    assumed for its depth is the loop that was meant, of which the compiler found the end."""
    if trips is None:
        return (assumed[0] if assumed else 1), assumed[1:]
    return trips, assumed[1:] if assumed and trips == assumed[0] else assumed


def shapes_in(text: str) -> tuple[ArrayShape, ...]:
    """Every array shape in a piece of HLO text."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(ArrayShape(dtype, sizes, int(space[1]) if space else HBM))
    return tuple(found)


def _frames(header: str) -> dict[int, str]:
    """The tables before the first computation: files by number, lines of files, and frames, which name lines."""
    files = {int(number): name for number, name in re.findall(r'^(\d+) "([^"]*)"$', _table(header, "FileNames"), re.M)}
    line = r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)"
    lines = {
        int(number): f"{files.get(int(file), '')}:{at}"
        for number, file, at in re.findall(line, _table(header, "FileLocations"), re.M)
    }
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _table(header, "StackFrames"), re.M)
    return {int(number): lines.get(int(location), "") for number, location in frames}


def _table(header: str, name: str) -> str:
    """The rows of a table of the header, up to an empty line."""
    found = re.search(rf"^{name}\n(.*?)(?:\n\n|\Z)", header, re.M | re.S)
    return found[1] if found else ""


def _width(dtype: str) -> float:
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0


def _add(computation: Computation, line: str) -> None:
    """Parse one instruction into the computation; an empty line is none."""
    if not line:
        return
    left, right = line.strip().split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, opening = right[end:].strip().split("(", 1)[0], right.index("(", end)
    closing = _closing(right, opening)
    argument, name = right[opening + 1 : closing], left.removeprefix("ROOT ").removeprefix("%")
    computation.instructions[name] = Instruction(
        name=name,
        opcode=opcode,
        shapes=shapes_in(right[:end]),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=right[closing + 1 :],
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """The index at which the parenthesis at `opening` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis does not close in {text[opening : opening + 80]!r}")


def _trips(module: Module, loop: Instruction, within: Computation) -> int | None:
    """How often a loop runs: what the compiler noted, or counted from its condition `counter < limit`."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition = module.computations[loop.called("condition") or ""]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition.origin(name) for name in compare.operands)
    index = counter.integer("index")
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant" or index is None:
        return None
    start, step = _start(loop, within, index), _step(module, loop, index)
    return None if start is None or not step else -(-(int(limit.argument) - start) // step)


def _start(loop: Instruction, within: Computation, index: int) -> int | None:
    """The counter before the first run, if it is a constant."""
    tuple_ = within.instructions[loop.operands[0]]
    if tuple_.opcode != "tuple":
        return None
    first = within.origin(tuple_.operands[index])
    return int(first.argument) if first.opcode == "constant" else None


def _step(module: Module, loop: Instruction, index: int) -> int | None:
    """What a run of the body adds to the counter, if it is a constant."""
    body = module.computations[loop.called("body") or ""]
    if body.root.opcode != "tuple":
        return None
    new = body.origin(body.root.operands[index])
    fused = module.fused(new)
    terms = fused if fused else body
    add = terms.origin(fused.root.name) if fused else new
    if add.opcode != "add":
        return None
    steps = [_constant(module, body, new, terms, name) for name in add.operands]
    known = [step for step in steps if step is not None]
    return known[0] if len(known) == 1 else None


def _constant(module: Module, body: Computation, call: Instruction, terms: Computation, name: str) -> int | None:
    """The value of a constant term; one that is handed into a fusion is looked up where it comes from."""
    one = terms.origin(name)
    if one.opcode == "parameter" and terms is not body:
        one = body.origin(call.operands[int(one.argument)])
    return int(one.argument) if one.opcode == "constant" else None
