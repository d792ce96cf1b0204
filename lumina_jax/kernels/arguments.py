"""What every implementation of attention is given: text with its gates, and the rule that says who sees whom."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["auto", "reference", "xla", "pallas", "cudnn"]

HIDDEN = -1e30
"""The logit of what may not be seen, and the logarithm of the denominator of a query that sees nothing: far below
every other logit, and finite."""


def may_be_kernels(implementation: Implementation) -> bool:
    """Whether kernels of TPUs may run, where they can."""
    return implementation in ("auto", "pallas")


class GatedText(NamedTuple):
    """Text to attend to, by all heads or by the first ones.

    Attributes:
      gate: one value, before its tanh, for each of the heads that look at the text.
      segment_ids: the segment that each text token belongs to.
      queries: the queries that look at the text; None: those of the self-attention.
    """

    keys: Float[Array, "b t k d"]
    values: Float[Array, "b t k d"]
    gate: Float[Array, " g"]
    segment_ids: Int[Array, "b t"]
    queries: Float[Array, "b l g d"] | None = None

    def queries_among(self, q: Float[Array, "b l h d"]) -> Float[Array, "b l g d"]:
        """The queries that look at the text, where those of the self-attention are `q`."""
        return q[:, :, : self.gate.shape[0]] if self.queries is None else self.queries

    def added_to(self, out: Float[Array, "b l h d"], seen: Float[Array, "b l g d"]) -> Float[Array, "b l h d"]:
        """The output of self-attention plus what the heads have seen of the text, through their gates."""
        return out + _extended(jnp.tanh(self.gate).astype(out.dtype)[:, None] * seen, 2, out.shape[2])

    def for_heads(self, heads: int) -> "GatedText":
        """The same for a function that takes a gate for each of `heads` heads: those of the others are 0."""
        open_heads = self.gate.shape[0]
        if open_heads == heads:
            return self
        key_heads = self.keys.shape[2] * heads // open_heads
        return self._replace(
            keys=_extended(self.keys, 2, key_heads),
            values=_extended(self.values, 2, key_heads),
            gate=_extended(self.gate, 0, heads),
            queries=None if self.queries is None else _extended(self.queries, 2, heads),
        )


@runtime_checkable
class Attend(Protocol):
    """Attention within segments, plus gated attention to text: `attention.attend` with a back end, or such a function
    for the tokens of one of several devices."""

    def __call__(
        self,
        q: Float[Array, "b l h d"],
        k: Float[Array, "b l k d"],
        v: Float[Array, "b l k d"],
        *,
        segment_ids: Int[Array, "b l"],
        scale: float,
        text: GatedText | None = None,
        segments: int | None = None,
    ) -> Float[Array, "b l h d"]: ...


def same_segment(queries: Int[Array, "b l"], keys: Int[Array, "b n"]) -> Bool[Array, "b l n"]:
    """Whether a query sees a key: both are of one segment, which is not padding (0)."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)


def _extended(x: Array, axis: int, size: int) -> Array:
    """Zeros after the values along an axis."""
    missing = size - x.shape[axis]
    return x if not missing else jnp.pad(x, [(0, missing if index == axis else 0) for index in range(x.ndim)])
