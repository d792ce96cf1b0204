"""Warnings about captions that an encoder truncates, or whose pitch it does not recognise.

In: an encoder and captions. Out: one line for each problem, with the number of captions concerned and an example.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lumina_jax.encoders.phonemes import PhonemeEncoder, is_nearly_pitch

MAX_CHECKED = 4096
"""At most this many captions are checked, evenly spaced among all."""
MAX_CHARACTERS = 60
"""Longer captions are shortened in a warning."""


@runtime_checkable
class DetectsTruncation(Protocol):
    """An encoder that can tell whether it truncates a caption."""

    def is_truncated(self, caption: str) -> bool: ...


def caption_warnings(encoder: Any, captions: Sequence[str], max_tokens: int) -> list[str]:
    """Return the warnings about these captions; there are none if the encoder cannot detect truncation.

    Args:
      max_tokens: the setting `text.max_tokens`, for the message.
    """
    checked = captions if len(captions) <= MAX_CHECKED else captions[:: -(-len(captions) // MAX_CHECKED)]
    total = f"of {len(checked)} captions" + (" checked" if len(checked) < len(captions) else "")
    found = []
    detects = isinstance(encoder, DetectsTruncation)
    truncated = [caption for caption in checked if encoder.is_truncated(caption)] if detects else []
    if truncated:
        longer = "is longer" if len(truncated) == 1 else "are longer"
        rule = f"than text.max_tokens={max_tokens} and will be truncated"
        found.append(f"{len(truncated)} {total} {longer} {rule}, such as {_shortened(truncated[0])}")
    near = [caption for caption in checked if is_nearly_pitch(caption)] if isinstance(encoder, PhonemeEncoder) else []
    if near:
        found.append(
            f"{len(near)} {total} would be spoken with the pitch read out as text, such as {_shortened(near[0])}; "
            "write a pitch as '[180 Hz] ' before the text"
        )
    return found


def _shortened(caption: str) -> str:
    return repr(caption if len(caption) <= MAX_CHARACTERS else f"{caption[:MAX_CHARACTERS]}...")
