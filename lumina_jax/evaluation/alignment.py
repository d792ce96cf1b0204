"""How well pictures show what their captions say, by the features that CLIP gives both.

In: features of pictures [n e] and of their captions [n e]. Out: 100 max(cosine, 0) of each pair, the CLIP score of
Hessel et al., arXiv 2104.08718, with the factor 100 that is usual instead of their 2.5.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.clip_image import ClipCaption, load_clip_caption
from lumina_jax.encoders.tokenizer import CaptionTokenizer

BATCH = 32


def alignment(pictures: Float[np.ndarray, "n e"], captions: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " n"]:
    """Return the score of each picture with its caption, from 0 to 100."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (pictures, captions))
    return 100 * np.maximum((a * b).sum(axis=1), 0)


def mean_alignment(
    pictures: Float[np.ndarray, "n e"], captions: Float[np.ndarray, "n e"]
) -> tuple[float, float | None]:
    """Return the mean score and its standard error, which one picture does not have."""
    scores = alignment(pictures, captions)
    return float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None


def caption_features(folder: Path, captions: Sequence[str]) -> Float[np.ndarray, "n e"]:
    """Return the features of captions by the CLIP in `folder`, which are cut to as many tokens as it reads.

    Raises:
      ValueError: a file is missing or unreadable, or there are no captions.
    """
    if not captions:
        raise ValueError("there must be at least one caption")
    network = load_clip_caption(folder)
    token_ids, mask = CaptionTokenizer(folder, network.text.config.positions, None)(captions)
    found = []
    for start in range(0, len(captions), BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), len(captions) - 1)  # the last batch repeats the last caption
        found.append(np.asarray(_features(network, token_ids[rows], mask[rows])))
    return np.concatenate(found)[: len(captions)]


@jax.jit
def _features(network: ClipCaption, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b e"]:
    return network(token_ids, mask)
