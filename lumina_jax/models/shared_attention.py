"""Attention that two samples of a row share: the first also sees the second, its reference (StyleAligned, Hertz et al.,
arXiv 2312.02133, section 4).

In: queries, keys and values of both samples, which are segments 1 and 2 of their row. Out: attention of the first
sample to itself and to its reference, softmax(q' [k' k_r]^T / sqrt(d)) [v v_r], where q' and k' have the mean and the
deviation over tokens of the reference's (AdaIN, arXiv 1703.06868, equation 8), for each head and channel. The reference
sees itself alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernels.arguments import Implementation
from lumina_jax.kernels.attention import attend_text

SAMPLE, REFERENCE = 1, 2
"""The segments of a row."""
LEAST_VARIANCE = 1e-5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharing:
    """How samples share attention with their references."""

    strength: Float[Array, " b"]
    """Of each row, the share of the attention to both in the result; the rest is attention to the sample alone."""
    row: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    """The mesh axes over which the tokens of a row are divided."""
    implementation: Implementation = dataclasses.field(metadata={"static": True})

    def matched(self, x: Float[Array, "b l h d"], segment_ids: Int[Array, "b l"]) -> Float[Array, "b l h d"]:
        """Values of the sample with the mean and the deviation of its reference; those of the reference as they are."""
        x32 = x.astype(jnp.float32)
        is_sample = (segment_ids == SAMPLE)[:, :, None, None]
        mean, deviation = self._statistics(x32, segment_ids, SAMPLE)
        wanted_mean, wanted_deviation = self._statistics(x32, segment_ids, REFERENCE)
        found = (x32 - mean) / deviation * wanted_deviation + wanted_mean
        return jnp.where(is_sample, found, x32).astype(x.dtype)

    def attended(
        self,
        alone: Float[Array, "b l h d"],
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        segment_ids: Int[Array, "b l"],
    ) -> Float[Array, "b l h d"]:
        """`alone`, of which attention to the sample and its reference takes a part, for the tokens of the sample."""
        every_id = self._whole(segment_ids)
        both = attend_text(
            q,
            self._whole(k),
            self._whole(v),
            segment_ids=(segment_ids == SAMPLE).astype(jnp.int32),
            text_ids=((every_id == SAMPLE) | (every_id == REFERENCE)).astype(jnp.int32),
            implementation=self.implementation,
        )
        strength = self.strength.astype(alone.dtype)[:, None, None, None]
        is_sample = (segment_ids == SAMPLE)[:, :, None, None]
        return jnp.where(is_sample, (1 - strength) * alone + strength * both, alone)

    def _statistics(
        self, x: Float[Array, "b l h d"], segment_ids: Int[Array, "b l"], segment: int
    ) -> tuple[Float[Array, "b 1 h d"], Float[Array, "b 1 h d"]]:
        """Mean and deviation over the tokens of a segment."""
        member = (segment_ids == segment).astype(jnp.float32)[:, :, None, None]
        count = self._sum(member)
        mean = self._sum(member * x) / count
        variance = self._sum(member * (x - mean) ** 2) / count
        return mean, jnp.sqrt(variance + LEAST_VARIANCE)

    def _sum(self, x: Float[Array, "b l h d"]) -> Float[Array, "b 1 h d"]:
        total = jnp.sum(x, axis=1, keepdims=True)
        return jax.lax.psum(total, self.row) if self.row else total

    def _whole(self, x: Array) -> Array:
        """The tokens of all devices of a row."""
        return jax.lax.all_gather(x, self.row, axis=1, tiled=True) if self.row else x
