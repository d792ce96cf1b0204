"""What a drawing tells while it goes on: how far it is, and what it leads to; and how it is stopped.

In: the network as a function of time and patches. Out: the same function, which asks the host before each of its calls
whether to go on, and tells it afterwards what data it predicts. After a stop it is 0 without a call of the network, so
that any solver comes to its end at once. The answer of the host changes nothing else of what is drawn.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float

from lumina_jax.flow import paths
from lumina_jax.generation.editing import Output, Times

AnyLatents = Float[np.ndarray, "_ _ _ _ _"]


class Glimpse(NamedTuple):
    """How far a drawing is."""

    time: float
    """From 0, noise, to 1, data."""
    calls: int
    """Of the network."""
    data: AnyLatents | None
    """The latents [b f h w c] that it leads to as far as the network can say; None: it has not been called."""


class Follower:
    """Follows drawings, one after another, and stops them. Programs call it from threads of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_stopped, self._seen = False, Glimpse(0.0, 0, None)

    def begin(self) -> None:
        """Forget the last drawing and that it was stopped."""
        with self._lock:
            self._is_stopped, self._seen = False, Glimpse(0.0, 0, None)

    def stop(self) -> None:
        """Stop the drawing before the next call of the network; what it returns is then no sample."""
        self._is_stopped = True

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def seen(self) -> Glimpse:
        with self._lock:
            return self._seen

    def goes_on(self) -> np.bool_:
        """Whether the network is to be called."""
        return np.bool_(not self._is_stopped)

    def see(self, time: Float[jax.Array | np.ndarray, ""], data: Float[jax.Array | np.ndarray, "_ _ _ _ _"]) -> None:
        """Take note of what the network has said."""
        with self._lock:
            if self._is_stopped:
                return
            self._seen = Glimpse(float(time), self._seen.calls + 1, np.asarray(data))


def followed(
    output: Output,
    follower: Follower,
    path: paths.Path,
    prediction: str,
    latents_of: Callable[[Float[Array, "b l p"]], Float[Array, "b f h w c"]],
) -> Output:
    """The same function, followed.

    Args:
      prediction: what the network predicts; of an output of twice the values, the second half is none of it.
      latents_of: from patches to the latents of samples.
    """

    def call(t: Times, x: Float[Array, "b l p"]) -> Float[Array, "b l o"]:
        goes_on = io_callback(follower.goes_on, jax.ShapeDtypeStruct((), np.bool_))
        like = jax.eval_shape(output, t, x)
        said = jax.lax.cond(goes_on, lambda: output(t, x), lambda: jnp.zeros(like.shape, like.dtype))
        velocity = paths.velocity_from(prediction, path, said[..., : x.shape[-1]], x, t)
        data = jnp.nan_to_num(paths.data_from_velocity(path, velocity, x, t))
        io_callback(follower.see, None, jnp.min(jnp.asarray(t)), latents_of(data))
        return said

    return call
