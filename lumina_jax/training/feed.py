"""Batches of the host, laid on the mesh.

In: a stream of rows made by this process. Out: the same rows as arrays of the whole mesh, which every process holds a
part of.
"""

from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from lumina_jax.parallel.mesh import batch_sharding
from lumina_jax.training.step import TrainBatch


@runtime_checkable
class Stream(Protocol):
    """What makes rows: `data.batches.Stream`, or anything like it."""

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...


class Feed:
    """An endless iterator of batches on the devices, one for each batch of `stream`."""

    def __init__(self, stream: Stream, mesh: Mesh):
        self._stream = stream
        self._sharding = batch_sharding(mesh)

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> TrainBatch:
        batch = next(self._stream)
        condition = batch.labels if batch.text is None else batch.text
        local = TrainBatch(batch.tokens, condition, batch.present)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._sharding, x), local)

    def state(self) -> dict[str, Any]:
        """The place in the data after the last batch handed out."""
        return self._stream.state()
