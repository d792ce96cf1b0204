"""Matrix products divided between devices: the sums over devices around each product (Megatron-LM, arXiv 1909.08053,
section 3).

Attention heads and the hidden width of the feed-forward are divided over the mesh axis `tensor`; activations between
products are whole on every device. Where the output of a product is divided, the gradient of its input is summed in the
backward pass (`share`); where the input is divided, the output is summed in the forward pass (`join`).
"""

import dataclasses
import functools

import jax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The `size` devices along `axes` of the mesh that divide each product. Without axes, every method does nothing."""

    axes: tuple[str, ...] = ()
    size: int = 1

    def share(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """An input that all devices have, before each multiplies it by its weights; its gradient is the sum over
        devices."""
        return _share(x, self.axes) if self.axes else x

    def join(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The sum of an output over devices, on each of them."""
        return _join(x, self.axes) if self.axes else x

    def mean(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        """The mean over devices of a statistic, where each device has an equal part of the values."""
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
