"""Attention in which neighbouring patches are one key: token merging of keys and values alone (ToDo, arXiv 2402.13573),
or context drop (Lumina-Next, arXiv 2406.18583; the authors' code pools keys after they were turned, as this does).

In: queries, keys and values of the tokens of a sample, and the squares that its patches lie in. Out: attention of each
token to squares instead of patches. A key is the mean of those of its square, after they were turned, so that a logit
is the mean of their logits; it counts as often as the square has patches:

    softmax_g(log n_g + scale q mean_g(k)^T) mean_g(v)

which is attention to all patches where those of a square have equal keys. Markers are keys of their own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.kernels.attention import attend_merged
from lumina_jax.tokens import Grid, Kind


class Groups(NamedTuple):
    """Groups of tokens of a row."""

    tokens: Int[np.ndarray, "g n"]
    """Indices in the row; of a small group, the first again."""
    weights: Float[np.ndarray, "g n"]
    """With which they make a mean; 0 for an index that is there again."""
    sizes: Int[np.ndarray, " g"]


def square_groups(grid: Grid, length: int, side: int) -> Groups:
    """Squares of patches of a frame; at its edges they may be smaller. Markers, and what follows the sample up to
    `length`, are alone."""
    kinds, positions = grid.layout()
    where = np.concatenate([positions[:, 1:2], positions[:, 2:] // side], axis=1)
    alone = kinds != Kind.PATCH
    where[alone] = np.stack([-1 - np.arange(alone.sum())] * 3, axis=1)
    group = np.unique(where, axis=0, return_inverse=True)[1].ravel()
    group = np.concatenate([group, group.max() + 1 + np.arange(length - grid.length)])
    sizes = np.bincount(group)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    within = np.arange(sizes.max())
    members = np.argsort(group, kind="stable")[np.minimum(first[:, None] + within, length - 1)]
    is_member = within < sizes[:, None]
    return Groups(np.where(is_member, members, members[:, :1]), is_member / sizes[:, None], sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merging:
    """Which tokens of a row are one key, and when."""

    is_on: Bool[Array, ""] | Bool[Array, " b"]
    """Now, for all rows or for each."""
    groups: Groups
    row: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    """The mesh axes over which the tokens of a row are divided."""

    def attended(
        self,
        whole: Callable[[], Float[Array, "b l h d"]],
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        segment_ids: Int[Array, "b l"],
        scale: float,
    ) -> Float[Array, "b l h d"]:
        """Attention to groups where they are on, and else what `whole` returns."""

        def merged() -> Float[Array, "b l h d"]:
            ids, sizes = self._whole(segment_ids)[:, self.groups.tokens[:, 0]], jnp.asarray(self.groups.sizes)
            keys, values = self._means(k), self._means(v)
            return attend_merged(q, keys, values, segment_ids=segment_ids, key_ids=ids, sizes=sizes, scale=scale)

        def of_rows() -> Float[Array, "b l h d"]:
            return jnp.where(self.is_on[:, None, None, None], merged(), whole())

        if not self.is_on.ndim:
            return jax.lax.cond(self.is_on, merged, whole)
        # Both are computed only where the times of rows lie on either side.
        count = jnp.any(self.is_on).astype(jnp.int32) + jnp.all(self.is_on)
        return jax.lax.switch(count, [whole, of_rows, merged])

    def _means(self, x: Float[Array, "b l k d"]) -> Float[Array, "b g k d"]:
        members = self._whole(x)[:, self.groups.tokens].astype(jnp.float32)
        return jnp.einsum("gn,bgnkd->bgkd", self.groups.weights, members).astype(x.dtype)

    def _whole(self, x: Array) -> Array:
        """The tokens of all devices of a row."""
        return jax.lax.all_gather(x, self.row, axis=1, tiled=True) if self.row else x
