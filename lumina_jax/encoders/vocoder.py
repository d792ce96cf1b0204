"""Log mel spectrograms to samples with a published BigVGAN, the vocoder of the released audio models.

In: a folder with a generator and its configuration, either best_netG.pt and args.yml as published with Lumina-T2Audio,
or bigvgan_generator.pt and config.json as published by NVIDIA; and spectrograms [t 80] from `lumina_jax/mel.py`. The
former use decimal logarithms of amplitudes unless args.yml contains `log_base: e`. Out: 256 t samples in -1..1.

BigVGAN (Lee et al., arXiv 2206.04658) upsamples the sound with transposed convolutions. Each is followed by residual
blocks whose activations, x + sin(a x)^2 / b, are applied at twice the sampling rate between two low-pass filters.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from lumina_jax.encoders.sound_vae import find_checkpoint, find_config
from lumina_jax.encoders.sound_vae_layers import Convolution1d, convolution_1d
from lumina_jax.encoders.vocoder_config import VocoderConfig, vocoder_config
from lumina_jax.models.layers import ParameterKeys, param, zeros
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.modules import load_module
from lumina_jax.weights.rules import Rule, check_names
from lumina_jax.weights.tensors import ComputedTensors, Tensors

GENERATORS = ("best_netG.pt", "bigvgan_generator.pt")
TRANSPOSED_1D = (2, 0, 1)
"""The position of each axis of [samples, in, out] in PyTorch's [in, out, samples]."""
OUTER_KERNEL = 7
"""The kernel size of the first and the last convolution."""
TAPS = 12
"""The length of the low-pass filters around an activation."""
EPSILON = 1e-9
"""Added to the divisor of an activation."""
_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""PyTorch's two pairs of names for the magnitudes and directions of kernels with weight norm."""
_FILTER = re.compile(r"\.(upsample|downsample\.lowpass)\.filter$")


class Snake(nnx.Module):
    """x + sin(alpha x)^2 / beta, applied at twice the sampling rate to avoid aliasing."""

    def __init__(self, rngs: nnx.Rngs, width: int, config: VocoderConfig):
        self.alpha = param(rngs, (width,), zeros, axes=(None,))
        self.beta = param(rngs, (width,), zeros, axes=(None,)) if config.has_beta else None
        self.in_logs = config.in_logs

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        alpha = self.alpha[...]
        beta = alpha if self.beta is None else self.beta[...]
        alpha, beta = (jnp.exp(alpha), jnp.exp(beta)) if self.in_logs else (alpha, beta)
        even, odd = (y + jnp.sin(alpha * y) ** 2 / (beta + EPSILON) for y in upsample(x))
        return downsample(even, odd)


class VocoderBlock(nnx.Module):
    """Dilated convolutions, each with an activation before it and a residual sum after it (or after its pair)."""

    def __init__(self, rngs: nnx.Rngs, width: int, size: int, dilations: tuple[int, ...], config: VocoderConfig):
        count = len(dilations)
        self.dilations = dilations
        self.convolutions = nnx.List(Convolution1d(rngs, width, width, size) for _ in range(count))
        self.pairs = nnx.List(Convolution1d(rngs, width, width, size) for _ in range(count if config.pairs else 0))
        self.activations = nnx.List(Snake(rngs, width, config) for _ in range(count + len(self.pairs)))

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        count = 2 if len(self.pairs) else 1
        for index, (convolution, dilation) in enumerate(zip(self.convolutions, self.dilations)):
            y = convolution(self.activations[count * index](x), dilation=dilation)
            if len(self.pairs):
                y = self.pairs[index](self.activations[count * index + 1](y))
            x = x + y
        return x


