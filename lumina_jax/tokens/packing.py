"""Several samples in one row, told apart by segment ids.

A row of a batch holds one sample or many. Two pictures, of 1 x 2 and 2 x 1 patches, packed into a row of 8 tokens:

    kinds         1 1 2   1 2 1 2   0      (0 padding, 1 patch, 2 [nextline], 3 [nextframe])
    positions     0 1 2   0 1 2 3   0      (index in the sample; frame, row and column follow)
    segment_ids   1 1 1   2 2 2 2   0      (0 padding, else the sample of the row, counted from 1)

A token attends only to tokens of its segment; each segment has a time and a caption.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from lumina_jax.tokens.grid import Grid, Kind, latent_grid
from lumina_jax.tokens.patchify import AnyArray, patchify, unpatchify


class Tokens(NamedTuple):
    """A batch of rows of tokens: everything the model knows about samples except their times and captions."""

    patches: Num[AnyArray, "b l p"]
    kinds: Int[AnyArray, "b l"]
    positions: Int[AnyArray, "b l 4"]
    segment_ids: Int[AnyArray, "b l"]
    modalities: Int[AnyArray, "b l"] | None = None
    """For each token the index of its modality in `model.modalities`; None: all tokens belong to the first."""


class Fit(NamedTuple):
    """The indices of the samples in each row, and of those for which no row has room."""

    rows: list[list[int]]
    left_over: list[int]


def first_fit(lengths: Sequence[int], row_tokens: int, *, rows: int, samples_per_row: int) -> Fit:
    """Put each sample, in the given order, into the first row with room for it.

    >>> first_fit([3, 4, 2, 5], 8, rows=2, samples_per_row=4)
    Fit(rows=[[0, 1], [2, 3]], left_over=[])

    Raises:
      ValueError: a sample is longer than a row.
    """
    if lengths and max(lengths) > row_tokens:
        raise ValueError(
            f"a sample of {max(lengths)} tokens does not fit into a row of {row_tokens=}; "
            "raise row_tokens or crop the sample"
        )
    fit = Fit([[] for _ in range(rows)], [])
    room = [row_tokens] * rows
    for index, length in enumerate(lengths):
        for row in range(rows):
            if length <= room[row] and len(fit.rows[row]) < samples_per_row:
                fit.rows[row].append(index)
                room[row] -= length
                break
        else:
            fit.left_over.append(index)
    return fit


def tokens_of(
    latents: Num[AnyArray, "b f h w c"], *, patch_size: int, nextline: bool, nextframe: bool
) -> tuple[Tokens, Grid]:
    """One sample in each row, all of one shape, as sampling needs them; also their grid, for `unpatchify`."""
    chex.assert_rank(latents, 5)
    batch, frames, height, width, _ = latents.shape
    grid = latent_grid(frames, height, width, patch_size=patch_size, nextline=nextline, nextframe=nextframe)
    kinds, positions = grid.layout()
    xp = jnp if isinstance(latents, jax.Array) else np
    tokens = Tokens(
        patches=patchify(latents, grid, patch_size),
        kinds=xp.asarray(np.broadcast_to(kinds, (batch, grid.length))),
        positions=xp.asarray(np.broadcast_to(positions, (batch, grid.length, 4))),
        segment_ids=xp.ones((batch, grid.length), np.int32),
    )
    return tokens, grid


def pack(
    rows: Sequence[Sequence[Float[np.ndarray, "_ _ _ _"]]],
    *,
    row_tokens: int,
    patch_size: int | Sequence[int],
    nextline: bool,
    nextframe: bool,
    modalities: Sequence[Sequence[int]] | None = None,
    patch_values: int | None = None,
) -> tuple[Tokens, list[list[Grid]]]:
    """Rows of latents of any shapes as tokens [rows, row_tokens]; also the grid of each sample, for `unpack`.

    Args:
      patch_size: for all samples; or, with `modalities`, one for each modality.
      modalities: the index of each sample's modality; None: there is only one.
      patch_values: the values of a patch; shorter patches are padded with zeros. None: those of the longest patch here.

    Raises:
      ValueError: the samples of a row have more than `row_tokens` tokens.
    """
    sizes = [patch_size] if isinstance(patch_size, int) else patch_size
    indices = modalities or [[0] * len(row) for row in rows]
    pairs = [pair for row, modalities_of_row in zip(rows, indices) for pair in zip(row, modalities_of_row)]
    longest = max(sizes[modality] ** 2 * latent.shape[-1] for latent, modality in pairs) if pairs else 0
    shape = (len(rows), row_tokens)
    packed = Tokens(
        patches=np.zeros((*shape, patch_values or longest), np.float32),
        kinds=np.full(shape, Kind.PAD, np.int32),
        positions=np.zeros((*shape, 4), np.int32),
        segment_ids=np.zeros(shape, np.int32),
        modalities=None if modalities is None else np.zeros(shape, np.int32),
    )
    grids: list[list[Grid]] = []
    for index, row in enumerate(rows):
        start = 0
        grids.append([])
        for segment, (latent, modality) in enumerate(zip(row, indices[index]), start=1):
            sample, grid = tokens_of(latent[None], patch_size=sizes[modality], nextline=nextline, nextframe=nextframe)
            end = start + grid.length
            if end > row_tokens:
                raise ValueError(f"row {index} holds {end} tokens or more, but {row_tokens=}; use first_fit")
            packed.patches[index, start:end, : sample.patches.shape[-1]] = sample.patches[0]
            packed.kinds[index, start:end], packed.positions[index, start:end] = sample.kinds[0], sample.positions[0]
            packed.segment_ids[index, start:end] = segment
            if packed.modalities is not None:
                packed.modalities[index, start:end] = modality
            grids[-1].append(grid)
            start = end
    return packed, grids


def unpack(
    patches: Num[AnyArray, "b l p"], grids: Sequence[Sequence[Grid]], *, patch_size: int
) -> list[list[Num[AnyArray, "_ _ _ c"]]]:
    """The inverse of `pack`: the latents of each row, in order."""
    chex.assert_rank(patches, 3)
    chex.assert_axis_dimension(patches, 0, len(grids))
    rows = []
    for row, row_grids in zip(patches, grids):
        latents, start = [], 0
        for grid in row_grids:
            sequence = row[None, start : start + grid.length]
            latents.append(unpatchify(sequence, grid, patch_size)[0])
            start += grid.length
        rows.append(latents)
    return rows


def lengthened(tokens: Tokens, length: int) -> Tokens:
    """Rows of `length` tokens, with padding at the end."""
    missing = length - tokens.kinds.shape[1]
    if not missing:
        return tokens
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)), tokens)


def spread(table: Num[Array, "b s *m"], segment_ids: Int[AnyArray, "b l"]) -> Num[Array, "b _ *m"]:
    """A value for each segment as one for each of its tokens: [b s ...] to [b l ...]; padding gets zeros.

    Where rows have one segment, the table is returned as it is, [b 1 ...], to be broadcast. Otherwise this is a product
    with one-hot segment ids, which is exact and on TPU moves a tenth of the bytes of a gather per token.
    """
    chex.assert_rank(segment_ids, 2)
    chex.assert_equal_shape_prefix([table, segment_ids], 1)
    segments = table.shape[1]
    if segments == 1:
        return table
    one_hot = jax.nn.one_hot(segment_ids - 1, segments, dtype=table.dtype)
    flat = table.reshape(*table.shape[:2], -1)
    return jnp.einsum("bls,bsm->blm", one_hot, flat, precision="highest").reshape(*segment_ids.shape, *table.shape[2:])
