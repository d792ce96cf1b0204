"""One attention to compute: its sizes, its segments, and the least time that the matrix units need.

Not causal. A row holds one sample, or `samples` of equal length packed one after the other and told apart by segment
ids, each with a text.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lumina_jax.chips import Chip

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Matrix products of queries x keys x head width: q k^T and p v; then again q k^T, do v^T, p^T do, ds^T q and ds k."""


@dataclass(frozen=True)
class Problem:
    """Sizes of one call.

    Attributes:
      tokens: length of a row.
      width: head width.
      samples, length: the samples of a row, and the tokens of each; the rest of the row is padding.
      text: text tokens of each sample, attended to as well; 0: none.
      backward: the gradients of all inputs too.
      text_heads: heads that attend to the text in our kernel, the first ones; 0: all.
    """

    tokens: int
    width: int
    heads: int = 32
    samples: int = 1
    length: int = 0
    text: int = 0
    backward: bool = False
    text_heads: int = 0

    def __post_init__(self) -> None:
        if min(self.tokens, self.width, self.heads, self.samples) < 1 or self.text < 0 or self.length < 0:
            raise ValueError(f"tokens, width, heads and samples must be positive and text not negative, but got {self}")
        if not 0 <= self.text_heads <= self.heads:
            raise ValueError(f"{self.text_heads=} must be at most {self.heads=}; 0 means all")
        if not self.length and self.samples > 1:
            raise ValueError(f"{self.samples=} need a length each")
        if self.samples * self.sample_length > self.tokens:
            raise ValueError(
                f"{self.samples} samples of {self.length} tokens must fit in {self.tokens} tokens; "
                f"give at least {self.samples * self.length}"
            )

    @property
    def sample_length(self) -> int:
        return self.length or self.tokens

    @property
    def is_packed(self) -> bool:
        """Whether some tokens are hidden from others, so that a kernel without segment ids would be wrong."""
        return self.sample_length < self.tokens

    @property
    def text_tokens(self) -> int:
        """Text tokens of a row."""
        return self.samples * self.text

    def segment_ids(self, padded_to: int | None = None) -> Int[np.ndarray, " l"]:
        """1, 1, ..., 2, 2, ...; 0 is padding."""
        ids = np.zeros(padded_to or self.tokens, np.int32)
        ids[: self.samples * self.sample_length] = np.repeat(np.arange(1, self.samples + 1), self.sample_length)
        return ids

    def text_segment_ids(self, padded_to: int | None = None) -> Int[np.ndarray, " t"]:
        ids = np.zeros(padded_to or self.text_tokens, np.int32)
        ids[: self.text_tokens] = np.repeat(np.arange(1, self.samples + 1), self.text)
        return ids

    def floor_cycles(self, chip: Chip, *, backward: bool | None = None) -> float:
        """Cycles of a core whose matrix units compute only the products of visible pairs, and never wait.

        Head widths below the unit's width cost as much as the unit's width. `backward`: of the backward pass alone
        (True), of the forward pass alone (False), or of what the problem asks for (None).
        """
        products = {
            None: FORWARD_PRODUCTS + BACKWARD_PRODUCTS * self.backward,
            False: FORWARD_PRODUCTS,
            True: BACKWARD_PRODUCTS,
        }[backward]
        pairs = self.samples * self.sample_length * (self.sample_length + self.text)
        return chip.product_cycles(products * self.heads * pairs * chip.padded(self.width))

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens"]
        if self.is_packed:
            parts.append(f"packed {self.samples}x{self.sample_length}")
        if self.text:
            some = f" for {self.text_heads} heads" if self.text_heads else ""
            parts.append(f"{self.text} text tokens{some}")
        parts += [f"{self.heads} heads of {self.width}", "forward + backward" if self.backward else "forward"]
        return ", ".join(parts)
