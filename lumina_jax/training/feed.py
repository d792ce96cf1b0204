"""Batches of the host, laid on the mesh.

In: a stream of those rows of the batch that this process's devices hold a part of. Out: the same rows as arrays of the
whole mesh. Processes that share the tokens of a row, or cut its products, each make that row; the rows are the same
whoever makes them.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lumina_jax.parallel.mesh import batch_sharding, check_tokens
from lumina_jax.parallel.multihost import gathered
from lumina_jax.training.step import TrainBatch, batch_places


@runtime_checkable
class Stream(Protocol):
    """What makes rows: `data.batches.Stream`, or anything like it."""

    bad: dict[str, str]

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...

    def merged(self, states: list[dict[str, Any]]) -> dict[str, Any]: ...


def own_rows(mesh: Mesh, batch_rows: int) -> list[int]:
    """The rows of a batch that the devices of this process hold at least a part of, in ascending order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_rows,))
    return sorted({row for place in places.values() if place for row in range(batch_rows)[place[0]]})


class Feed:
    """An endless iterator of batches on the devices, one for each batch of `stream`.

    Args:
      stream: makes `own_rows(mesh, batch_rows)`, in that order.
      batch_rows: rows of the whole batch.
    """

    def __init__(self, stream: Stream, mesh: Mesh, batch_rows: int):
        self._stream = stream
        self._mesh, self._places = mesh, batch_places(mesh)
        self._rows, self._own = batch_rows, np.array(own_rows(mesh, batch_rows))

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> TrainBatch:
        batch = next(self._stream)
        condition = batch.labels if batch.text is None else batch.text
        check_tokens(batch.tokens.kinds.shape[1], self._mesh)
        own = TrainBatch(batch.tokens, condition, batch.present)
        return TrainBatch(*(jax.tree.map(lambda x, to=to: self._laid(x, to), x) for x, to in zip(own, self._places)))

    def state(self) -> dict[str, Any]:
        """The place in the data after the last batch handed out, of all processes together; each must ask for it."""
        return self._stream.merged(gathered(self._stream.state()))

    def bad_samples(self) -> int:
        """Different samples that could not be used, of all processes together; each must ask for it."""
        return len({name for names in gathered(list(self._stream.bad)) for name in names})

    def _laid(self, own: np.ndarray, place: NamedSharding) -> jax.Array:
        """Rows of this process, with all of their tokens, as its part of the array of all."""

        def part(index: Any) -> np.ndarray:
            wanted = np.arange(self._rows)[index[0]]
            return own[np.searchsorted(self._own, wanted)][(slice(None), *index[1:])]

        return jax.make_array_from_callback((self._rows, *own.shape[1:]), place, part)
