"""A convolution with BatchNorm and a clipped activation, of which the networks that judge pictures consist.

In and out: arrays [b h w c] float32, channels last. BatchNorm (Ioffe and Szegedy, arXiv 1502.03167) uses the mean and
the variance that are stored with the weights. The published layout is PyTorch's.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from lumina_jax.models.layers import ones, param, zeros
from lumina_jax.weights.rules import CONVOLUTION, Rule

NORM_EPS = 1e-3
"""Of Inception-v3 and of EfficientNet, as TensorFlow trains them."""


class NormedConvolution(nnx.Module):
    """A convolution without bias, BatchNorm, and the activation min(max(x, 0), limit).

    Args:
      size: height and width of the kernel.
      padding: "SAME" as TensorFlow pads (with a stride, the odd zero is put at the end), or "VALID".
      is_depthwise: convolve each channel separately, zero-padded as "SAME".
      limit: the greatest output; infinity: ReLU; None: there is no activation.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int,
        outputs: int,
        size: tuple[int, int] = (1, 1),
        *,
        stride: int = 1,
        padding: str = "SAME",
        is_depthwise: bool = False,
        limit: float | None = float("inf"),
    ):
        shape = (*size, 1 if is_depthwise else inputs, outputs)
        self.kernel = param(rngs, shape, initializers.he_normal(), axes=(None,) * 4)
        self.scale = param(rngs, (outputs,), ones, axes=(None,))
        self.bias = param(rngs, (outputs,), zeros, axes=(None,))
        self.mean = param(rngs, (outputs,), zeros, axes=(None,))
        self.variance = param(rngs, (outputs,), ones, axes=(None,))
        self.stride, self.padding, self.is_depthwise, self.limit = stride, padding, is_depthwise, limit

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b v u o"]:
        if self.is_depthwise:
            y = depthwise(x, self.kernel[:, :, 0], self.stride)
        else:
            strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, self.kernel[...], strides, self.padding, dimension_numbers=layout)
        factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + NORM_EPS)
        y = (y - self.mean[...]) * factor + self.bias[...]
        return y if self.limit is None else jnp.clip(y, 0, self.limit)


def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k l c"], stride: int) -> Float[Array, "b v u c"]:
    """Convolve each channel with its part of the kernel, zero-padded as "SAME".

    It is a sum of shifted products, because XLA on CPU takes four times as long for a grouped convolution.
    """
    sizes = x.shape[1:3]
    borders = jax.lax.padtype_to_pads(sizes, kernel.shape[:2], (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    ends = [(-(-size // stride) - 1) * stride + 1 for size in sizes]
    shifted = [
        padded[:, row : row + ends[0] : stride, column : column + ends[1] : stride] * kernel[row, column]
        for row, column in np.ndindex(*kernel.shape[:2])
    ]
    return functools.reduce(operator.add, shifted)


def normed_convolution(convolution: str, norm: str, ours: str) -> list[Rule]:
    """Return the rules of a convolution and of the BatchNorm after it."""
    return [
        Rule(f"{convolution}.weight", f"{ours}.kernel", CONVOLUTION),
        Rule(f"{norm}.weight", f"{ours}.scale"),
        Rule(f"{norm}.bias", f"{ours}.bias"),
        Rule(f"{norm}.running_mean", f"{ours}.mean"),
        Rule(f"{norm}.running_var", f"{ours}.variance"),
    ]
