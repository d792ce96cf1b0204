"""Rotary position embedding over interleaved pairs, with the scalings that let a model leave its training length.

A token has n coordinates p_0 ... p_(n-1): its index in the sample (n = 1, Flag-DiT), its row and column (n = 2,
Next-DiT), or its frame, row and column (n = 3). Pair j = n i + a of a head of width d turns by coordinate a, by the
angle (p_a / linear) * (theta * ntk) ** (-2 n i / d): `linear` squeezes positions (position interpolation), `ntk` slows
the low frequencies (NTK-aware scaling; Lumina-T2X, section 2.3). With a `target`, the frequency theta ** -e is
slowed by ntk ** min(1, e / target) instead of ntk ** e. That is the frequency-aware scaling of Lumina-Next (arXiv
2406.18583), max((theta * ntk ** (1 / target)) ** -e, theta ** -e / ntk).

`sine_positions` are what DiT adds to its tokens instead: sines and cosines of the same coordinates, fixed.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class RopeScaling(NamedTuple):
    """Factors of 1 leave the embedding as it was trained. Numbers or traced scalars, or one for each row."""

    linear: float | Float[Array, ""] | Float[Array, " b"] = 1.0
    ntk: float | Float[Array, ""] | Float[Array, " b"] = 1.0
    target: float | Float[Array, ""] | None = None
    """The exponent of theta from which on frequencies are slowed by all of `ntk`; None: 1."""


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles."""

    cos: Float[Array, "b l 1 half"]
    sin: Float[Array, "b l 1 half"]


def time_aware(
    factor: float, watershed: float, t: float | Float[Array, ""] | Float[Array, " b"], target: float | None = None
) -> RopeScaling:
    """Positions squeezed by `factor` before the time `watershed`, low frequencies slowed by it from then on.

    Early steps decide the composition of the picture, late ones its detail (Lumina-Next, arXiv 2406.18583). Its report
    goes from one to the other gradually; its later code changes at one time, as here. With a watershed of 0 this is
    NTK-aware scaling, with one above 1 it is position interpolation. As in the released code, a float32 time is
    compared with a watershed in double precision: float32(0.45) is less than 0.45.
    """
    early = jnp.asarray(t, jnp.float32) < _least_float32(watershed)
    return RopeScaling(linear=jnp.where(early, factor, 1.0), ntk=jnp.where(early, 1.0, factor), target=target)


def _least_float32(value: float) -> np.float32:
    """The least float32 that is not below a double. Every float32 is less than both of them or than neither."""
    rounded = np.float32(value)
    return np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < value else rounded


def rotation(coordinates: Int[Array, "b l n"], *, head_width: int, theta: float, scaling: RopeScaling) -> Rotation:
    """The angles of tokens at `coordinates`, in float32."""
    axes = coordinates.shape[-1]
    exponents = jnp.arange(0, head_width, 2 * axes, dtype=jnp.float32) / head_width
    frequencies = _frequencies(exponents, theta, scaling)
    angles = (coordinates.astype(jnp.float32) / _of_rows(scaling.linear))[..., None, :] * frequencies[..., None]
    angles = angles.reshape(*coordinates.shape[:2], 1, -1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def turned(x: Float[Array, "b l h d"], by: Rotation | None) -> Float[Array, "b l h d"]:
    """`rotate`; None: as it is."""
    return x if by is None else rotate(x, by)


def rotate(x: Float[Array, "b l h d"], by: Rotation) -> Float[Array, "b l h d"]:
    """Each pair (x[2i], x[2i + 1]) turned by its angle."""
    x32 = x.astype(jnp.float32)
    even, odd = x32[..., 0::2], x32[..., 1::2]
    turned = jnp.stack([even * by.cos - odd * by.sin, even * by.sin + odd * by.cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def sine_positions(
    coordinates: Int[Array, "b l n"], *, width: int, theta: float, scaling: RopeScaling
) -> Float[Array, "b l m"]:
    """Sines, then cosines, of each coordinate at m / (2 n) frequencies, the last coordinate first (as the released DiT,
    arXiv 2212.09748); m must be a multiple of 2 n."""
    half = width // (2 * coordinates.shape[-1])
    frequencies = _frequencies(jnp.arange(half, dtype=jnp.float32) / half, theta, scaling)
    positions = coordinates[..., ::-1].astype(jnp.float32) / _of_rows(scaling.linear)
    angles = positions[..., None] * jnp.broadcast_to(frequencies, (*positions.shape[:1], 1, half))[:, :, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*coordinates.shape[:2], width)


def _frequencies(exponents: Float[Array, " e"], theta: float, scaling: RopeScaling) -> Float[Array, "*b e"]:
    """Those of each exponent of theta: [e], or [b 1 e] with a scaling for each row."""
    ntk = _of_rows(scaling.ntk)
    if scaling.target is None:
        return 1.0 / (theta * ntk) ** exponents
    # With a target of 0 or less, training cut even the shortest wave: all are slowed.
    share = jnp.where(exponents < scaling.target, exponents / scaling.target, 1.0)
    return 1.0 / (theta**exponents * ntk**share)


def _of_rows(value: float | Float[Array, ""] | Float[Array, " b"]) -> float | Float[Array, ""] | Float[Array, "b 1 1"]:
    """A number, or that of each row as [b 1 1]."""
    return value if jnp.ndim(value) == 0 else jnp.reshape(value, (-1, 1, 1))
