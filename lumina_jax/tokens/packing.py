"""Several samples in one row, told apart by segment ids.

A row of a batch holds one sample or many. Two pictures, of 1 x 2 and 2 x 1 patches, packed into a row of 8 tokens:

    kinds         1 1 2   1 2 1 2   0      (0 padding, 1 patch, 2 [nextline], 3 [nextframe])
    positions     0 1 2   0 1 2 3   0      (place in the sample; frame, row and column follow)
    segment_ids   1 1 1   2 2 2 2   0      (0 padding, else the sample of the row, counted from 1)

Attention lets a token see only tokens of its own segment; each segment has its own time and caption.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from lumina_jax.tokens.grid import Grid, Kind, latent_grid
from lumina_jax.tokens.patchify import AnyArray, patchify, unpatchify


class Tokens(NamedTuple):
    """A batch of rows of tokens: everything the model knows of a sample but its time and caption."""

    patches: Num[AnyArray, "b l p"]
    kinds: Int[AnyArray, "b l"]
    positions: Int[AnyArray, "b l 4"]
    segment_ids: Int[AnyArray, "b l"]
    modalities: Int[AnyArray, "b l"] | None = None
    """Place of each token's modality in those of the model; None: all tokens are of the first."""


class Fit(NamedTuple):
    """Which samples share a row, by their index, and those that fit nowhere."""

    rows: list[list[int]]
    left_over: list[int]


def first_fit(lengths: Sequence[int], row_tokens: int, *, rows: int, samples_per_row: int) -> Fit:
    """Each sample, in the given order, goes into the first row with room for it.

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
    """One sample a row, all of one shape: what sampling works on. Also returns the grid that undoes it."""
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
    """Rows of latents of any shapes to tokens [rows, row_tokens]; also the grid of each sample, for `unpack`.

    Args:
      patch_size: of all samples; or, with `modalities`, of each modality.
      modalities: the place of each sample's modality; None: there is one.
      patch_values: of the longest patch, to which shorter ones are filled up with zeros; None: those of the samples.
    """
    sizes = [patch_size] if isinstance(patch_size, int) else patch_size
    places = modalities or [[0] * len(row) for row in rows]
    own = {sizes[place] ** 2 * latent.shape[-1] for row, of in zip(rows, places) for latent, place in zip(row, of)}
    shape = (len(rows), row_tokens)
    packed = Tokens(
        patches=np.zeros((*shape, patch_values or max(own)), np.float32),
        kinds=np.full(shape, Kind.PAD, np.int32),
        positions=np.zeros((*shape, 4), np.int32),
        segment_ids=np.zeros(shape, np.int32),
        modalities=None if modalities is None else np.zeros(shape, np.int32),
    )
    grids: list[list[Grid]] = []
    for index, row in enumerate(rows):
        start = 0
        grids.append([])
        for segment, (latent, place) in enumerate(zip(row, places[index]), start=1):
            sample, grid = tokens_of(latent[None], patch_size=sizes[place], nextline=nextline, nextframe=nextframe)
            end = start + grid.length
            if end > row_tokens:
                raise ValueError(f"row {index} holds {end} tokens or more, but {row_tokens=}; use first_fit")
            packed.patches[index, start:end, : sample.patches.shape[-1]] = sample.patches[0]
            packed.kinds[index, start:end], packed.positions[index, start:end] = sample.kinds[0], sample.positions[0]
            packed.segment_ids[index, start:end] = segment
            if packed.modalities is not None:
                packed.modalities[index, start:end] = place
            grids[-1].append(grid)
            start = end
    return packed, grids


def unpack(
    patches: Num[AnyArray, "b l p"], grids: Sequence[Sequence[Grid]], *, patch_size: int
) -> list[list[Num[AnyArray, "_ _ _ c"]]]:
    """The inverse of `pack`: the latents of each row, in order."""
    rows = []
    for row, row_grids in zip(patches, grids):
        latents, start = [], 0
        for grid in row_grids:
            sequence = row[None, start : start + grid.length]
            latents.append(unpatchify(sequence, grid, patch_size)[0])
            start += grid.length
        rows.append(latents)
    return rows


def spread(table: Num[Array, "b s *m"], segment_ids: Int[AnyArray, "b l"]) -> Num[Array, "b _ *m"]:
    """What a segment has, given to each of its tokens: [b s ...] to [b l ...]; padding gets zeros.

    Rows of one sample broadcast instead: [b 1 ...]. Packed rows multiply by one-hot segments, which moves a tenth
    of the bytes that a gather per token does on TPU, and is exact.
    """
    segments = table.shape[1]
    if segments == 1:
        return table
    one_hot = jax.nn.one_hot(segment_ids - 1, segments, dtype=table.dtype)
    flat = table.reshape(*table.shape[:2], -1)
    return jnp.einsum("bls,bsm->blm", one_hot, flat, precision="highest").reshape(*segment_ids.shape, *table.shape[2:])
