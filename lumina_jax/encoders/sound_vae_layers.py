"""The network of the sound autoencoder, and the names of its parameters in the released files.

It consists of one-dimensional convolutions over the frames of a mel spectrogram. In and out: arrays [b t c] float32,
channels last; the bins of a spectrogram are its channels. Types are handled as in `vae_layers.py`, whose norms and
attention treat a sound as a picture of one row.
This is the autoencoder of Make-An-Audio 2, Huang et al., arXiv 2305.18474, as published with Lumina-T2Audio and
Lumina-T2Music.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from lumina_jax.encoders.vae_layers import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, GroupNorm, PixelAttention
from lumina_jax.models.layers import param, zeros
from lumina_jax.weights.rules import MATRIX, Rule, norm

CONVOLUTION_1D = (2, 1, 0)
"""The position of each axis of [frames, in, out] in PyTorch's [out, in, frames]."""
GROUPS = 32
"""Groups of channels in a GroupNorm."""
RESAMPLING_KERNEL = DECODER_KERNEL = 3
"""Kernel sizes in frames: of the convolutions that resample, and of the residual blocks in the decoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundVaeConfig:
    """Sizes of a sound autoencoder, and the scale in which its latents are used."""

    bins: int
    """The channels of a spectrogram."""
    widths: tuple[int, ...]
    """Channels of the first convolution, then of each stage, finest first."""
    layers: int
    """Residual blocks in a stage of the encoder; stages of the decoder have one more."""
    inner: int
    """Channels of the last layer of the encoder, which a 1-wide convolution reduces to `channels`."""
    channels: int
    """The channels of a latent."""
    kernel: int
    """The odd kernel size of the encoder, and of the first and last convolutions of the decoder."""
    halvings: tuple[int, ...]
    """Indices of the stages of the encoder after which frames are halved; the decoder doubles them again."""
    attended: tuple[int, ...]
    """Indices of the stages with attention after each residual block."""
    scaling: float
    """Latents are used as z * scaling."""
    log_unit: float
    """The natural logarithm of the base of the network's spectrograms, such as log(10) for decimal logarithms."""

    @property
    def factor(self) -> int:
        """The number of frames for each value of the latent."""
        return 2 ** len(self.halvings)

    @property
    def shift(self) -> float:
        """Latents are not shifted."""
        return 0.0


