"""Checkpoints that several ranks of tensor parallelism saved, made into one.

In: the tensors of each rank, `consolidated.00-of-0N`, `consolidated.01-of-0N`, ... Out: whole tensors, by the rules of
fairscale, which the authors use: ColumnParallelLinear cuts weight and bias along the outputs, RowParallelLinear the
weight along the inputs, ParallelEmbedding the table along the width. The gates of the text attention are those of a
rank's own heads. Everything else every rank has whole.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Tensors

OUTPUTS, INPUTS = 0, 1
CUTS = {
    r"attention\.(wq|wk|wv|wk_y|wv_y)\.weight|attention\.gate": OUTPUTS,
    r"attention\.wo\.weight": INPUTS,
    r"feed_forward\.(w1|w3)\.weight": OUTPUTS,
    r"feed_forward\.w2\.weight": INPUTS,
    r"(adaLN_modulation\.1|x_embedder|cap_embedder\.1|t_embedder\.mlp\.0|final_layer\.linear)\.(weight|bias)": OUTPUTS,
    r"t_embedder\.mlp\.2\.weight": INPUTS,
    r"y_embedder\.embedding_table\.weight": 1,
}
"""The axis along which a tensor of this name (or of one that ends so) is cut."""
QK_NORM = re.compile(r"(^|\.)(q|k|ky)_norm\.")


def cut_axis(name: str) -> int | None:
    """The axis along which the ranks share a tensor; None: each has all of it."""
    return next((axis for pattern, axis in CUTS.items() if re.search(rf"(^|\.)({pattern})$", name)), None)


class MergedShards(Tensors):
    """The whole tensors of a model whose ranks saved `shards`, in their order; merged when they are asked for.

    Raises:
      ValueError: the shards don't belong together; or the model has QK-norm, which spans the heads of one rank only, so
        that no model without tensor parallelism computes the same; or what each rank has whole differs between them.
    """

    def __init__(self, shards: Sequence[Tensors]):
        self._shards = list(shards)
        first = self._shards[0]
        for number, shard in enumerate(self._shards):
            if other := sorted(set(shard) ^ set(first)):
                raise ValueError(f"every shard must have the same tensors, but {number} differs in {listed(other)}")
        if len(shards) == 1:
            return
        if normed := [name for name in first if QK_NORM.search(name)]:
            raise ValueError(
                f"a model with QK-norm that was trained on {len(shards)} ranks cannot be converted exactly: "
                f"{normed[0]} is a LayerNorm over the heads of one rank, and one over all heads has another mean and "
                "variance; only checkpoints saved as 00-of-01 keep their meaning"
            )
        for name in first:
            self._check(name)

    def __getitem__(self, name: str) -> np.ndarray:
        axis, first = cut_axis(name), self._shards[0]
        if axis is None or len(self._shards) == 1:
            return first[name]
        whole = np.empty(self.shape(name), self.dtype(name))
        for shard, place in zip(self._shards, np.split(whole, len(self._shards), axis)):
            place[...] = shard[name]
        return whole

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self._shards[0].shape(name), cut_axis(name)
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
        axis = cut_axis(name)
        if len(stored) != 1 or (axis is not None and len(first.shape(name)) <= axis):
            came = sorted(f"{list(shape)} {dtype}" for shape, dtype in stored)
            raise ValueError(f"{name} must have one shape and type in all shards, but comes in {', '.join(came)}")
        if axis is None and any(shard[name].tobytes() != first[name].tobytes() for shard in others):
            raise ValueError(
                f"{name} must be the same on every rank, but it differs between the shards; no single model computes "
                "what these ranks computed together"
            )
