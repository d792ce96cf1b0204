"""The image autoencoder in the files that diffusers publishes: config.json and the table of tensor names.

In: a folder with config.json and diffusion_pytorch_model.safetensors (or .bin, or a variant such as .fp16.safetensors
alone), a pipeline's folder with such a folder `vae` in it, or the id of a repository downloaded before. Out: the
configuration, and the network with its parameters.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.encoders.numbers import Count, Counts, Layers, Scale, Shift
from lumina_jax.encoders.stored import downloaded, stored_weights
from lumina_jax.encoders.vae_layers import Autoencoder, ImageVaeConfig
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.modules import fill, named_parameters
from lumina_jax.weights.rules import Rule, convolution, linear, norm

CONFIG_FILE, WEIGHTS = "config.json", ("diffusion_pytorch_model",)
FILES = (CONFIG_FILE, f"{WEIGHTS[0]}.safetensors")
WHAT = "image autoencoder"
MOST_STAGES = 8
"""Each stage but one halves a picture."""
OF_ANY_NAME = (CONFIG_FILE, f"{WEIGHTS[0]}*.safetensors*")

_ONLY: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}
"""Settings of which only these values are understood."""
_READ = {
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
"""Settings that shape the network, and what diffusers takes where a file, an old one say, leaves them out."""


class _Known(TypedDict, total=False):
    """The types of these settings."""

    block_out_channels: Counts
    layers_per_block: Layers
    latent_channels: Count
    norm_num_groups: Count
    scaling_factor: Scale
    shift_factor: Shift | None
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool
    down_block_types: list[str]
    up_block_types: list[str]


_UNUSED = ("sample_size", "force_upcast")
"""Settings that change nothing here: tiles have a size of their own, and no value of bfloat16 overflows."""


def vae_folder(name_or_folder: str | Path) -> Path:
    """The folder that holds config.json and the weights.

    Raises:
      ValueError: there is none; the message names the repository, the files and the command that downloads them.
    """
    folder = Path(name_or_folder)
    is_pipeline = (folder / "vae").is_dir() and not (folder / CONFIG_FILE).is_file()
    if folder.is_dir():
        return local_folder(folder / "vae" if is_pipeline else folder, files=[CONFIG_FILE], what=WHAT)
    for files, inside in ((FILES, ""), (FILES, "vae"), (OF_ANY_NAME, ""), (OF_ANY_NAME, "vae")):
        with contextlib.suppress(ValueError):
            return downloaded(name_or_folder, [str(Path(inside, file)) for file in files], WHAT) / inside
    return local_folder(name_or_folder, files=FILES, what=WHAT)  # which says what to download


def read_vae_config(folder: Path) -> ImageVaeConfig:
    """The configuration in `folder`, its weights unread.

    Raises:
      ValueError: a setting is unknown, or asks for another network than this one; the message names it.
    """
    file = folder / CONFIG_FILE
    values = read_json(file, dict[str, Any])
    unknown = sorted(name for name in values if name not in {*_ONLY, *_READ, *_UNUSED} and not name.startswith("_"))
    if unknown:
        raise ValueError(f"{file} has settings that this image autoencoder does not know: {', '.join(unknown)}")
    for name, known in _ONLY.items():
        if values.get(name, known[0]) not in known:
            raise ValueError(
                f"{file} asks for {name}={values[name]!r}, but this image autoencoder knows only "
                f"{' or '.join(map(repr, known))}"
            )
    read = {**_READ, **read_json(file, _Known)}
    widths = tuple(read["block_out_channels"])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(read[name]) != [kind] * len(widths):
            raise ValueError(f"{file} asks for {name}={read[name]}, but only {len(widths)} times {kind!r} is known")
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
    if len(widths) > MOST_STAGES:
        raise ValueError(f"{file}: block_out_channels must have at most {MOST_STAGES} stages, but has {len(widths)}")
    if any(width % config.groups for width in widths):
        raise ValueError(f"{file}: norm_num_groups={config.groups} must divide each of block_out_channels={widths}")
    return config


def load_autoencoder(folder: Path, config: ImageVaeConfig, dtype: jnp.dtype, mesh: Mesh | None) -> Autoencoder:
    """The network with the weights in `folder`, whole on every device of the mesh.

    Raises:
      ValueError: tensors are missing, unknown, of the wrong shape or not finite; the message names them.
    """
    tensors = stored_weights(folder, WEIGHTS)

    def build() -> Autoencoder:
        return Autoencoder(nnx.Rngs(0), config)

    shardings = None
    if mesh is not None:
        names = named_parameters(nnx.to_pure_dict(nnx.state(nnx.eval_shape(build))))
        shardings = dict.fromkeys(names, NamedSharding(mesh, PartitionSpec()))
    rules = vae_rules(config, first_names=_has_first_names(tensors))
    return fill(build, tensors, rules, layers=1, dtype=dtype, shardings=shardings)


def vae_rules(config: ImageVaeConfig, *, first_names: bool = False) -> list[Rule]:
    """The table between diffusers' names and ours.

    Args:
      first_names: the attention is called query, key, value, proj_attn, as in files of 2022 that are still in use.
    """
    last = len(config.widths) - 1
    rules = [
        *_half("encoder", config, first_names=first_names),
        *_half("decoder", config, first_names=first_names),
    ]
    before = config.widths[0]
    for place, width in enumerate(config.widths):
        theirs, ours = f"encoder.down_blocks.{place}", f"encoder.stages.{place}"
        rules += _stage(theirs, ours, config.layers, widens=before != width)
        rules += [] if place == last else convolution(f"{theirs}.downsamplers.0.conv", f"{ours}.resampling")
        before = width
    before = config.widths[-1]
    for place, width in enumerate(reversed(config.widths)):
        theirs, ours = f"decoder.up_blocks.{place}", f"decoder.stages.{place}"
        rules += _stage(theirs, ours, config.layers + 1, widens=before != width)
        rules += [] if place == last else convolution(f"{theirs}.upsamplers.0.conv", f"{ours}.resampling")
        before = width
    rules += convolution("quant_conv", "quant") if config.quant_convolution else []
    return rules + (convolution("post_quant_conv", "post_quant") if config.post_quant_convolution else [])


def _half(half: str, config: ImageVaeConfig, *, first_names: bool) -> list[Rule]:
    """The parts of the encoder or the decoder besides its stages."""
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
    names = ("query", "key", "value", "proj_attn") if first_names else ("to_q", "to_k", "to_v", "to_out.0")
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


def _has_first_names(names: Iterable[str]) -> bool:
    return any(name.endswith("attentions.0.query.weight") for name in names)
