"""Pictures to latents and back, with a published image autoencoder (SD-1.5, SDXL and their kin).

In: pixels [b h w 3] in -1..1. Out: the distribution of their latents [b h/f w/f c], f = 8 for the published ones, and
latents back to pixels. A latent in the scale that diffusion models use, "scaled", is (z - shift) * scaling.

Pictures larger than `tile` pixels a side go through the network in overlapping tiles, blended linearly where they
overlap by a quarter, as diffusers' tiled encoding and decoding do: memory is that of one tile.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from lumina_jax.encoders.stored import stored_weights
from lumina_jax.encoders.vae_files import CONFIG_FILE, WEIGHTS, load_autoencoder, read_vae_config, vae_folder
from lumina_jax.encoders.vae_layers import Autoencoder, ImageVaeConfig
from lumina_jax.parallel.mesh import axis_size, row_spec

TILE = 1024
"""Default side of a tile in pixels."""
OVERLAP = 4
"""Neighbouring tiles share one part in so many of their side."""

AnyArray = Array | np.ndarray


class Posterior(NamedTuple):
    """The normal distribution of each value of a latent, as the encoder has it, not scaled."""

    mean: Float[AnyArray, "b v u c"]
    log_variance: Float[AnyArray, "b v u c"]


class ImageVae:
    """An image autoencoder ready to use; its programs are compiled once for each shape of batch."""

    def __init__(
        self, model: Autoencoder, config: ImageVaeConfig, *, fingerprint: str, tile: int | None, mesh: Mesh | None
    ):
        self.config = config
        self.factor, self.channels = config.factor, config.channels
        self.tile, self.fingerprint = tile, fingerprint
        self._mesh = mesh
        self.devices = 1 if mesh is None else axis_size(mesh, "data", "fsdp")
        self._encode = functools.partial(jax.jit(Autoencoder.encode), model)
        self._decode = functools.partial(jax.jit(Autoencoder.decode), model)

    def encode(self, pixels: Float[AnyArray, "b h w 3"]) -> Posterior:
        """The distribution of the latents of pictures in -1..1.

        Raises:
          ValueError: height or width is not a multiple of `factor`.
        """
        height, width = pixels.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width must be multiples of the {self.factor} pixels of a value of the latent, but the "
                f"pictures have {height} x {width}; crop them"
            )
        return Posterior(*jnp.split(self._by_tiles(self._encode, pixels, self.tile, 1, self.factor), 2, axis=-1))

    def sample(self, posterior: Posterior, key: Key[Array, ""]) -> Float[Array, "b v u c"]:
        """Scaled latents drawn from their distribution, as training uses them."""
        noise = jax.random.normal(key, posterior.mean.shape)
        return self.scaled(posterior.mean + jnp.exp(posterior.log_variance / 2) * noise)

    def scaled(self, latents: Float[Any, "*b c"]) -> Any:
        """Latents of the network in the scale of diffusion models."""
        return (latents - self.config.shift) * self.config.scaling

    def decode(self, latents: Float[AnyArray, "b v u c"]) -> Float[Array, "b h w 3"]:
        """Pixels, about -1..1 and not clipped, of scaled latents."""
        tile = None if self.tile is None else self.tile // self.factor
        return self._by_tiles(self._decode, latents / self.config.scaling + self.config.shift, tile, self.factor, 1)

    def _by_tiles(
        self,
        function: Callable[[AnyArray], Array],
        x: Float[AnyArray, "b h w i"],
        tile: int | None,
        times: int,
        divided_by: int,
    ) -> Float[Array, "b v u o"]:
        """`function` of x, whose sides it multiplies by `times` / `divided_by`; in tiles if a side exceeds `tile`."""
        if tile is None or max(x.shape[1:3]) <= tile:
            return function(self._placed(x))
        x = np.asarray(x)
        step = tile - tile // OVERLAP
        side = tile * times // divided_by
        tiles = [
            [
                np.array(function(self._placed(x[:, top : top + tile, left : left + tile])))
                for left in range(0, x.shape[2], step)
            ]
            for top in range(0, x.shape[1], step)
        ]
        return jnp.asarray(blended(tiles, side))

    def _placed(self, x: AnyArray) -> Array:
        """On the devices of the mesh: pictures spread over its rows if they divide evenly, else whole on each."""
        if self._mesh is None:
            return jnp.asarray(x)
        spec = PartitionSpec() if len(x) % self.devices else row_spec(self._mesh)
        return jax.device_put(x, NamedSharding(self._mesh, spec))


def load_image_vae(
    folder_or_hub_id: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    tile: int | None = TILE,
    mesh: Mesh | None = None,
) -> ImageVae:
    """The autoencoder of a folder (of its own, or of a pipeline) or of a repository of the hub downloaded before.

    Args:
      dtype: of parameters and activations; norms and softmax are float32 in either.
      tile: pictures larger than so many pixels a side go through in tiles; None: never.
      mesh: devices that hold the parameters whole and share the pictures of a batch; None: the default device.

    Raises:
      ValueError: a file is missing or damaged, or asks for another network; the message names the remedy.
    """
    folder = vae_folder(folder_or_hub_id)
    config = read_vae_config(folder)
    unit = OVERLAP * config.factor
    if tile is not None and (tile < 1 or tile % unit):
        raise ValueError(
            f"{tile=} must be a multiple of {unit} pixels, so that tiles and their overlaps end between values of the "
            "latent; None never cuts tiles"
        )
    model = load_autoencoder(folder, config, jnp.dtype(dtype), mesh)
    total = hashlib.sha256(f"{dtype} {tile}".encode())
    for path in (folder / CONFIG_FILE, *stored_weights(folder, WEIGHTS).files):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return ImageVae(model, config, fingerprint=total.hexdigest()[:16], tile=tile, mesh=mesh)


def blended(tiles: list[list[np.ndarray]], side: int) -> np.ndarray:
    """Rows of tiles [b h w c], neighbours overlapping by a quarter of `side`, as one array.

    Each tile fades in over the end of the one above it and the one to its left.
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
    """Mix the end of `before` into the start of `after`, in place."""
    before, after = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
    overlap = min(overlap, len(before), len(after))
    share = (np.arange(overlap, dtype=after.dtype) / overlap).reshape(-1, *(1,) * (after.ndim - 1))
    after[:overlap] = before[-overlap:] * (1 - share) + after[:overlap] * share
