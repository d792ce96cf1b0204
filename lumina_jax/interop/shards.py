"""Merging the checkpoints of several tensor-parallel ranks.

In: the tensors of each rank, `consolidated.00-of-0N`, `consolidated.01-of-0N`, ... Out: merged tensors, by the rules of
fairscale, which the released code uses: ColumnParallelLinear shards weight and bias along the outputs,
RowParallelLinear shards the weight along the inputs, and ParallelEmbedding shards the table along the width. Each rank
has the gates of its heads in the text attention. All other tensors are replicated.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Tensors

OUTPUTS, INPUTS = 0, 1
SHARDED_AXES = {
    r"attention\.(wq|wk|wv|wk_y|wv_y)\.weight|attention\.gate": OUTPUTS,
    r"attention\.wo\.weight": INPUTS,
    r"feed_forward\.(w1|w3)\.weight": OUTPUTS,
    r"feed_forward\.w2\.weight": INPUTS,
    r"(adaLN_modulation\.1|x_embedder|cap_embedder\.1|t_embedder\.mlp\.0|final_layer\.linear)\.(weight|bias)": OUTPUTS,
    r"t_embedder\.mlp\.2\.weight": INPUTS,
    r"y_embedder\.embedding_table\.weight": 1,
}
"""The axis along which tensors are sharded, by the end of their name."""
QK_NORM = re.compile(r"(^|\.)(q|k|ky)_norm\.")


def sharded_axis(name: str) -> int | None:
    """Return the axis along which the ranks shard a tensor, or None if it is replicated."""
    return next((axis for pattern, axis in SHARDED_AXES.items() if re.search(rf"(^|\.)({pattern})$", name)), None)


class MergedShards(Tensors):
    """The tensors of a model whose ranks saved `shards`, in order; each is merged on access.

    Raises:
      ValueError: the shards do not belong together; or the model has QK-norm, which normalises over the heads of one
        rank, so that no model without tensor parallelism computes the same; or replicated tensors differ.
    """

    def __init__(self, shards: Sequence[Tensors]):
        self._shards = list(shards)
        first = self._shards[0]
        for number, shard in enumerate(self._shards):
            if other := sorted(set(shard) ^ set(first)):
                raise ValueError(
                    f"all shards must have the same tensors, but shard {number} differs in {listed(other)}; copy it "
                    "again"
                )
        if len(shards) == 1:
            return
        if normed := [name for name in first if QK_NORM.search(name)]:
            raise ValueError(
                f"a model with QK-norm that was trained on {len(shards)} ranks cannot be converted exactly: "
                f"{normed[0]} is a LayerNorm over the heads of one rank, and a LayerNorm over all heads has another "
                "mean and variance; use a checkpoint saved as 00-of-01"
            )
        for name in first:
            self._check(name)

    def __getitem__(self, name: str) -> np.ndarray:
        axis, first = sharded_axis(name), self._shards[0]
        if axis is None or len(self._shards) == 1:
            return first[name]
        whole = np.empty(self.shape(name), self.dtype(name))
        for shard, part in zip(self._shards, np.split(whole, len(self._shards), axis)):
            part[...] = shard[name]
        return whole

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self._shards[0].shape(name), sharded_axis(name)
        if axis is None:
            return shape
        return (*shape[:axis], shape[axis] * len(self._shards), *shape[axis + 1 :])

    def dtype(self, name: str) -> np.dtype:
        return self._shards[0].dtype(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])

    def _check(self, name: str) -> None:
        first, *others = self._shards
        stored = {(shard.shape(name), shard.dtype(name)) for shard in self._shards}
        axis = sharded_axis(name)
        if len(stored) != 1 or (axis is not None and len(first.shape(name)) <= axis):
            found = sorted(f"{list(shape)} {dtype}" for shape, dtype in stored)
            raise ValueError(f"{name} must have the same shape and type in all shards, but has {', '.join(found)}")
        if axis is None and any(shard[name].tobytes() != first[name].tobytes() for shard in others):
            raise ValueError(
                f"{name} must be the same in all shards, but differs; no single model computes what these ranks "
                "computed together, so use a checkpoint saved as 00-of-01"
            )