class Convolution1d(nnx.Module):
    """A convolution over `size` frames, zero-padded so that the length is kept; the output is float32."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, size: int, *, bias: bool = True):
        self.kernel = param(rngs, (size, inputs, outputs), initializers.he_normal(), axes=(None,) * 3)
        self.bias = param(rngs, (outputs,), zeros, axes=(None,)) if bias else None

    def __call__(
        self, x: Float[Array, "b t i"], *, stride: int = 1, dilation: int = 1, padding: tuple[int, int] | None = None
    ) -> Float[Array, "b u o"]:
        """Apply it; `padding` is the number of zeros before and after."""
        border = dilation * (self.kernel.shape[0] // 2)
        y = jax.lax.conv_general_dilated(
            x.astype(self.kernel.dtype),
            self.kernel[...],
            (stride,),
            [padding or (border, border)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            preferred_element_type=jnp.float32,
        )
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


class SoundBlock(nnx.Module):
    """x + convolution(silu(norm(convolution(silu(norm(x)))))), with a 1-wide convolution of x if the width changes."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, size: int):
        self.first_norm = GroupNorm(rngs, inputs, GROUPS)
        self.first = Convolution1d(rngs, inputs, outputs, size)
        self.second_norm = GroupNorm(rngs, outputs, GROUPS)
        self.second = Convolution1d(rngs, outputs, outputs, size)
        self.shortcut = Convolution1d(rngs, inputs, outputs, 1) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        y = self.first(jax.nn.silu(as_row(self.first_norm, x)))
        y = self.second(jax.nn.silu(as_row(self.second_norm, y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SoundStage(nnx.Module):
    """Residual blocks at one resolution, with optional attention after each, and the convolution used to resample."""

    def __init__(
        self, rngs: nnx.Rngs, inputs: int, outputs: int, layers: int, size: int, *, attends: bool, resamples: bool
    ):
        self.blocks = nnx.List(SoundBlock(rngs, outputs if layer else inputs, outputs, size) for layer in range(layers))
        self.attentions = nnx.List(PixelAttention(rngs, outputs, GROUPS) for _ in range(layers if attends else 0))
        self.resampling = Convolution1d(rngs, outputs, outputs, RESAMPLING_KERNEL) if resamples else None

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        for layer, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = as_row(self.attentions[layer], x)
        return x


class SoundMiddle(nnx.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, rngs: nnx.Rngs, width: int, size: int):
        self.first = SoundBlock(rngs, width, width, size)
        self.attention = PixelAttention(rngs, width, GROUPS)
        self.second = SoundBlock(rngs, width, width, size)

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        return self.second(as_row(self.attention, self.first(x)))


class SoundEncoder(nnx.Module):
    """Spectrograms to the input of `SoundAutoencoder.quant`."""

    def __init__(self, rngs: nnx.Rngs, config: SoundVaeConfig):
        widths, size = config.widths, config.kernel
        self.first = Convolution1d(rngs, config.bins, widths[0], size)
        self.stages = nnx.List(
            SoundStage(
                rngs,
                before,
                width,
                config.layers,
                size,
                attends=level in config.attended,
                resamples=level in config.halvings,
            )
            for level, (before, width) in enumerate(itertools.pairwise(widths))
        )
        self.middle = SoundMiddle(rngs, widths[-1], size)
        self.norm = GroupNorm(rngs, widths[-1], GROUPS)
        self.last = Convolution1d(rngs, widths[-1], 2 * config.inner, size)

    def __call__(self, spectrograms: Float[Array, "b t n"]) -> Float[Array, "b l z"]:
        x = self.first(spectrograms)
        for stage in self.stages:
            x = stage(x)
            if stage.resampling is not None:  # zero padding at the end only
                x = stage.resampling(x, stride=2, padding=(0, 1))
        return self.last(jax.nn.silu(as_row(self.norm, self.middle(x))))


class SoundDecoder(nnx.Module):
    """The output of `SoundAutoencoder.post_quant` to spectrograms; stages go from the coarsest to the finest."""

    def __init__(self, rngs: nnx.Rngs, config: SoundVaeConfig):
        widths = config.widths[:0:-1]
        self.first = Convolution1d(rngs, config.inner, widths[0], config.kernel)
        self.middle = SoundMiddle(rngs, widths[0], DECODER_KERNEL)
        self.stages = nnx.List(
            SoundStage(
                rngs,
                before,
                width,
                config.layers + 1,
                DECODER_KERNEL,
                attends=level in config.attended,
                resamples=level - 1 in config.halvings,
            )
            for level, before, width in zip(reversed(range(len(widths))), (widths[0], *widths), widths)
        )
        self.norm = GroupNorm(rngs, widths[-1], GROUPS)
        self.last = Convolution1d(rngs, widths[-1], config.bins, config.kernel)

    def __call__(self, x: Float[Array, "b l z"]) -> Float[Array, "b t n"]:
        x = self.middle(self.first(x))
        for stage in self.stages:
            x = stage(x)
            if stage.resampling is not None:
                x = stage.resampling(jnp.repeat(x.astype(stage.resampling.kernel.dtype), 2, axis=1))
        return self.last(jax.nn.silu(as_row(self.norm, x)))


class SoundAutoencoder(nnx.Module):
    """Encoder and decoder; latents are not scaled."""

    def __init__(self, rngs: nnx.Rngs, config: SoundVaeConfig):
        self.encoder, self.decoder = SoundEncoder(rngs, config), SoundDecoder(rngs, config)
        self.quant = Convolution1d(rngs, 2 * config.inner, 2 * config.channels, 1)
        self.post_quant = Convolution1d(rngs, config.channels, config.inner, 1)

    def encode(self, spectrograms: Float[Array, "b t n"]) -> Float[Array, "b l z"]:
        """Return mean and log variance, concatenated along the last axis."""
        with jax.default_matmul_precision(self._precision):
            mean, log_variance = jnp.split(self.quant(self.encoder(spectrograms)), 2, axis=-1)
        return jnp.concatenate([mean, jnp.clip(log_variance, MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)], axis=-1)

    def decode(self, latents: Float[Array, "b l c"]) -> Float[Array, "b t n"]:
        """Return spectrograms in the logarithms of the network."""
        with jax.default_matmul_precision(self._precision):
            return self.decoder(self.post_quant(latents))

    @property
    def _precision(self) -> str:
        """The precision of products; the default of a TPU would round float32 parameters to bfloat16."""
        return "highest" if self.quant.kernel.dtype == jnp.float32 else "default"


def as_row(layer: GroupNorm | PixelAttention, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
    """Apply a layer of the image autoencoder to x as a picture of one row."""
    return layer(x[:, None])[:, 0]


def sound_rules(config: SoundVaeConfig) -> list[Rule]:
    """Return the rules between the published names and ours."""
    rules = [*convolution_1d("quant_conv", "quant"), *convolution_1d("post_quant_conv", "post_quant")]
    levels = len(config.widths) - 1
    width = config.widths[0]
    for level, after in enumerate(config.widths[1:]):
        theirs, ours = f"encoder.down.{level}", f"encoder.stages.{level}"
        rules += _stage(theirs, ours, config.layers, widens=width != after, attends=level in config.attended)
        rules += convolution_1d(f"{theirs}.downsample.conv", f"{ours}.resampling") if level in config.halvings else []
        width = after
    for stage, after in enumerate(config.widths[:0:-1]):
        level = levels - 1 - stage
        theirs, ours = f"decoder.up.{level}", f"decoder.stages.{stage}"
        rules += _stage(theirs, ours, config.layers + 1, widens=width != after, attends=level in config.attended)
        rules += convolution_1d(f"{theirs}.upsample.conv", f"{ours}.resampling") if level - 1 in config.halvings else []
        width = after
    for half in ("encoder", "decoder"):
        rules += [
            *convolution_1d(f"{half}.conv_in", f"{half}.first"),
            *convolution_1d(f"{half}.conv_out", f"{half}.last"),
        ]
        rules += norm(f"{half}.norm_out", f"{half}.norm", bias=True)
        rules += _block(f"{half}.mid.block_1", f"{half}.middle.first")
        rules += _attention(f"{half}.mid.attn_1", f"{half}.middle.attention")
        rules += _block(f"{half}.mid.block_2", f"{half}.middle.second")
    return rules


def _stage(theirs: str, ours: str, layers: int, *, widens: bool, attends: bool) -> list[Rule]:
    rules = convolution_1d(f"{theirs}.block.0.nin_shortcut", f"{ours}.blocks.0.shortcut") if widens else []
    for layer in range(layers):
        rules += _block(f"{theirs}.block.{layer}", f"{ours}.blocks.{layer}")
        rules += _attention(f"{theirs}.attn.{layer}", f"{ours}.attentions.{layer}") if attends else []
    return rules


def _block(theirs: str, ours: str) -> list[Rule]:
    return [
        *norm(f"{theirs}.norm1", f"{ours}.first_norm", bias=True),
        *convolution_1d(f"{theirs}.conv1", f"{ours}.first"),
        *norm(f"{theirs}.norm2", f"{ours}.second_norm", bias=True),
        *convolution_1d(f"{theirs}.conv2", f"{ours}.second"),
    ]


def _attention(theirs: str, ours: str) -> list[Rule]:
    rules = norm(f"{theirs}.norm", f"{ours}.norm", bias=True)
    for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "output")):
        rules += [Rule(f"{theirs}.{name}.weight", f"{ours}.{part}.kernel", MATRIX)]
        rules += [Rule(f"{theirs}.{name}.bias", f"{ours}.{part}.bias")]
    return rules


def convolution_1d(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """Return the rules for a one-dimensional convolution and its optional bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}.kernel", CONVOLUTION_1D)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}.bias")] if bias else rules
