"""The small parts of the network, each a parameter declaration and one formula.

Parameters are float32 and carry one logical axis name a dimension, which `parallel/axes.py` maps to the mesh; they are
cast to the type of the activations where they are used. Norms and embeddings of time are computed in float32.

A module whose products several devices compute together is a `Divisible`; `divide` tells all of them which devices.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int, Key

from lumina_jax.kernels import feed_forward, projections
from lumina_jax.kernels.flash.call import refusal_here
from lumina_jax.parallel.tensor import ALONE, Tensor

Initializer = Callable[..., Array]
Axes = tuple[str | None, ...]

zeros, ones, xavier = initializers.zeros, initializers.ones, initializers.xavier_uniform()
small_normal = initializers.normal(0.02)
SPREADS: dict[Initializer, str] = {zeros: "fixed", ones: "fixed", small_normal: "fixed", xavier: "xavier"}
"""How the deviation of initial values follows from the shape: not, or as sqrt(2 / (inputs + outputs))."""


class Divisible(nnx.Module):
    """A module that several devices compute together, each with its part of the heads or of the hidden width."""

    tensor: Tensor = ALONE


def divide(model: nnx.Module, tensor: Tensor) -> None:
    """Let the devices of `tensor` compute every `Divisible` of a new model together."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Divisible):
            module.tensor = tensor


class ParameterKeys(nnx.Rngs):
    """The keys of `nnx.Rngs(key)`, counted in Python.

    `nnx.Rngs` counts in an array. Where a model is built in a trace, that makes flax and JAX describe a part of the
    program in words for each key, which took half the time.
    """

    def __init__(self, key: Key[Array, ""] | int):
        super().__init__(key)
        self.made = 0

    def params(self) -> Key[Array, ""]:
        self.made += 1
        return jax.random.fold_in(self.default.key[...], self.made - 1)


