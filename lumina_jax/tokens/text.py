"""Features of caption tokens, packed like the tokens of the samples that they describe.

In: the features of each caption. Out: rows of a batch, told apart by the same segment ids as `Tokens`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lumina_jax.tokens.patchify import AnyArray


class TextFeatures(NamedTuple):
    """The captions of a batch. `segment_ids` is 0 at padding, else the number of the token's sample in its row, from
    1."""

    features: Float[AnyArray, "b t c"]
    segment_ids: Int[AnyArray, "b t"]


def pack_text(rows: Sequence[Sequence[Float[np.ndarray, "_ c"]]], row_tokens: int) -> TextFeatures:
    """The captions of each row one after another, as segments 1, 2, ...: [rows, row_tokens, c].

    Raises:
      ValueError: there is no caption at all, or the captions of a row exceed `row_tokens`.
    """
    widths = {caption.shape[1] for row in rows for caption in row}
    if len(widths) != 1:
        raise ValueError(f"the captions of a batch must have one width, but have {sorted(widths) or 'no captions'}")
    features = np.zeros((len(rows), row_tokens, widths.pop()), np.float32)
    segment_ids = np.zeros((len(rows), row_tokens), np.int32)
    for index, row in enumerate(rows):
        ends = np.cumsum([len(caption) for caption in row], dtype=int)
        if row and ends[-1] > row_tokens:
            raise ValueError(f"the captions of row {index} have {ends[-1]} tokens, but {row_tokens=}; raise it")
        for segment, (caption, end) in enumerate(zip(row, ends), start=1):
            features[index, end - len(caption) : end] = caption
            segment_ids[index, end - len(caption) : end] = segment
    return TextFeatures(features, segment_ids)