class Upsampling(nnx.Module):
    """A transposed convolution with stride `times`."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int, size: int, times: int):
        self.kernel = param(rngs, (size, inputs, outputs), initializers.he_normal(), axes=(None,) * 3)
        self.bias = param(rngs, (outputs,), zeros, axes=(None,))
        self.times = times

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b u o"]:
        size = self.kernel.shape[0]
        border = size - 1 - (size - self.times) // 2
        return self.bias[...] + jax.lax.conv_general_dilated(
            x,
            self.kernel[::-1],
            (1,),
            [(border, border)],
            lhs_dilation=(self.times,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )


class Generator(nnx.Module):
    """The network, which computes in float32."""

    def __init__(self, rngs: nnx.Rngs, config: VocoderConfig):
        widths = [config.width // 2**step for step in range(len(config.steps) + 1)]
        self.first = Convolution1d(rngs, config.bins, widths[0], OUTER_KERNEL)
        self.steps = nnx.List(
            Upsampling(rngs, before, width, size, times)
            for before, width, (times, size) in zip(widths, widths[1:], config.steps)
        )
        self.blocks = nnx.List(
            VocoderBlock(rngs, width, size, dilations, config)
            for width in widths[1:]
            for size, dilations in config.blocks
        )
        self.activation = Snake(rngs, widths[-1], config)
        self.last = Convolution1d(rngs, widths[-1], 1, OUTER_KERNEL, bias=config.last_bias)
        self.tanh = config.tanh

    def __call__(self, spectrograms: Float[Array, "b t n"]) -> Float[Array, "b u"]:
        """Return samples in -1..1 of spectrograms in the logarithms of the network."""
        with jax.default_matmul_precision("highest"):
            x = self.first(spectrograms)
            count = len(self.blocks) // len(self.steps)
            for index, step in enumerate(self.steps):
                x = step(x)
                x = jnp.mean(
                    jnp.stack([block(x) for block in self.blocks[index * count : (index + 1) * count]]), axis=0
                )
            y = self.last(self.activation(x))[..., 0]
        return jnp.tanh(y) if self.tanh else jnp.clip(y, -1, 1)


class Vocoder:
    """A loaded vocoder; it is compiled once for each length."""

    def __init__(self, model: Generator, config: VocoderConfig):
        self.config = config
        self._run = functools.partial(jax.jit(Generator.__call__), model)

    def __call__(self, mel: Float[np.ndarray, "t bins"], rate: int) -> Float[np.ndarray, " n"]:
        """Return the n = 256 t samples of a spectrogram [t 80] of natural logarithms.

        Raises:
          ValueError: the vocoder has another sampling rate, or another number of bins.
        """
        if self.config.rate not in (None, rate):
            raise ValueError(
                f"the sampling rate must be {self.config.rate} Hz, as this vocoder needs, but is {rate} Hz; use a "
                "vocoder with that rate"
            )
        if mel.shape[1] != self.config.bins:
            raise ValueError(
                f"spectrograms must have {self.config.bins} bins, as this vocoder needs, but have {mel.shape[1]}; "
                "compute them again"
            )
        return np.asarray(self._run(jnp.asarray(mel[None] / self.config.log_unit, jnp.float32))[0])


def vocoder(name: str | Path) -> Vocoder:
    """Load the vocoder in a folder, or in a downloaded repository of the Hugging Face hub.

    Raises:
      ValueError: a file is missing or damaged, or describes another network; the message has the remedy.
    """
    folder = local_folder(name, what="vocoder")
    file, settings = find_config(folder, "upsample_rates", what="vocoder")
    config = vocoder_config(file, settings)
    tensors = find_checkpoint(folder, "generator", what="vocoder", preferred=GENERATORS)
    try:
        model = load_module(
            lambda: Generator(ParameterKeys(0), config), _weights(tensors), vocoder_rules(config), layers=1
        )
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not match {file}: {error}") from error
    return Vocoder(model, config)


def _weights(tensors: Tensors) -> Mapping[str, np.ndarray]:
    """Return the tensors with weight norm applied, and without filters, which are the same in every BigVGAN.

    Raises:
      ValueError: a kernel has a magnitude but no direction or the reverse, or a filter differs.
    """
    stored: dict[str, tuple[str, ...]] = {}
    for name in tensors:
        if _FILTER.search(name):
            taps = np.asarray(tensors[name], np.float32).ravel()
            if taps.shape != (TAPS,) or not np.allclose(taps, low_pass(), atol=1e-4):
                raise ValueError(f"{name} must be the low-pass filter of BigVGAN, but differs; use another vocoder")
            continue
        stored[name] = (name,)
    for magnitude, direction in _NORMS:
        for name in [name for name in stored if name.endswith(f".{magnitude}")]:
            start = name.removesuffix(magnitude)
            parts = (name, f"{start}{direction}")
            check_names([part for part in parts if part in stored], [Rule(part, part) for part in parts], layers=1)
            for part in parts:
                del stored[part]
            stored[f"{start}weight"] = parts
    shapes = {name: (tensors.shape(parts[-1]), tensors.dtype(parts[-1])) for name, parts in stored.items()}

    def read(name: str) -> np.ndarray:
        values = [np.asarray(tensors[part], np.float32) for part in stored[name]]
        if len(values) == 1:
            return values[0]
        magnitude, direction = values
        if magnitude.shape != (len(direction), *(1,) * (direction.ndim - 1)):
            raise ValueError(
                f"{stored[name][0]} must have one magnitude for each row of {name}, but has shape {magnitude.shape}; "
                "copy the checkpoint again"
            )
        size = np.sqrt(np.sum(direction.astype(np.float64) ** 2, axis=tuple(range(1, direction.ndim)), keepdims=True))
        return (direction * (magnitude / size)).astype(np.float32)

    return ComputedTensors(shapes, read)


def vocoder_rules(config: VocoderConfig) -> list[Rule]:
    """Return the rules between BigVGAN's names, after weight norm is applied, and ours."""
    rules = [*convolution_1d("conv_pre", "first"), *convolution_1d("conv_post", "last", bias=config.last_bias)]
    rules += _snake("activation_post", "activation", config)
    for step in range(len(config.steps)):
        rules += [Rule(f"ups.{step}.0.weight", f"steps.{step}.kernel", TRANSPOSED_1D)]
        rules += [Rule(f"ups.{step}.0.bias", f"steps.{step}.bias")]
        for block, (_, dilations) in enumerate(config.blocks, start=step * len(config.blocks)):
            theirs, ours = f"resblocks.{block}", f"blocks.{block}"
            for index in range(len(dilations)):
                rules += convolution_1d(
                    f"{theirs}.convs{1 if config.pairs else ''}.{index}", f"{ours}.convolutions.{index}"
                )
                rules += convolution_1d(f"{theirs}.convs2.{index}", f"{ours}.pairs.{index}") if config.pairs else []
            for index in range(len(dilations) * (2 if config.pairs else 1)):
                rules += _snake(f"{theirs}.activations.{index}", f"{ours}.activations.{index}", config)
    return rules


