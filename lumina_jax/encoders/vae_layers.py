"""The network of the image autoencoder: convolutions, residual blocks, attention at the coarsest stage.

In and out: arrays [b h w c] float32, channels last. The operands of products have the type of the parameters; sums,
norms, softmax and the residual stream are always float32, which halves the error of bfloat16.
This is the autoencoder of Rombach et al., arXiv 2112.10752, as published with Stable Diffusion and SDXL.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from lumina_jax.models.layers import Linear, ones, param, zeros

NORM_EPS = 1e-6
QUERY_BLOCK = 4096
"""Attention computes the logits of at most this many queries at a time, so that memory is linear in the pixels."""
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
"""Log variances are clipped to this range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageVaeConfig:
    """Sizes of an image autoencoder, and the scale in which its latents are used."""

    widths: tuple[int, ...]
    """Channels of each stage, finest first; each stage but the last halves height and width."""
    layers: int
    """Residual blocks in a stage of the encoder; stages of the decoder have one more."""
    channels: int
    """Channels of a latent."""
    groups: int
    """Groups of channels in a GroupNorm."""
    scaling: float
    shift: float
    """Latents are used as (z - shift) * scaling."""
    middle_attention: bool
    quant_convolution: bool
    post_quant_convolution: bool
    """Whether there is a 1 x 1 convolution after the encoder, and before the decoder."""

    @property
    def factor(self) -> int:
        """The number of pixels for each value of the latent, along height and along width."""
        return 2 ** (len(self.widths) - 1)


class Convolution(nnx.Module):
    """A convolution of `size` x `size`, zero-padded so that height and width are kept; the output is float32."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, size: int = 3):
        self.kernel = param(rngs, (size, size, inputs, outputs), initializers.he_normal(), axes=(None,) * 4)
        self.bias = param(rngs, (outputs,), zeros, axes=(None,))

    def __call__(
        self, x: Float[Array, "b h w i"], *, stride: int = 1, padding: tuple[int, int] | None = None
    ) -> Float[Array, "b v u o"]:
        """Apply it; `padding` is the number of zeros before and after, for both rows and columns."""
        border = self.kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.kernel.dtype),
            self.kernel[...],
            (stride, stride),
            [padding or (border, border)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        return y + self.bias[...].astype(jnp.float32)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over the pixels and the channels of a group, then weight and bias."""

    def __init__(self, rngs: nnx.Rngs, width: int, groups: int):
        self.weight = param(rngs, (width,), ones, axes=(None,))
        self.bias = param(rngs, (width,), zeros, axes=(None,))
        self.groups = groups

    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h w m"]:
        grouped = rearrange(x, "b h w (g m) -> b h w g m", g=self.groups)
        centred = grouped - jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(centred**2, axis=(1, 2, 4), keepdims=True)
        y = rearrange(centred * jax.lax.rsqrt(variance + NORM_EPS), "b h w g m -> b h w (g m)")
        return y * self.weight[...] + self.bias[...]


