"""Pictures to latents and back, with a published image autoencoder such as those of SD-1.5 and SDXL.

In: pixels [b h w 3] in -1..1. Out: the distribution of their latents [b h/f w/f c], where f is 8 for the published
networks, and pixels from latents.

A picture with a side of more than `tile` pixels is processed in tiles. Neighbouring tiles overlap by a quarter and are
blended linearly, as in diffusers' tiled encoding and decoding, so that memory is bounded by one tile.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lumina_jax.encoders.autoencoder import AnyArray, FrozenAutoencoder, Posterior, fingerprint_of
from lumina_jax.encoders.stored import stored_weights
from lumina_jax.encoders.vae_files import CONFIG_FILE, WEIGHTS, load_autoencoder, read_vae_config, vae_folder
from lumina_jax.encoders.vae_layers import Autoencoder, ImageVaeConfig

TILE = 1024
"""The default side of a tile in pixels."""
OVERLAP = 4
"""Neighbouring tiles overlap by 1 / OVERLAP of their side."""


class ImageVae(FrozenAutoencoder):
    """A loaded image autoencoder; see `FrozenAutoencoder`.

    Args:
      tile: pictures with a side of more pixels are processed in tiles; None: never.
    """

    def __init__(
        self, model: Autoencoder, config: ImageVaeConfig, *, fingerprint: str, tile: int | None, mesh: Mesh | None
    ):
        super().__init__(model, config, fingerprint=fingerprint, mesh=mesh)
        self.config, self.tile = config, tile

    def encode(self, pixels: Float[AnyArray, "b h w 3"]) -> Posterior:
        """Return the distribution of the latents of pictures in -1..1.

        Raises:
          ValueError: height or width is not a multiple of `factor`.
        """
        height, width = pixels.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width must be multiples of {self.factor}, the pixels of one value of the latent, but "
                f"pictures are {height} x {width}; crop them"
            )
        return Posterior(*jnp.split(self._in_tiles(self._encode, pixels, self.tile, 1, self.factor), 2, axis=-1))

    def decode(self, latents: Float[AnyArray, "b v u c"]) -> Float[Array, "b h w 3"]:
        """Return the pixels of scaled latents, roughly in -1..1 and not clipped."""
        tile = None if self.tile is None else self.tile // self.factor
        return self._in_tiles(self._decode, self.unscaled(latents), tile, self.factor, 1)

    def _in_tiles(
        self,
        function: Callable[[AnyArray], Array],
        x: Float[AnyArray, "b h w i"],
        tile: int | None,
        times: int,
        divided_by: int,
    ) -> Float[Array, "b v u o"]:
        """Apply `function`, which multiplies sides by `times` / `divided_by`; in tiles if a side exceeds `tile`."""
        if tile is None or max(x.shape[1:3]) <= tile:
            return function(self.on_devices(x))
        x = np.asarray(x)
        step = tile - tile // OVERLAP
        side = tile * times // divided_by
        tiles = [
            [
                np.array(function(self.on_devices(x[:, top : top + tile, left : left + tile])))
                for left in range(0, x.shape[2], step)
            ]
            for top in range(0, x.shape[1], step)
        ]
        return jnp.asarray(blend_tiles(tiles, side))


def load_image_vae(
    folder_or_hub_id: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    tile: int | None = TILE,
    mesh: Mesh | None = None,
) -> ImageVae:
    """Load the autoencoder in a folder, in the vae/ of a pipeline, or in a downloaded repository of the hub.

    Args:
      dtype: the type of parameters and activations; norms and softmax are always computed in float32.
      tile: pictures with a side of more pixels are processed in tiles; None: never.
      mesh: devices that each hold all parameters and share the pictures of a batch; None: the default device.

    Raises:
      ValueError: a file is missing or damaged, or describes another network; the message has the remedy.
    """
    folder = vae_folder(folder_or_hub_id)
    config = read_vae_config(folder)
    unit = OVERLAP * config.factor
    if tile is not None and (tile < 1 or tile % unit):
        raise ValueError(
            f"{tile=} must be a multiple of {unit} pixels, so that tiles and overlaps contain whole values of the "
            "latent; or set it to None, which never uses tiles"
        )
    model = load_autoencoder(folder, config, jnp.dtype(dtype), mesh)
    fingerprint = fingerprint_of(f"{dtype} {tile}", (folder / CONFIG_FILE, *stored_weights(folder, WEIGHTS).files))
    return ImageVae(model, config, fingerprint=fingerprint, tile=tile, mesh=mesh)


def blend_tiles(tiles: list[list[np.ndarray]], side: int) -> np.ndarray:
    """Join rows of tiles [b h w c] that overlap by a quarter of `side` into one array.

    Each tile fades in over the end of the tile above it and of the tile to its left.
    """
    overlap = side // OVERLAP
    kept = side - overlap
    rows = []
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            if row:
                _fade(tiles[row - 1][column], tile, overlap, axis=1)
            if column:
                _fade(line[column - 1], tile, overlap, axis=2)
        rows.append(np.concatenate([tile[:, :kept, :kept] for tile in line], axis=2))
    return np.concatenate(rows, axis=1)


def _fade(before: np.ndarray, after: np.ndarray, overlap: int, *, axis: int) -> None:
    """Blend the end of `before` into the start of `after`, which is modified."""
    before, after = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
    overlap = min(overlap, len(before), len(after))
    share = (np.arange(overlap, dtype=after.dtype) / overlap).reshape(-1, *(1,) * (after.ndim - 1))
    after[:overlap] = before[-overlap:] * (1 - share) + after[:overlap] * share
