"""Latents of any shape to one sequence of tokens, and back."""

from lumina_jax.tokens.grid import Grid, Kind, MarkerLayout, latent_grid
from lumina_jax.tokens.packing import Fit, Tokens, first_fit, lengthened, pack, spread, tokens_of, unpack
from lumina_jax.tokens.patchify import cut_views, patchify, pixels_to_unit, tile_views, unit_to_pixels, unpatchify
from lumina_jax.tokens.text import TextFeatures, pack_text

__all__ = [
    "Fit",
    "Grid",
    "Kind",
    "MarkerLayout",
    "TextFeatures",
    "Tokens",
    "cut_views",
    "first_fit",
    "latent_grid",
    "lengthened",
    "pack",
    "pack_text",
    "patchify",
    "pixels_to_unit",
    "spread",
    "tile_views",
    "tokens_of",
    "unit_to_pixels",
    "unpack",
    "unpatchify",
]