class ResidualBlock(nnx.Module):
    """x + convolution(silu(norm(convolution(silu(norm(x)))))), with a 1 x 1 convolution of x if the width changes."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, groups: int):
        self.first_norm = GroupNorm(rngs, inputs, groups)
        self.first = Convolution(rngs, inputs, outputs)
        self.second_norm = GroupNorm(rngs, outputs, groups)
        self.second = Convolution(rngs, outputs, outputs)
        self.shortcut = Convolution(rngs, inputs, outputs, size=1) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        y = self.first(jax.nn.silu(self.first_norm(x)))
        y = self.second(jax.nn.silu(self.second_norm(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class PixelAttention(nnx.Module):
    """x plus single-head self-attention over all pixels of a picture."""

    def __init__(self, rngs: nnx.Rngs, width: int, groups: int):
        self.norm = GroupNorm(rngs, width, groups)
        self.query, self.key, self.value, self.output = (
            Linear(rngs, width, width, axes=(None, None), bias=True) for _ in range(4)
        )

    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h w m"]:
        _, height, width, _ = x.shape
        pixels = rearrange(self.norm(x), "b h w m -> b (h w) m").astype(self.query.kernel.dtype)
        q, k, v = self.query(pixels), self.key(pixels), self.value(pixels)

        def attended(q: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
            logits = jnp.einsum("blm,bnm->bln", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits / math.sqrt(q.shape[-1]))
            return jnp.einsum("bln,bnm->blm", weights.astype(v.dtype), v)

        if q.shape[1] <= QUERY_BLOCK:
            y = attended(q)
        else:
            padded = jnp.pad(q, ((0, 0), (0, -q.shape[1] % QUERY_BLOCK), (0, 0)))
            parts = jax.lax.map(attended, rearrange(padded, "b (n l) m -> n b l m", l=QUERY_BLOCK))
            y = rearrange(parts, "n b l m -> b (n l) m")[:, : q.shape[1]]
        return x + rearrange(self.output(y), "b (h w) m -> b h w m", h=height, w=width)


class Middle(nnx.Module):
    """Two residual blocks, with optional attention between them."""

    def __init__(self, rngs: nnx.Rngs, config: ImageVaeConfig):
        width = config.widths[-1]
        self.first = ResidualBlock(rngs, width, width, config.groups)
        self.attention = PixelAttention(rngs, width, config.groups) if config.middle_attention else None
        self.second = ResidualBlock(rngs, width, width, config.groups)

    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h w m"]:
        x = self.first(x)
        return self.second(x if self.attention is None else self.attention(x))


class Stage(nnx.Module):
    """Residual blocks at one resolution, and the convolution used to halve or double it."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, layers: int, groups: int, *, resamples: bool):
        self.blocks = nnx.List(
            ResidualBlock(rngs, outputs if layer else inputs, outputs, groups) for layer in range(layers)
        )
        self.resampling = Convolution(rngs, outputs, outputs) if resamples else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Pixels to the mean and the log variance of the latent."""

    def __init__(self, rngs: nnx.Rngs, config: ImageVaeConfig):
        widths, last = config.widths, len(config.widths) - 1
        self.first = Convolution(rngs, 3, widths[0])
        self.stages = nnx.List(
            Stage(rngs, before, width, config.layers, config.groups, resamples=stage < last)
            for stage, (before, width) in enumerate(zip((widths[0], *widths), widths))
        )
        self.middle = Middle(rngs, config)
        self.norm = GroupNorm(rngs, widths[-1], config.groups)
        self.last = Convolution(rngs, widths[-1], 2 * config.channels)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b v u z"]:
        x = self.first(pixels)
        for stage in self.stages:
            x = stage(x)
            if stage.resampling is not None:  # zero padding at the bottom and the right only
                x = stage.resampling(x, stride=2, padding=(0, 1))
        return self.last(jax.nn.silu(self.norm(self.middle(x))))


class Decoder(nnx.Module):
    """Latents to pixels; its stages go from the coarsest to the finest."""

    def __init__(self, rngs: nnx.Rngs, config: ImageVaeConfig):
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.first = Convolution(rngs, config.channels, widths[0])
        self.middle = Middle(rngs, config)
        self.stages = nnx.List(
            Stage(rngs, before, width, config.layers + 1, config.groups, resamples=stage < last)
            for stage, (before, width) in enumerate(zip((widths[0], *widths), widths))
        )
        self.norm = GroupNorm(rngs, widths[-1], config.groups)
        self.last = Convolution(rngs, widths[-1], 3)

    def __call__(self, latents: Float[Array, "b v u c"]) -> Float[Array, "b h w 3"]:
        x = self.middle(self.first(latents))
        for stage in self.stages:
            x = stage(x)
            if stage.resampling is not None:
                x = x.astype(stage.resampling.kernel.dtype)
                x = stage.resampling(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return self.last(jax.nn.silu(self.norm(x)))


class Autoencoder(nnx.Module):
    """Encoder and decoder; latents are neither shifted nor scaled."""

    def __init__(self, rngs: nnx.Rngs, config: ImageVaeConfig):
        channels = config.channels
        self.encoder, self.decoder = Encoder(rngs, config), Decoder(rngs, config)
        self.quant = Convolution(rngs, 2 * channels, 2 * channels, size=1) if config.quant_convolution else None
        self.post_quant = Convolution(rngs, channels, channels, size=1) if config.post_quant_convolution else None

    def encode(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b v u z"]:
        """Return mean and log variance, concatenated along the last axis."""
        with jax.default_matmul_precision(_precision(self)):
            moments = self.encoder(pixels)
            moments = moments if self.quant is None else self.quant(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return jnp.concatenate([mean, jnp.clip(log_variance, MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)], axis=-1)

    def decode(self, latents: Float[Array, "b v u c"]) -> Float[Array, "b h w 3"]:
        """Return pixels roughly in -1..1, not clipped."""
        with jax.default_matmul_precision(_precision(self)):
            return self.decoder(latents if self.post_quant is None else self.post_quant(latents))


def _precision(model: Autoencoder) -> str:
    """Return the precision of products; the default of a TPU would round float32 parameters to bfloat16."""
    return "highest" if model.encoder.first.kernel.dtype == jnp.float32 else "default"
