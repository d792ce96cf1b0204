"""What every implementation of attention is given: text with its gates, and the rule that says who sees whom."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["auto", "reference", "xla", "pallas"]

HIDDEN = -1e30
"""The logit of what may not be seen, and the logarithm of the denominator of a query that sees nothing: far below
every other logit, and finite."""


class GatedText(NamedTuple):
    """Text to attend to.

    Attributes:
      gate: one value a head, before its tanh.
      segment_ids: the segment that each text token belongs to.
      queries: the queries that look at the text; None: those of the self-attention.
    """

    keys: Float[Array, "b t k d"]
    values: Float[Array, "b t k d"]
    gate: Float[Array, " h"]
    segment_ids: Int[Array, "b t"]
    queries: Float[Array, "b l h d"] | None = None


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
    ) -> Float[Array, "b l h d"]: ...


def same_segment(queries: Int[Array, "b l"], keys: Int[Array, "b n"]) -> Bool[Array, "b l n"]:
    """Whether a query sees a key: both are of one segment, which is not padding (0)."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)
