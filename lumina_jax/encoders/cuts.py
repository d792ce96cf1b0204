"""What an encoder does not read of captions: ends that it cuts, and pitches that are not written as it knows them.

In: an encoder and captions. Out: a line for each kind, with how many there are and one of them, to be said once.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lumina_jax.encoders.phonemes import PhonemeEncoder, is_nearly_pitch

MOST = 4096
"""Captions that are looked at; of more, as many evenly spread ones."""
SHOWN = 60


@runtime_checkable
class Cutting(Protocol):
    """An encoder that knows what it cuts."""

    def is_cut(self, caption: str) -> bool: ...


def notices(encoder: Any, captions: Sequence[str], max_tokens: int) -> list[str]:
    """What is worth saying about these captions; nothing of an encoder that does not know what it cuts.

    Args:
      max_tokens: the setting, as the message names it.
    """
    looked_at = captions if len(captions) <= MOST else captions[:: -(-len(captions) // MOST)]
    of_all = f"of {len(looked_at)} captions" + (" looked at" if len(looked_at) < len(captions) else "")
    found = []
    cut = [caption for caption in looked_at if encoder.is_cut(caption)] if isinstance(encoder, Cutting) else []
    if cut:
        longer = "is longer" if len(cut) == 1 else "are longer"
        rule = f"than text.max_tokens={max_tokens}, and the rest is cut"
        found.append(f"{len(cut)} {of_all} {longer} {rule}, such as {_shown(cut[0])}")
    near = [caption for caption in looked_at if is_nearly_pitch(caption)] if isinstance(encoder, PhonemeEncoder) else []
    if near:
        found.append(
            f"{len(near)} {of_all} would be spoken as it stands, tag and all, such as {_shown(near[0])}; a pitch is "
            "written '[180 Hz] ' before the text"
        )
    return found


def _shown(caption: str) -> str:
    return repr(caption if len(caption) <= SHOWN else f"{caption[:SHOWN]}...")
