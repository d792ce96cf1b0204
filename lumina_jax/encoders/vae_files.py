"""Reading the image autoencoder from files in the layout of diffusers.

In: a folder with config.json and diffusion_pytorch_model.safetensors (or .bin, or a single variant such as
.fp16.safetensors), the folder of a pipeline that has such a folder `vae`, or the id of a downloaded repository. Out:
the configuration, and the network with its parameters.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.encoders.autoencoder import load_replicated
from lumina_jax.encoders.numbers import Count, Counts, Layers, ScalingFactor, Shift
from lumina_jax.encoders.stored import downloaded, stored_weights
from lumina_jax.encoders.vae_layers import Autoencoder, ImageVaeConfig
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.rules import Rule, convolution, linear, norm

CONFIG_FILE, WEIGHTS = "config.json", ("diffusion_pytorch_model",)
FILES = (CONFIG_FILE, f"{WEIGHTS[0]}.safetensors")
WHAT = "image autoencoder"
MAX_STAGES = 8
"""The greatest number of stages; each but the last halves height and width."""
FILE_PATTERNS = (CONFIG_FILE, f"{WEIGHTS[0]}*.safetensors*")

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}
"""Settings for which only these values are supported; the first is the default."""
_DEFAULTS = {
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
}
"""Settings that determine the network, and diffusers' defaults, which apply if a file leaves them out."""


class _Settings(TypedDict, total=False):
    """The types of the settings in `_DEFAULTS`."""

    block_out_channels: Counts
    layers_per_block: Layers
    latent_channels: Count
    norm_num_groups: Count
    scaling_factor: ScalingFactor
    shift_factor: Shift | None
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool
    down_block_types: list[str]
    up_block_types: list[str]


_UNUSED = ("sample_size", "force_upcast")
"""Settings that are ignored: the size of tiles is chosen by the caller, and bfloat16 does not overflow."""


def vae_folder(name_or_folder: str | Path) -> Path:
    """Return the folder that holds config.json and the weights.

    Raises:
      ValueError: there is none; the message has the repository, the files and the command that downloads them.
    """
    folder = Path(name_or_folder)
    is_pipeline = (folder / "vae").is_dir() and not (folder / CONFIG_FILE).is_file()
    if folder.is_dir():
        return local_folder(folder / "vae" if is_pipeline else folder, files=[CONFIG_FILE], what=WHAT)
    for files, inside in ((FILES, ""), (FILES, "vae"), (FILE_PATTERNS, ""), (FILE_PATTERNS, "vae")):
        with contextlib.suppress(ValueError):
            return downloaded(name_or_folder, [str(Path(inside, file)) for file in files], WHAT) / inside
    return local_folder(name_or_folder, files=FILES, what=WHAT)  # raises an error that says what to download


def read_vae_config(folder: Path) -> ImageVaeConfig:
    """Read the configuration in `folder`, without the weights.

    Raises:
      ValueError: a setting is unknown or has a value that is not supported; the message names it.
    """
    file = folder / CONFIG_FILE
    values = read_json(file, dict[str, Any])
    unknown = sorted(
        name for name in values if name not in {*_SUPPORTED, *_DEFAULTS, *_UNUSED} and not name.startswith("_")
    )
    if unknown:
        raise ValueError(f"{file} has settings that are not supported: {', '.join(unknown)}; use another autoencoder")
    for name, known in _SUPPORTED.items():
        if values.get(name, known[0]) not in known:
            raise ValueError(
                f"{file} has {name}={values[name]!r}, but only {' or '.join(map(repr, known))} is supported; use "
                "another autoencoder"
            )
    read = {**_DEFAULTS, **read_json(file, _Settings)}
    widths = tuple(read["block_out_channels"])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(read[name]) != [kind] * len(widths):
            raise ValueError(
                f"{file} has {name}={read[name]}, but each of the {len(widths)} blocks must be {kind!r}; use another "
                "autoencoder"
            )
    config = ImageVaeConfig(
        widths=widths,
        layers=read["layers_per_block"],
        channels=read["latent_channels"],
        groups=read["norm_num_groups"],
        scaling=float(read["scaling_factor"]),
        shift=float(read["shift_factor"] or 0.0),
        middle_attention=read["mid_block_add_attention"],
        quant_convolution=read["use_quant_conv"],
        post_quant_convolution=read["use_post_quant_conv"],
    )
    if len(widths) > MAX_STAGES:
        raise ValueError(f"{file}: block_out_channels must have at most {MAX_STAGES} stages, but has {len(widths)}")
    if any(width % config.groups for width in widths):
        raise ValueError(f"{file}: norm_num_groups={config.groups} must divide each of block_out_channels={widths}")
    return config


