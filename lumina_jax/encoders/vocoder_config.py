"""The configuration of a published BigVGAN: args.yml of the authors' audio models, or config.json of NVIDIA."""

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
    """Samples a second; None: the configuration doesn't say."""
    width: int
    """Channels of the first convolution; each step halves them."""
    steps: tuple[tuple[int, int], ...]
    """By how much each step lengthens the sound, and the samples under its kernel."""
    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    """Samples under the kernels of each block of a step, and their dilations."""
    pairs: bool
    """Each dilated convolution is followed by one that isn't."""
    has_beta: bool
    """What divides the sine is a parameter of its own, not its frequency."""
    in_logs: bool
    """Parameters of activations are stored as their logarithms."""
    last_bias: bool
    tanh: bool
    """The last activation; else samples are cut off at -1 and 1."""
    log_unit: float
    """Natural logarithms in 1 of the network's spectrograms."""


class _Settings(TypedDict):
    """What a configuration says of the network and its spectrograms."""

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
    """The configuration, checked."""
    values: _Settings = parse_json(json.dumps(settings[-1]), _Settings, str(file))
    rates, sizes = values["upsample_rates"], values["upsample_kernel_sizes"]
    pairs = str(values.get("resblock", "1")) == "1"
    most = 3 if pairs else 2  # dilations; BigVGAN leaves out further ones
    config = VocoderConfig(
        bins=values["num_mels"],
        rate=values.get("sampling_rate"),
        width=values["upsample_initial_channel"],
        steps=tuple(zip(rates, sizes)),
        blocks=tuple(
            (size, tuple(dilations[:most]))
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
        f"upsample_rates={rates} must make {HOP} samples of a frame": hop == HOP,
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
        raise ValueError(f"{file} does not fit the spectrograms here: {'; '.join(broken)}; take another vocoder")
    return config
