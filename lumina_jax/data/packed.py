"""Samples that share rows of tokens, as one batch.

In: prepared samples, row by row. Out: a `Batch` of arrays on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lumina_jax.config import ModalityConfig, ModelConfig
from lumina_jax.data.example import Example
from lumina_jax.tokens import TextFeatures, Tokens, latent_grid, pack, pack_text


@runtime_checkable
class CaptionLookup(Protocol):
    """Encoded captions: `lookup[caption]` is the features [t c] of its tokens, at most `max_tokens` of them."""

    max_tokens: int

    def __getitem__(self, caption: str, /) -> Float[np.ndarray, "t c"]: ...


class Batch(NamedTuple):
    """One batch of this process; s = data.samples_per_row, t = s times the tokens of a caption."""

    tokens: Tokens
    text: TextFeatures | None
    """Captions of a row one after another; segment ids as in `tokens`."""
    labels: Int[np.ndarray, "b s"] | None
    """Labels of label-conditional models; model.classes stands for 'no label'."""
    present: Float[np.ndarray, "b s"]
    """1 where a segment holds a sample, else 0."""


def packed_batch(
    rows: Sequence[Sequence[Example]],
    model: ModelConfig,
    features: CaptionLookup | None,
    *,
    row_tokens: int,
    samples_per_row: int,
) -> Batch:
    """The samples of each row one after another.

    Args:
      features: encoded captions, for text-conditional models; None: the batch carries no text.

    Raises:
      ValueError: the samples of a row have more than `row_tokens` tokens.
    """
    tokens, _ = pack(
        [[example.latents for example in row] for row in rows],
        row_tokens=row_tokens,
        patch_size=[modality.patch_size for modality in model.modalities],
        nextline=model.nextline,
        nextframe=model.nextframe,
        modalities=[[example.modality for example in row] for row in rows] if model.others else None,
        patch_values=model.patch_values,
    )
    present = np.zeros((len(rows), samples_per_row), np.float32)
    for index, row in enumerate(rows):
        present[index, : len(row)] = 1
    if model.conditioning == "label":
        return Batch(tokens, None, _labels(rows, samples_per_row, model.classes), present)
    if features is None:
        return Batch(tokens, None, None, present)
    captions = [[features[example.caption or ""] for example in row] for row in rows]
    return Batch(tokens, pack_text(captions, samples_per_row * features.max_tokens), None, present)


def tokens_of_example(example: Example, model: ModelConfig) -> int:
    """The number of tokens of a sample."""
    return tokens_of_extent(example.latents.shape[:3], model, model.modalities[example.modality])


def tokens_of_extent(extent: tuple[int, ...], model: ModelConfig, modality: ModalityConfig) -> int:
    """The number of tokens of latents of an extent: frames, height and width."""
    frames, height, width = extent
    grid = latent_grid(
        frames,
        height,
        width,
        patch_size=modality.patch_size,
        nextline=model.nextline,
        nextframe=model.nextframe,
    )
    return grid.length


def _labels(rows: Sequence[Sequence[Example]], segments: int, no_label: int) -> Int[np.ndarray, "b s"]:
    labels = np.full((len(rows), segments), no_label, np.int32)
    for index, row in enumerate(rows):
        labels[index, : len(row)] = [example.label for example in row if example.label is not None]
    return labels