def _snake(theirs: str, ours: str, config: VocoderConfig) -> list[Rule]:
    names = ("alpha", "beta") if config.has_beta else ("alpha",)
    return [Rule(f"{theirs}.act.{name}", f"{ours}.{name}") for name in names]


@functools.cache
def low_pass() -> np.ndarray:
    """Return the half-band filter of BigVGAN: a sinc with a Kaiser window, whose 12 taps sum to 1.

    The half-width of the transition is 0.3 of the sampling rate.
    """
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula for attenuations above 50 dB
    offsets = np.arange(TAPS) - (TAPS - 1) / 2
    taps = np.kaiser(TAPS, beta) * np.sinc(offsets / 2)
    return (taps / taps.sum()).astype(np.float32)


def upsample(x: Float[Array, "b t m"]) -> tuple[Float[Array, "b t m"], Float[Array, "b t m"]]:
    """Return the even and the odd samples of x at twice the sampling rate; x is padded with its edge values."""
    taps, frames = low_pass(), x.shape[1]
    padded = jnp.pad(x, ((0, 0), (3, 3), (0, 0)), mode="edge")
    even = sum(taps[5 + 2 * d] * padded[:, 3 - d : 3 - d + frames] for d in range(-2, 4))
    odd = sum(taps[6 + 2 * d] * padded[:, 3 - d : 3 - d + frames] for d in range(-3, 3))
    return 2 * even, 2 * odd


def downsample(even: Float[Array, "b t m"], odd: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
    """Filter and take every other sample: the inverse of `upsample` for sounds without high frequencies."""
    taps, frames = low_pass(), even.shape[1]
    first, last = even[:, :1], odd[:, -1:]
    even = jnp.concatenate([first, first, even, last, last, last], axis=1)
    odd = jnp.concatenate([first, first, first, odd, last, last], axis=1)
    return sum(taps[5 + 2 * d] * even[:, 2 + d : 2 + d + frames] for d in range(-2, 4)) + sum(
        taps[6 + 2 * d] * odd[:, 3 + d : 3 + d + frames] for d in range(-3, 3)
    )
