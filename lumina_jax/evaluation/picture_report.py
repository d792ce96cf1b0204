"""Drawn pictures against true ones as sets, and against their captions, for the report of a run.

In: drawn and true pictures of the same captions. Out: lines with the distances of the two sets, how many drawn pictures
are nearest to the true one of their caption by features of a network, and how well pictures fit their captions by CLIP.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from lumina_jax.evaluation.alignment import caption_features, mean_alignment
from lumina_jax.evaluation.features import BATCH, FeatureNetwork, features
from lumina_jax.evaluation.neighbours import DENSITY_NEIGHBOURS, squared_distances
from lumina_jax.evaluation.retrieval import match_report
from lumina_jax.evaluation.set_comparison import compare_sets

LEAST = DENSITY_NEIGHBOURS + 1
"""Pictures that a report of sets needs."""
Pictures = Sequence[UInt8[np.ndarray, "h w 3"]]


def set_report(
    drawn: Pictures, true: Pictures, is_held_out: Bool[np.ndarray, " n"], network: FeatureNetwork
) -> Iterator[str]:
    """Yield the distances of the sets, and how many drawn pictures find their own true one among all of them."""
    found, wanted = picture_features(network, drawn), picture_features(network, true)
    yield f"  by features of {network.name}:"
    blocks = squared_distances(found.astype(np.float64), wanted.astype(np.float64))
    matches = np.concatenate([rows.argmin(axis=1) for _, rows in blocks])
    lines = [*match_report(matches, is_held_out), *compare_sets(wanted, found).lines()]
    yield from (f"  {line}" for line in lines)


def caption_report(
    prompts: Sequence[str], drawn: Pictures, true: Pictures, clip: FeatureNetwork, folder: Path
) -> Iterator[str]:
    """Yield how well pictures fit their captions by the CLIP in `folder`, with the standard error of the mean.

    Args:
      clip: its image encoder.

    Raises:
      ValueError: a file of the CLIP is missing or unreadable.
    """
    words, parts = caption_features(folder, prompts), []
    for name, pictures in (("drawn", drawn), ("true", true)):
        mean, error = mean_alignment(picture_features(clip, pictures), words)
        parts.append(f"{name} pictures {mean:.2f}{'' if error is None else f' (standard error {error:.2g})'}")
    yield f"  fit to captions by CLIP, of 100: {', '.join(parts)}"


def picture_features(network: FeatureNetwork, pictures: Pictures) -> Float[np.ndarray, "n d"]:
    """Return the features of pictures in memory."""
    prepared = (network.prepare(Image.fromarray(picture)) for picture in pictures)
    return features(network, prepared, batch=min(BATCH, len(pictures)))
