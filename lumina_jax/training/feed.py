"""Batches of the host, laid on the mesh.

In: a stream of rows made by this process. Out: the same rows as arrays of the whole mesh, which every process holds a
part of.
"""

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from lumina_jax.parallel.mesh import check_tokens, row_shard
from lumina_jax.training.step import TrainBatch, batch_places


class Stream(Protocol):
    """What makes rows: `data.batches.Stream`, or anything like it."""

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...


class Feed:
    """An endless iterator of batches on the devices, one for each batch of `stream`.

    The stream makes the rows of the share that `parallel.mesh.row_shard` names for this process.
    """

    def __init__(self, stream: Stream, mesh: Mesh):
        self._stream = stream
        self._mesh = mesh
        self._places = batch_places(mesh)
        self._shares = row_shard(mesh)[1]

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> TrainBatch:
        batch = next(self._stream)
        condition = batch.labels if batch.text is None else batch.text
        local = TrainBatch(batch.tokens, condition, batch.present)
        check_tokens(batch.tokens.kinds.shape[1], self._mesh)
        return TrainBatch(*(jax.tree.map(lambda x, to=to: self._laid(x, to), x) for x, to in zip(local, self._places)))

    def _laid(self, rows: Any, place: Any) -> jax.Array:
        """This process's rows, with all of their tokens, as a part of all rows."""
        shape = (len(rows) * self._shares, *rows.shape[1:])
        return jax.make_array_from_process_local_data(place, rows, shape)

    def state(self) -> dict[str, Any]:
        """The place in the data after the last batch handed out."""
        return self._stream.state()