def param(rngs: nnx.Rngs, shape: Sequence[int], init: Initializer, *, axes: Axes) -> nnx.Param:
    """A float32 parameter with one logical axis name for each dimension.

    The names say how it is divided over devices, and how its initial values and its learning rate depend on the width
    of the model (`models/parametrization.py`). None: never divided, and in a matrix a dimension of fixed size.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{axes=} must name every dimension of {shape=}")
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=axes, spread=SPREADS.get(init))


class Linear(nnx.Module):
    """x W (+ b)."""

    def __init__(
        self, rngs: nnx.Rngs, inputs: int, outputs: int, *, axes: Axes, init: Initializer = xavier, bias: bool = False
    ):
        self.kernel = param(rngs, (inputs, outputs), init, axes=axes)
        self.bias = param(rngs, (outputs,), zeros, axes=axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*b i"], tensor: Tensor = ALONE) -> Float[Array, "*b o"]:
        """The product; each device of `tensor` has a part of the inputs, and all have the sum and the bias."""
        # One matrix product of all rows: XLA on CPU takes 1.4 times as long for the gradient of a batched one.
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        y = tensor.join(y.reshape(*x.shape[:-1], y.shape[-1]))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def products(x: Float[Array, "b l i"], linears: Sequence[Linear], *, kernels: bool) -> list[Float[Array, "b l _"]]:
    """The same tokens through several linears; by one kernel where it may run and is faster
    (`kernels/projections.py`)."""
    weights = [linear.kernel[...].astype(x.dtype) for linear in linears]
    is_plain = kernels and all(linear.bias is None for linear in linears)
    if is_plain and refusal_here(auto=True) is None and projections.refusal(x, weights) is None:
        return list(projections.projections(x, weights))
    return [linear(x) for linear in linears]


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, cast back, then times a weight if there is one (the order of the released models)."""

    def __init__(self, rngs: nnx.Rngs, width: int, eps: float, *, weight: bool = True):
        self.weight = param(rngs, (width,), ones, axes=(None,)) if weight else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        x32 = x.astype(jnp.float32)
        y = (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)).astype(x.dtype)
        return y if self.weight is None else y * self.weight[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm with weight and bias over the whole last axis."""

    def __init__(self, rngs: nnx.Rngs, width: int, *, eps: float = 1e-5):
        self.weight = param(rngs, (width,), ones, axes=(None,))
        self.bias = param(rngs, (width,), zeros, axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        return (normalize(x, self.eps) * self.weight[...] + self.bias[...]).astype(x.dtype)


class PlainLayerNorm(nnx.Module):
    """LayerNorm without parameters."""

    def __init__(self, eps: float):
        self.eps = eps

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        return normalize(x, self.eps).astype(x.dtype)


class HeadsNorm(Divisible):
    """LayerNorm over the queries or keys of all heads, of which each device may have a part."""

    def __init__(self, rngs: nnx.Rngs, width: int, *, axis: str, eps: float = 1e-5):
        self.weight = param(rngs, (width,), ones, axes=(axis,))
        self.bias = param(rngs, (width,), zeros, axes=(axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        return (normalize(x, self.eps, self.tensor) * self.weight[...] + self.bias[...]).astype(x.dtype)


def normed(x: Float[Array, "*b m"], norm: RMSNorm | LayerNorm | HeadsNorm | None) -> Float[Array, "*b m"]:
    """x through a norm that a model may not have."""
    return x if norm is None else norm(x)


def normalize(x: Float[Array, "*b m"], eps: float, tensor: Tensor = ALONE) -> Float[Array, "*b m"]:
    """Zero mean and unit variance along the last axis, in float32; each device of `tensor` has a part of that axis."""
    x = x.astype(jnp.float32)
    mean = tensor.mean(jnp.mean(x, axis=-1, keepdims=True))
    variance = tensor.mean(jnp.mean((x - mean) ** 2, axis=-1, keepdims=True))
    return (x - mean) * jax.lax.rsqrt(variance + eps)


class SwiGLU(Divisible):
    """silu(x W_gate) * (x W_up) W_down; by kernels where they may run and are faster (`kernels/feed_forward.py`)."""

    def __init__(self, rngs: nnx.Rngs, width: int, hidden: int, *, kernels: bool):
        self.gate = Linear(rngs, width, hidden, axes=("embed", "mlp"))
        self.up = Linear(rngs, width, hidden, axes=("embed", "mlp"))
        self.down = Linear(rngs, hidden, width, axes=("mlp", "embed"))
        self.kernels = kernels

    def __call__(self, x: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        x = self.tensor.share(x)
        weights = [linear.kernel[...].astype(x.dtype) for linear in (self.gate, self.up, self.down)]
        if self.kernels and refusal_here(auto=True) is None and feed_forward.refusal(x, weights) is None:
            return self.tensor.join(feed_forward.gated_feed_forward(x, *weights))
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x), self.tensor)


class GeluMLP(Divisible):
    """gelu(x W_up + b_up) W_down + b_down, with GELU by its tanh formula."""

    def __init__(self, rngs: nnx.Rngs, width: int, hidden: int):
        self.up = Linear(rngs, width, hidden, axes=("embed", "mlp"), bias=True)
        self.down = Linear(rngs, hidden, width, axes=("mlp", "embed"), bias=True)

    def __call__(self, x: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        return self.down(jax.nn.gelu(self.up(self.tensor.share(x)), approximate=True), self.tensor)


class TimeEmbedding(nnx.Module):
    """Sinusoids of t in [0, 1] through Linear, SiLU, Linear."""

    def __init__(self, rngs: nnx.Rngs, width: int, frequencies: int = 256):
        self.inner = Linear(rngs, frequencies, width, axes=(None, "condition"), init=small_normal, bias=True)
        self.outer = Linear(rngs, width, width, axes=("condition", "condition"), init=small_normal, bias=True)
        self.frequencies = frequencies

    def __call__(self, t: Float[Array, "b s"]) -> Float[Array, "b s c"]:
        return self.outer(jax.nn.silu(self.inner(sinusoids(t, self.frequencies))))


def sinusoids(t: Float[Array, "*b"], width: int, max_period: float = 10_000.0) -> Float[Array, "*b w"]:
    """cos then sin of t at `width` / 2 geometric frequencies, from 1 down to almost 1 / `max_period`."""
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class LabelEmbedding(nnx.Module):
    """A row for each label, and a last one for 'no label'."""

    def __init__(self, rngs: nnx.Rngs, classes: int, width: int):
        self.table = param(rngs, (classes + 1, width), small_normal, axes=(None, "condition"))

    def __call__(self, labels: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        return self.table[...][labels]
