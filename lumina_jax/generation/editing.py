"""How the path of a sample follows a source: a picture to picture path, and parts of the source that are kept.

In: the latents of a source x1, which of them are kept, a strength S, and the noise x0 of the sample. Out: where the
path starts, and the network and its velocity along it. The path starts at the time 1 - S from
x_t = alpha(t) x1 + sigma(t) x0 (SDEdit, arXiv 2108.01073), at S = 1 from noise alone. Where the source is kept, every
call of the network sees x_t at its time, always with the same noise, so that what is drawn around it fits (RePaint,
arXiv 2201.09865, section 4.1, draws other noise at each step); at the end the source itself is there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lumina_jax.flow import paths
from lumina_jax.flow.timesteps import ScalarTime, shifted

Times = Float[Array, ""] | Float[Array, " b"]
"""One for all samples of a batch, or one for each."""
Output = Callable[[Times, Float[Array, "b l p"]], Float[Array, "b l o"]]
Velocity = Callable[[Times, Float[Array, "b l p"], Any], Float[Array, "b l p"]]


class Edit(NamedTuple):
    """What the samples of a batch are made from besides noise; all of it may be traced."""

    source: Float[jax.Array | np.ndarray, "b f h w c"]
    kept: Float[jax.Array | np.ndarray, "b f h w 1"]
    """1 where the source is kept, 0 where it is drawn anew."""
    strength: Float[jax.Array | np.ndarray, ""]
    """How much is drawn anew elsewhere: 0 nothing, 1 everything."""


class KnownPath(NamedTuple):
    """The path from the noise of each token to its source."""

    path: paths.Path
    noise: Float[Array, "b l p"]
    source: Float[Array, "b l p"]
    kept: Bool[Array, "b l p"]
    strength: Float[Array, ""]

    def at(self, t: Times) -> paths.Interpolant:
        return paths.interpolate(self.path, self.noise, self.source, t)

    def first(self, interval: tuple[float, float], shift: ScalarTime) -> Float[Array, ""]:
        """The share of the times of an interval that come before the time 1 - strength, before they are shifted.

        It is exactly 0 at strength 1.
        """
        start, end = interval
        share = jnp.clip((1 - self.strength - start) / (end - start), 0, 1)
        return jnp.minimum(shifted(share, 1 / shift), 1)

    def start(self, t: Times) -> Float[Array, "b l p"]:
        """x at the first time of the path."""
        return jnp.where((self.strength < 1) | self.kept, self.at(t).x, self.noise)

    def shown(self, output: Output) -> Output:
        """A network that sees the point of the path where the source is kept, whatever a solver makes of it."""
        return lambda t, x: output(t, jnp.where(self.kept, self.at(t).x, x))

    def led(self, velocity: Velocity) -> Velocity:
        """The velocity of the path where the source is kept."""
        return lambda t, x, args: jnp.where(self.kept, self.at(t).velocity, velocity(t, x, args))

    def end(self, x: Float[Array, "b l p"]) -> Float[Array, "b l p"]:
        """x at the end of the path, which is the source where that is kept, and everywhere at strength 0."""
        return jnp.where(self.kept | (self.strength == 0), self.source, x)
