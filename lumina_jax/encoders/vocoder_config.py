"""The configuration of a published BigVGAN: args.yml of the released audio models, or NVIDIA's config.json."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from lumina_jax.documents import parse_json
from lumina_jax.encoders.numbers import Count, Counts, Frequency
from lumina_jax.encoders.sound_vae import log_unit
from lumina_jax.mel import BINS, FFT, HIGHEST, HOP


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Sizes of a BigVGAN."""

    bins: int
    rate: int | None
    """The sampling rate in Hz; None: the configuration does not give it."""
    width: int
    """Channels of the first convolution; each upsampling step halves them."""
    steps: tuple[tuple[int, int], ...]
    """The stride and the kernel size of each upsampling step."""
    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    """The kernel size and the dilations of each residual block in a step."""
    pairs: bool
    """Whether each dilated convolution is followed by one without dilation."""
    has_beta: bool
    """Whether the divisor of the activation is a separate parameter, instead of its frequency."""
    in_logs: bool
    """Whether parameters of activations are stored as logarithms."""
    last_bias: bool
    tanh: bool
    """Whether tanh is applied at the end; otherwise samples are clipped to -1..1."""
    log_unit: float
    """The natural logarithm of the base of the network's spectrograms."""


class _Settings(TypedDict):
    """Settings of the network and its spectrograms."""

    num_mels: Count
    upsample_initial_channel: Count
    upsample_rates: Counts
    upsample_kernel_sizes: Counts
    resblock_kernel_sizes: Counts
    resblock_dilation_sizes: list[Counts]
    activation: str
    snake_logscale: bool
    resblock: NotRequired[str | int]
    sampling_rate: NotRequired[Count | None]
    use_bias_at_final: NotRequired[bool]
    use_tanh_at_final: NotRequired[bool]
    hop_size: NotRequired[int]
    n_fft: NotRequired[int]
    win_size: NotRequired[int]
    fmin: NotRequired[float | None]
    fmax: NotRequired[Frequency | None]


def vocoder_config(file: Path, settings: list[Mapping[str, Any]]) -> VocoderConfig:
    """Check a configuration and return it."""
    values: _Settings = parse_json(json.dumps(settings[-1]), _Settings, str(file))
    rates, sizes = values["upsample_rates"], values["upsample_kernel_sizes"]
    pairs = str(values.get("resblock", "1")) == "1"
    dilation_count = 3 if pairs else 2  # BigVGAN ignores further dilations
    config = VocoderConfig(
        bins=values["num_mels"],
        rate=values.get("sampling_rate"),
        width=values["upsample_initial_channel"],
        steps=tuple(zip(rates, sizes)),
        blocks=tuple(
            (size, tuple(dilations[:dilation_count]))
            for size, dilations in zip(values["resblock_kernel_sizes"], values["resblock_dilation_sizes"])
        ),
        pairs=pairs,
        has_beta=values["activation"] == "snakebeta",
        in_logs=values["snake_logscale"],
        last_bias=values.get("use_bias_at_final", True),
        tanh=values.get("use_tanh_at_final", True),
        log_unit=log_unit(file, settings, "e" if file.suffix == ".json" else "10"),
    )
    hop = math.prod(rates)
    rate, highest = config.rate or 2 * HIGHEST, values.get("fmax")
    half = rate / 2
    rules = {
        f"num_mels={config.bins} must be {BINS}": config.bins == BINS,
        f"upsample_rates={rates} must have the product {HOP}, the samples of a frame": hop == HOP,
        f"hop_size={values.get('hop_size')} must be {HOP}": values.get("hop_size", HOP) == HOP,
        f"n_fft={values.get('n_fft')} must be {FFT}": values.get("n_fft", FFT) == FFT,
        f"win_size={values.get('win_size')} must be {FFT}": values.get("win_size", FFT) == FFT,
        f"fmin={values.get('fmin')} must be 0": not values.get("fmin"),
        f"fmax={highest if highest is None else f'{highest:g}'} must be {min(HIGHEST, half):g}": "fmax" not in values
        or (half if highest is None else highest) == min(HIGHEST, half),
        f"activation={values['activation']!r} must be snake or snakebeta": values["activation"]
        in ("snake", "snakebeta"),
        "each of upsample_kernel_sizes must exceed its rate by an even number": all(
            size >= times and (size - times) % 2 == 0 for times, size in config.steps
        ),
        "resblock_kernel_sizes must be odd": all(size % 2 for size, _ in config.blocks),
        "there must be as many upsample_kernel_sizes as upsample_rates": len(rates) == len(sizes),
        "there must be as many resblock_dilation_sizes as resblock_kernel_sizes": len(values["resblock_kernel_sizes"])
        == len(values["resblock_dilation_sizes"]),
        f"upsample_initial_channel={config.width} must be a multiple of {2 ** len(rates)}, as each step halves it": (
            config.width % 2 ** len(rates) == 0
        ),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(
            f"{file} does not match the spectrograms of lumina_jax: {'; '.join(broken)}; use another vocoder"
        )
    return config
