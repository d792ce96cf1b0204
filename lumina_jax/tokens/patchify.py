"""Latents to the patches of one sequence and back, exactly.

In: latents [b f h w c], channels last. Out: patches [b l p] in the order of `Grid`, zeros at the markers.
The values of a patch are ordered (channel, row in patch, column in patch), as the released models read them.
Numpy arrays give numpy arrays, jax arrays give jax arrays.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Num

from lumina_jax.tokens.grid import Grid

if TYPE_CHECKING:
    AnyArray = Any
else:
    AnyArray = jax.Array | np.ndarray


def patchify(latents: Num[AnyArray, "b f h w c"], grid: Grid, patch_size: int) -> Num[AnyArray, "b l p"]:
    """The sequence of patches of each latent, whose grid is `grid`."""
    expected = (grid.frames, grid.rows * patch_size, grid.columns * patch_size)
    if latents.shape[1:4] != expected:
        raise ValueError(f"latents of {grid=} and {patch_size=} must have shape {expected}, but {latents.shape[1:4]=}")
    patches = rearrange(latents, "b f (r i) (w j) c -> b f r w (c i j)", i=patch_size, j=patch_size)
    xp = jnp if isinstance(latents, jax.Array) else np
    if grid.nextline:
        patches = xp.concatenate([patches, xp.zeros_like(patches[:, :, :, :1])], axis=3)
    lines = rearrange(patches, "b f r w p -> b f (r w) p")
    if grid.has_frame_markers:
        lines = xp.concatenate([lines, xp.zeros_like(lines[:, :, :1])], axis=2)
    return rearrange(lines, "b f l p -> b (f l) p")


def unpatchify(patches: Num[AnyArray, "b l p"], grid: Grid, patch_size: int) -> Num[AnyArray, "b f h w c"]:
    """The inverse of `patchify`; the values at markers are dropped."""
    if patches.shape[1] != grid.length:
        raise ValueError(f"a sample of {grid=} must have {grid.length} tokens, but there are {patches.shape[1]}")
    lines = rearrange(patches, "b (f l) p -> b f l p", f=grid.frames)
    lines = lines[:, :, : grid.rows * (grid.columns + grid.nextline)]
    rows = rearrange(lines, "b f (r w) p -> b f r w p", r=grid.rows)[:, :, :, : grid.columns]
    return rearrange(rows, "b f r w (c i j) -> b f (r i) (w j) c", i=patch_size, j=patch_size)


def tile_views(views: Num[np.ndarray, "f h w c"], columns: int) -> Num[np.ndarray, "1 v u c"]:
    """The views of an object as one picture, `columns` views in each line.

    Raises:
      ValueError: the last line would not be full.
    """
    if len(views) % columns:
        raise ValueError(f"a grid of {columns} columns needs a multiple of {columns} views, but there are {len(views)}")
    return rearrange(views, "(r k) h w c -> 1 (r h) (k w) c", k=columns)


def cut_views(picture: Num[np.ndarray, "1 v u c"], columns: int) -> Num[np.ndarray, "f h w c"]:
    """The inverse of `tile_views` for square views.

    Raises:
      ValueError: the picture is not a grid of squares with `columns` columns.
    """
    height, width = picture.shape[1:3]
    if width % columns or height % (width // columns):
        raise ValueError(f"a grid of {columns} columns must consist of squares, but is {height} x {width}")
    side = width // columns
    return rearrange(picture, "1 (r h) (k w) c -> (r k) h w c", h=side, w=side)


def pixels_to_unit(pixels: Num[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Bytes 0..255 to floats -1..1, the range in which a model without an autoencoder sees pixels."""
    return (pixels.astype(np.float32) / 127.5) - 1.0


def unit_to_pixels(values: Float[np.ndarray, "*shape"]) -> Num[np.ndarray, "*shape"]:
    """The inverse of `pixels_to_unit`, clipped to the range of a byte and rounded."""
    return np.rint((np.clip(values, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
