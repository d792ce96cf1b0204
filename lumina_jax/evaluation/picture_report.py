"""Drawn pictures against true ones as sets, and against their captions, for the report of a run.

In: drawn and true pictures of the same captions. Out: findings with the distances of the two sets, how many drawn
pictures are nearest to the true one of their caption by features of a network, and how well pictures fit their captions
by CLIP.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from lumina_jax.evaluation.alignment import caption_features, mean_alignment
from lumina_jax.evaluation.features import BATCH, FeatureNetwork, NetworkName, feature_network, features
from lumina_jax.evaluation.finding import Finding
from lumina_jax.evaluation.neighbours import DENSITY_NEIGHBOURS, squared_distances
from lumina_jax.evaluation.retrieval import distractor_report, match_report
from lumina_jax.evaluation.set_comparison import compare_sets

LEAST = DENSITY_NEIGHBOURS + 1
"""Pictures that a report of sets needs."""
Pictures = Sequence[UInt8[np.ndarray, "h w 3"]]


class PictureJudge:
    """Compares drawn pictures with true ones as sets, and with their captions; see `Judge` in modalities.

    Args:
      network: by whose features sets are compared; "none": they are not.
      weights: of the network; None: those of the package that only efficientnet has.
      clip: a folder of a CLIP, by which pictures are compared with their captions; None: they are not.

    Raises:
      ValueError: weights are missing, damaged, or of another network. If only the package of the default network is
        missing, the report says so instead.
    """

    def __init__(self, network: NetworkName | Literal["none"], weights: Path | None, clip: Path | None):
        self._network, self._problem, self._folder = None, "", clip
        try:
            self._network = None if network == "none" else feature_network(network, weights)
        except ValueError as error:
            if network != "efficientnet" or weights is not None:
                raise
            self._problem = f"  pictures are not compared as sets: {error}"
        self._clip = None if clip is None else feature_network("clip", clip)

    def __call__(
        self,
        prompts: Sequence[str],
        drawn: Sequence[UInt8[np.ndarray, "1 h w 3"]],
        true: Sequence[UInt8[np.ndarray, "1 h w 3"]],
        is_held_out: Bool[np.ndarray, " n"],
    ) -> Iterator[Finding]:
        pictures, references = [sample[0] for sample in drawn], [sample[0] for sample in true]
        if self._problem:
            yield Finding(self._problem)
        if self._network is not None and len(drawn) >= LEAST:
            yield from set_report(prompts, pictures, references, is_held_out, self._network)
        if self._clip is not None and self._folder is not None:
            yield caption_report(prompts, pictures, references, self._clip, self._folder)


def set_report(
    prompts: Sequence[str],
    drawn: Pictures,
    true: Pictures,
    is_held_out: Bool[np.ndarray, " n"],
    network: FeatureNetwork,
) -> Iterator[Finding]:
    """Yield the distances of the sets, and how many drawn pictures find their own true one among all of them."""
    found, wanted = picture_features(network, drawn), picture_features(network, true)
    yield Finding(f"  by features of {network.name}:")
    blocks = squared_distances(found.astype(np.float64), wanted.astype(np.float64))
    between = np.concatenate([rows for _, rows in blocks])
    reports = (
        match_report(between.argmin(axis=1), is_held_out, key="nearest_by_features"),
        distractor_report(between, prompts, is_held_out),
    )
    for text, numbers in itertools.chain(*reports):
        yield Finding(f"  {text}", numbers)
    distances = compare_sets(wanted, found)
    first, *others = distances.lines()
    values = {name: value for name, value in distances.as_json().items() if isinstance(value, float)}
    yield Finding(f"  {first}", values)
    yield from (Finding(f"  {line}") for line in others)


def caption_report(
    prompts: Sequence[str], drawn: Pictures, true: Pictures, clip: FeatureNetwork, folder: Path
) -> Finding:
    """Return how well pictures fit their captions by the CLIP in `folder`, with the standard error of the mean.

    Args:
      clip: its image encoder.

    Raises:
      ValueError: a file of the CLIP is missing or unreadable.
    """
    words, parts, numbers = caption_features(folder, prompts), [], {}
    for name, pictures in (("drawn", drawn), ("true", true)):
        mean, error = mean_alignment(picture_features(clip, pictures), words)
        numbers[f"alignment_{name}"] = mean
        parts.append(f"{name} pictures {mean:.2f}{'' if error is None else f' (standard error {error:.2g})'}")
    return Finding(f"  fit to captions by CLIP, of 100: {', '.join(parts)}", numbers)


def picture_features(network: FeatureNetwork, pictures: Pictures) -> Float[np.ndarray, "n d"]:
    """Return the features of pictures in memory."""
    prepared = (network.prepare(Image.fromarray(picture)) for picture in pictures)
    return features(network, prepared, batch=min(BATCH, len(pictures)))
