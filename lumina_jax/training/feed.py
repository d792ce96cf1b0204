"""Batches on the devices of the mesh, from rows made on the host.

In: a stream of the rows that this process needs, because its devices hold at least a part of them. Out: the batch as
arrays of the whole mesh. Where several processes need the same row, each of them makes it, with the same result.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lumina_jax.parallel.mesh import batch_sharding, check_tokens
from lumina_jax.parallel.multihost import gathered
from lumina_jax.training.step import TrainBatch, batch_shardings


@runtime_checkable
class RowStream(Protocol):
    """Makes the rows of batches, as `data.batches.Stream` does."""

    bad: dict[str, str]

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...

    def merged(self, states: list[dict[str, Any]]) -> dict[str, Any]: ...


def local_rows(mesh: Mesh, batch_rows: int) -> list[int]:
    """The rows of a batch of which the devices of this process hold at least a part, in ascending order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_rows,))
    return sorted({row for index in indices.values() if index for row in range(batch_rows)[index[0]]})


class Feed:
    """An endless iterator of batches on the devices, one for each batch of `stream`.

    Args:
      stream: makes `local_rows(mesh, batch_rows)`, in that order.
      batch_rows: the number of rows of the whole batch.
    """

    def __init__(self, stream: RowStream, mesh: Mesh, batch_rows: int):
        self._stream = stream
        self._mesh, self._shardings = mesh, batch_shardings(mesh)
        self._rows, self._local_rows = batch_rows, np.array(local_rows(mesh, batch_rows))

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> TrainBatch:
        batch = next(self._stream)
        condition = batch.labels if batch.text is None else batch.text
        check_tokens(batch.tokens.kinds.shape[1], self._mesh)
        local = TrainBatch(batch.tokens, condition, batch.present)
        pairs = zip(local, self._shardings)
        return TrainBatch(*(jax.tree.map(lambda x, to=to: self._on_devices(x, to), part) for part, to in pairs))

    def state(self) -> dict[str, Any]:
        """The position in the data after the last batch, of all processes together. Each process must call this."""
        return self._stream.merged(gathered(self._stream.state()))

    def bad_samples(self) -> int:
        """The number of different samples that could not be used in any process. Each process must call this."""
        return len({name for names in gathered(list(self._stream.bad)) for name in names})

    def _on_devices(self, rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """The rows of this process, with all of their tokens, as its part of the array of the whole batch."""

        def part(index: Any) -> np.ndarray:
            wanted = np.arange(self._rows)[index[0]]
            return rows[np.searchsorted(self._local_rows, wanted)][(slice(None), *index[1:])]

        return jax.make_array_from_callback((self._rows, *rows.shape[1:]), sharding, part)