def load_autoencoder(folder: Path, config: ImageVaeConfig, dtype: jnp.dtype, mesh: Mesh | None) -> Autoencoder:
    """Load the network in `folder`; every device of the mesh holds all parameters.

    Raises:
      ValueError: tensors are missing, unknown, of the wrong shape or not finite; the message names them.
    """
    tensors = stored_weights(folder, WEIGHTS)

    rules = vae_rules(config, old_names=_has_old_names(tensors))
    return load_replicated(lambda: Autoencoder(ParameterKeys(0), config), tensors, rules, dtype, mesh)


def vae_rules(config: ImageVaeConfig, *, old_names: bool = False) -> list[Rule]:
    """Return the rules between diffusers' names and ours.

    Args:
      old_names: the parts of the attention are called query, key, value and proj_attn, as in files from 2022.
    """
    last = len(config.widths) - 1
    rules = [
        *_half("encoder", config, old_names=old_names),
        *_half("decoder", config, old_names=old_names),
    ]
    before = config.widths[0]
    for stage, width in enumerate(config.widths):
        theirs, ours = f"encoder.down_blocks.{stage}", f"encoder.stages.{stage}"
        rules += _stage(theirs, ours, config.layers, widens=before != width)
        rules += [] if stage == last else convolution(f"{theirs}.downsamplers.0.conv", f"{ours}.resampling")
        before = width
    before = config.widths[-1]
    for stage, width in enumerate(reversed(config.widths)):
        theirs, ours = f"decoder.up_blocks.{stage}", f"decoder.stages.{stage}"
        rules += _stage(theirs, ours, config.layers + 1, widens=before != width)
        rules += [] if stage == last else convolution(f"{theirs}.upsamplers.0.conv", f"{ours}.resampling")
        before = width
    rules += convolution("quant_conv", "quant") if config.quant_convolution else []
    return rules + (convolution("post_quant_conv", "post_quant") if config.post_quant_convolution else [])


def _half(half: str, config: ImageVaeConfig, *, old_names: bool) -> list[Rule]:
    """Return the rules for the encoder or the decoder without its stages."""
    rules = [
        *convolution(f"{half}.conv_in", f"{half}.first"),
        *_block(f"{half}.mid_block.resnets.0", f"{half}.middle.first"),
        *_block(f"{half}.mid_block.resnets.1", f"{half}.middle.second"),
        *norm(f"{half}.conv_norm_out", f"{half}.norm", bias=True),
        *convolution(f"{half}.conv_out", f"{half}.last"),
    ]
    if not config.middle_attention:
        return rules
    theirs, ours = f"{half}.mid_block.attentions.0", f"{half}.middle.attention"
    names = ("query", "key", "value", "proj_attn") if old_names else ("to_q", "to_k", "to_v", "to_out.0")
    rules += norm(f"{theirs}.group_norm", f"{ours}.norm", bias=True)
    for name, part in zip(names, ("query", "key", "value", "output")):
        rules += linear(f"{theirs}.{name}", f"{ours}.{part}", bias=True)
    return rules


def _stage(theirs: str, ours: str, layers: int, *, widens: bool) -> list[Rule]:
    rules = convolution(f"{theirs}.resnets.0.conv_shortcut", f"{ours}.blocks.0.shortcut") if widens else []
    for layer in range(layers):
        rules += _block(f"{theirs}.resnets.{layer}", f"{ours}.blocks.{layer}")
    return rules


def _block(theirs: str, ours: str) -> list[Rule]:
    return [
        *norm(f"{theirs}.norm1", f"{ours}.first_norm", bias=True),
        *convolution(f"{theirs}.conv1", f"{ours}.first"),
        *norm(f"{theirs}.norm2", f"{ours}.second_norm", bias=True),
        *convolution(f"{theirs}.conv2", f"{ours}.second"),
    ]


def _has_old_names(names: Iterable[str]) -> bool:
    return any(name.endswith("attentions.0.query.weight") for name in names)
