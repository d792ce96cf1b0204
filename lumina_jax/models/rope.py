"""Rotary position embedding over interleaved pairs, with the scalings that let a model leave its training length.

Let p be a token's place in its sample. The pair (2i, 2i + 1) of a head of width d turns by the angle
(p / linear) * (theta * ntk) ** (-2i / d): `linear` squeezes positions (position interpolation), `ntk` slows the low
frequencies (NTK-aware scaling; Lumina-T2X, section 2.3).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class RopeScaling(NamedTuple):
    """Factors of 1 leave the embedding as it was trained. Numbers or traced scalars."""

    linear: float | Float[Array, ""] = 1.0
    ntk: float | Float[Array, ""] = 1.0


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles."""

    cos: Float[Array, "b l 1 half"]
    sin: Float[Array, "b l 1 half"]


def rotation(places: Int[Array, "b l"], *, head_width: int, theta: float, scaling: RopeScaling) -> Rotation:
    """The angles of tokens at `places`, in float32."""
    exponents = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
    frequencies = 1.0 / (theta * scaling.ntk) ** exponents
    angles = (places.astype(jnp.float32) / scaling.linear)[..., None, None] * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "b l h d"], by: Rotation) -> Float[Array, "b l h d"]:
    """Each pair (x[2i], x[2i + 1]) turned by its angle."""
    x32 = x.astype(jnp.float32)
    even, odd = x32[..., 0::2], x32[..., 1::2]
    turned = jnp.stack([even * by.cos - odd * by.sin, even * by.sin + odd * by.cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
