"""The samples of a source that are held out of training, and those at which a model is measured.

In: a source. Out: a part of it. Whether a sample is held out depends on its name and on `data.held_out` alone, so that
other samples may be added, removed or sorted, and all samples of one file, such as the scenes of a film, lie on one
side.
"""

import hashlib
from collections.abc import Sequence

from lumina_jax.data.example import BadSample, Record, Source, combined, contents
from lumina_jax.data.order import shuffled

ORDER = "measured"
"""The key of the order in which samples are chosen to be measured."""


def digest_of_name(name: str) -> int:
    """A number of 64 bits that stands for the name of a sample."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=8).digest(), "little")


class ChosenSamples:
    """The samples of a source at these indices, in this order; `about` says which they are."""

    def __init__(self, source: Source, indices: Sequence[int], about: str) -> None:
        self._source, self._indices, self._about = source, tuple(indices), about
        self.contents = combined([contents(source)], about)._replace(samples=len(self))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record | BadSample:
        return self._source[self._indices[index]]

    def __repr__(self) -> str:
        return f"ChosenSamples({self._source!r}, {self._about!r})"


def divided(source: Source, share: float) -> tuple[ChosenSamples, ChosenSamples]:
    """The samples to train on, and those held out: about `share` of the names. Every record is read once.

    Raises:
      ValueError: one of the two has no sample.
    """
    are_held_out = [digest_of_name(source[index].name) < share * 2.0**64 for index in range(len(source))]
    held_out = [index for index, is_held_out in enumerate(are_held_out) if is_held_out]
    if not 0 < len(held_out) < len(source):
        raise ValueError(
            f"data.held_out={share} holds out {len(held_out)} of the {len(source)} samples of {source!r}; choose a "
            "share that leaves samples on both sides"
        )
    trained_on = [index for index, is_held_out in enumerate(are_held_out) if not is_held_out]
    return ChosenSamples(source, trained_on, f"all but {share}"), ChosenSamples(source, held_out, f"{share}")


def spread_over(source: Source, count: int) -> Source:
    """At most `count` samples from all over a source: the first of a fixed random order."""
    number = min(count, len(source))
    return ChosenSamples(source, [shuffled(index, len(source), ORDER) for index in range(number)], f"{number}")
