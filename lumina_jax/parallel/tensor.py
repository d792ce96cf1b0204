"""Matrix products divided between devices: what they tell each other around each product (Megatron-LM, arXiv
1909.08053, section 3).

Attention heads and the width of the feed-forward are cut over the mesh axis `tensor`; activations between products are
whole on every device. A product whose output is cut needs nothing forward and a sum of its input's gradient backward
(`share`); one whose input is cut needs the sum of its output forward and nothing backward (`join`).
"""

import dataclasses
import functools

import jax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The devices that divide each product: `axes` of the mesh, of `size` devices. Alone, every method does nothing."""

    axes: tuple[str, ...] = ()
    size: int = 1

    def share(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """What all devices have, before each multiplies it by its own weights: the gradient is the sum of theirs."""
        return _share(x, self.axes) if self.axes else x

    def join(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The sum of what the devices computed, which all of them get."""
        return _join(x, self.axes) if self.axes else x

    def mean(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The mean over devices of a statistic of equal parts, for use on each part."""
        return self.share(self.join(x)) / self.size if self.axes else x


ALONE = Tensor()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _share(x: Float[Array, "*b m"], axes: tuple[str, ...]) -> Float[Array, "*b m"]:
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _join(x: Float[Array, "*b m"], axes: tuple[str, ...]) -> Float[Array, "*b m"]:
    return jax.lax.psum(x, axes)


_share.defvjp(lambda x, axes: (x, None), lambda axes, _, gradient: (jax.lax.psum(gradient, axes),))
_join.defvjp(lambda x, axes: (jax.lax.psum(x, axes), None), lambda axes, _, gradient: (gradient,))
