"""The position of a stream in its data: which samples the rows of the batches have handed out.

Every row of the batch reads independently: in each turn it takes one index (`data.order.dealt`), packs the oldest
samples that it has, and ignores the other rows. So a row does not depend on the process that makes it, and the position
of the whole stream does not depend on the number of processes: samples below `position` were handed out or unusable,
except those in `waiting`; samples from `position` on were not.

    {"position": 12, "waiting": [9, 11], "rows": None, "batch_rows": 4, "seed": 0,
     "samples": 37, "ordered": "5f3a...", "unordered": "1c9e..."}

`rows` lists the rows that a state describes; None: all. `merge_states` joins the states of several processes. The last
three fields identify the source (`data.example.Contents`).
"""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from lumina_jax.data.example import Contents
from lumina_jax.data.order import dealt, taker

logger = logging.getLogger(__name__)

PackedSample = TypeVar("PackedSample")
RowsState = dict[str, Any]


class Row(Generic[PackedSample]):
    """One row: the samples that it has read and not handed out, oldest first, and the indices that it takes next."""

    def __init__(self, number: int, rows: int, seed: int) -> None:
        self.number = number
        self.waiting: list[tuple[int, PackedSample]] = []
        self._rows, self._seed = rows, seed
        self._backlog: deque[int] = deque()
        self.turn = 0

    def upcoming(self) -> Iterator[int]:
        """The indices that the row will take, without end."""
        later = (dealt(self.number, turn, self._rows, self._seed) for turn in itertools.count(self.turn))
        return itertools.chain(tuple(self._backlog), later)

    def take(self) -> int:
        """The next index, which counts as taken from then on."""
        if self._backlog:
            return self._backlog.popleft()
        self.turn += 1
        return dealt(self.number, self.turn - 1, self._rows, self._seed)

    def put_back(self, index: int) -> None:
        """Take this index, the last one taken, again next time."""
        self._backlog.appendleft(index)

    def missing(self, turn: int) -> list[int]:
        """The indices of turns before `turn` that the row has not handed out."""
        taken = [index for index, _ in self.waiting] + list(self._backlog)
        return taken + [dealt(self.number, before, self._rows, self._seed) for before in range(self.turn, turn)]

    def seek(self, turn: int, backlog: Iterable[int]) -> None:
        """Continue with these indices, and after them with this turn."""
        self.waiting, self._backlog, self.turn = [], deque(sorted(backlog)), turn


def state_of(rows: Sequence[Row], batch_rows: int) -> RowsState:
    """The state of these rows of a batch of `batch_rows` rows."""
    turn = max(row.turn for row in rows)
    waiting = sorted(index for row in rows for index in row.missing(turn))
    whole = len(rows) == batch_rows
    return {
        "position": turn * batch_rows,
        "waiting": waiting,
        "rows": None if whole else [row.number for row in rows],
        "batch_rows": batch_rows,
    }


def seek(rows: Sequence[Row], batch_rows: int, seed: int, state: Mapping[str, Any]) -> None:
    """Move rows to the position of a state, which may describe batches of another number of rows."""
    turn = -(-state["position"] // batch_rows)
    backlog: dict[int, list[int]] = {row.number: [] for row in rows}
    for index in itertools.chain(state["waiting"], range(state["position"], turn * batch_rows)):
        number = taker(index, batch_rows, seed)
        if number in backlog:
            backlog[number].append(index)
    for row in rows:
        row.seek(turn, backlog[row.number])


def merge_states(states: Sequence[Mapping[str, Any]]) -> RowsState:
    """The states of all processes as one, which any number of processes can restore, with batches of any size.

    Processes that make the same rows, because they share the tokens of a row, count once.

    Raises:
      ValueError: no state describes a row, or the states belong to different streams.
    """
    batch_rows, seed = states[0]["batch_rows"], states[0]["seed"]
    if any((state["batch_rows"], state["seed"]) != (batch_rows, seed) for state in states):
        raise ValueError("merging needs the states of one stream, but they differ in the rows of a batch or the seed")
    owner: dict[int, Mapping[str, Any]] = {}
    for state in states:
        for row in range(batch_rows) if state["rows"] is None else state["rows"]:
            owner.setdefault(row, state)
    if missing := sorted(set(range(batch_rows)) - owner.keys()):
        raise ValueError(f"merging needs the state of every row of the batch, but {missing=}; give those of all")
    position = max(state["position"] for state in states)
    waiting: set[int] = set()
    for state in states:
        waiting.update(index for index in state["waiting"] if owner[taker(index, batch_rows, seed)] is state)
    for row, state in owner.items():  # what others have passed and this row has not taken yet
        turns = range(state["position"] // batch_rows, position // batch_rows)
        waiting.update(dealt(row, turn, batch_rows, seed) for turn in turns)
    return {**states[0], "rows": None, "position": position, "waiting": sorted(waiting)}


def in_source(state: RowsState, contents: Contents, name: str, *, is_mixture: bool = False) -> RowsState:
    """The state for the source as it is now; what has changed since the state was taken is logged.

    If the number or the order of samples has changed, the position means nothing, and the next epoch begins, in which
    each sample comes once. If only what samples say has changed, such as a corrected caption, the epoch goes on. In a
    mixture, where each part has its epoch, all epochs go on.

    Args:
      name: the source, for reports.
    """
    before, now = state["samples"], contents.samples
    if before != now:
        change = f"has {now} samples, but had {before}"
    elif state.get("ordered") in (None, contents.ordered):
        return state
    elif state["unordered"] == contents.unordered:
        change = f"has the same {now} samples in another order"
    else:
        change = f"has {now} samples as before, but not all of them say the same"
    is_position_lost = before != now or state["unordered"] == contents.unordered
    if is_mixture or not is_position_lost:
        twice = "; some may come twice in it and others not" if is_position_lost else ""
        then = f"the epoch goes on with them{twice}"
        logger.warning("%s %s: %s", name, change, then)
        return state
    start = -(-state["position"] // now) * now
    logger.warning("%s %s: a new epoch begins, and what was left of the last one is left out", name, change)
    return {**state, "position": start, "waiting": []}
