"""Where the expected time of a step goes, in words: the dearest instructions, and the dearest lines of Python."""

from collections.abc import Iterator, Sequence
from typing import Any

from lumina_jax.aot.timeline import StepTimeline, TimelineEntry

MOST = 30
"""Rows of each table."""
NAME, LINE = 34, 44
"""Characters of a name, and of a line of Python, of which the end is printed."""
HEADINGS = f"{'share':>7}{'ms':>10}{'times':>8}{'cycles':>11}{'HBM GB':>9}{'TFLOP':>9}  {'kind':<12}"


def breakdown_lines(timeline: StepTimeline, clock: float) -> Iterator[str]:
    """Two tables: instructions, and all of one kind that come from one line together.

    Args:
      clock: cycles a second of the chip.
    """
    yield "the dearest instructions; cycles of one run, the other numbers of all runs:"
    yield from _table(timeline.by_instruction(), timeline.seconds, clock)
    yield "the dearest lines of Python, all their instructions of a kind together; cycles of an average run:"
    yield from _table(timeline.by_source(), timeline.seconds, clock)


def breakdown_json(timeline: StepTimeline, clock: float) -> list[dict[str, Any]]:
    """Every instruction that takes time, dearest first."""
    return [entry._asdict() | {"cycles": _cycles(entry, clock)} for entry in timeline.by_instruction()]


def _table(entries: Sequence[TimelineEntry], total: float, clock: float) -> Iterator[str]:
    yield f"{HEADINGS}{'instruction':<{NAME}}  line"
    for entry in entries[:MOST]:
        yield (
            f"{entry.seconds / total:7.1%}{1e3 * entry.seconds:10.3f}{entry.times:8}{_cycles(entry, clock):11.0f}"
            f"{entry.hbm_bytes / 1e9:9.3f}{entry.flops / 1e12:9.3f}  {entry.kind:<12}{entry.name[:NAME]:<{NAME}}  "
            f"{entry.source[-LINE:]}"
        )


def _cycles(entry: TimelineEntry, clock: float) -> float:
    return entry.seconds * clock / entry.times
