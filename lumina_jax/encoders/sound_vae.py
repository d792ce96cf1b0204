"""Mel spectrograms to latents and back, with the one-dimensional autoencoder of the released audio models.

In: a folder with one checkpoint and one configuration, as published (a Lightning .ckpt and a YAML file that contains
`ddconfig`), and log mel spectrograms [b t 80] from `lumina_jax/mel.py`. Out: the distribution of their latents
[b t/f c], with f = 2 and c = 20 for the published network, and spectrograms from latents.

The published autoencoder and vocoder use decimal logarithms of amplitudes, and `mel.py` natural ones. Arguments and
results here are natural logarithms. A configuration may state the base of its network: `log_base: e` or `log_base: 10`.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from typing_extensions import TypedDict

from lumina_jax.documents import parse_json, read_json, read_yaml
from lumina_jax.encoders.autoencoder import AnyArray, FrozenAutoencoder, Posterior, fingerprint_of, load_replicated
from lumina_jax.encoders.numbers import Count, Counts, Indices, Layers
from lumina_jax.encoders.sound_vae_layers import GROUPS, SoundAutoencoder, SoundVaeConfig, sound_rules
from lumina_jax.mel import BINS
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.weights.files import Renamed, TensorFiles
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.tensors import ComputedTensors, Tensors

CONFIGS = ("*.yaml", "*.yml", "*.json")
CHECKPOINT_PATTERNS = ("*.safetensors", "*.ckpt", "*.pt", "*.pth")
FIRST_STAGE = "first_stage_model."
"""The prefix of the autoencoder in a checkpoint of the whole diffusion model."""
SCALE_KEY = "scale_factor"
MIN_SCALE, MAX_SCALE = 1e-6, 1e6
"""The range of the factor of latents."""
LOG_UNITS = {"10": math.log(10), "e": 1.0}
"""The natural logarithm of each base."""

_SUPPORTED: dict[str, Any] = {"double_z": True, "resamp_with_conv": True, "tanh_out": False, "give_pre_end": False}
"""Settings for which only this value is supported, which is also the default."""
_UNUSED = ("dropout",)
_ATTENTION = re.compile(r"\.(q|k|v|proj_out)\.weight$")


class _Sizes(TypedDict):
    """Settings that determine the network."""

    ch: Count
    ch_mult: Counts
    num_res_blocks: Layers
    in_channels: Count
    out_ch: Count
    z_channels: Count
    kernel_size: NotRequired[Count]
    down_layers: NotRequired[Indices]
    attn_layers: NotRequired[Indices]


class _Settings(TypedDict):
    """The part of the configuration that contains the sizes."""

    embed_dim: Count
    ddconfig: _Sizes


class SoundVae(FrozenAutoencoder):
    """A loaded sound autoencoder; see `FrozenAutoencoder`."""

    def __init__(self, model: SoundAutoencoder, config: SoundVaeConfig, *, fingerprint: str, mesh: Mesh | None):
        super().__init__(model, config, fingerprint=fingerprint, mesh=mesh)
        self.config = config

    def encode(self, mel: Float[AnyArray, "b t n"]) -> Posterior:
        """Return the distribution of the latents of spectrograms [b t 80].

        Raises:
          ValueError: the number of frames is not a multiple of `factor`, or the number of bins differs.
        """
        frames, bins = mel.shape[1:]
        if bins != self.config.bins:
            raise ValueError(f"spectrograms must have {self.config.bins} bins, but have {bins}; compute them again")
        if frames % self.factor:
            raise ValueError(
                f"the number of frames must be a multiple of {self.factor}, the frames of one value of the latent, but "
                f"spectrograms have {frames}; pad them with silence"
            )
        return Posterior(*jnp.split(self._encode(self.on_devices(mel / self.config.log_unit)), 2, axis=-1))

    def decode(self, latents: Float[AnyArray, "b l c"]) -> Float[Array, "b t n"]:
        """Return the spectrograms [b t 80] of scaled latents.

        Raises:
          ValueError: the number of channels differs from that of the autoencoder.
        """
        if latents.shape[-1] != self.channels:
            raise ValueError(
                f"latents must have {self.channels} channels, as this autoencoder does, but have {latents.shape[-1]}; "
                "sample them with a model that was trained with it"
            )
        return self._decode(self.on_devices(self.unscaled(latents))) * self.config.log_unit


def sound_vae(
    name: str | Path, mesh: Mesh | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> SoundVae:
    """Load the autoencoder in a folder, or in a downloaded repository of the Hugging Face hub.

    Args:
      mesh: devices that each hold all parameters and share the sounds of a batch; None: the default device.
      dtype: the type of parameters and activations; norms and softmax are always computed in float32.

    Raises:
      ValueError: a file is missing or damaged, or describes another network; the message has the remedy.
    """
    file, tensors, config = _open(name)
    stored, rules = _first_stage(tensors), sound_rules(config)
    try:
        model = load_replicated(
            lambda: SoundAutoencoder(ParameterKeys(0), config), stored, rules, jnp.dtype(dtype), mesh
        )
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not match {file}: {error}") from error
    fingerprint = fingerprint_of(f"{dtype} {config}", [Path(tensors.path)])
    return SoundVae(model, config, fingerprint=fingerprint, mesh=mesh)


def read_sound_vae_config(name: str | Path) -> SoundVaeConfig:
    """Read the configuration of the autoencoder in a folder or repository. Weights are opened but not read.

    Raises:
      ValueError: as for `sound_vae`.
    """
    return _open(name)[2]


def _open(name: str | Path) -> tuple[Path, Any, SoundVaeConfig]:
    """Return the path of the configuration, the tensors of the checkpoint, and the configuration."""
    folder = local_folder(name, what="sound autoencoder")
    file, settings = find_config(folder, "ddconfig", what="sound autoencoder")
    tensors = find_checkpoint(folder, "state_dict", what="sound autoencoder")
    return file, tensors, _config(file, settings, tensors)


def find_checkpoint(folder: Path, key: str, *, what: str, preferred: tuple[str, ...] = ()) -> Any:
    """Open the only checkpoint in a folder, or the first of the `preferred` files that exists.

    Args:
      key: the key of the tensors in a PyTorch file that also contains other objects.
      what: what messages call the network.

    Raises:
      ValueError: there is no checkpoint, or there are several, or it is damaged.
    """
    found = [folder / name for name in preferred if (folder / name).is_file()][:1]
    found = found or sorted(path for pattern in CHECKPOINT_PATTERNS for path in folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold one checkpoint of a {what} ({', '.join(CHECKPOINT_PATTERNS)}), but holds "
            f"{', '.join(path.name for path in found) or 'none'}; {'keep one' if found else 'copy it there'}"
        )
    return TensorFiles(found[0]) if found[0].suffix == ".safetensors" else PickledTensors(found[0], within=key)


def find_config(folder: Path, key: str, *, what: str) -> tuple[Path, list[Mapping[str, Any]]]:
    """Read the only configuration in a folder that contains `key` at any depth.

    Returns:
      The path, and the nested mappings from the outermost to the one that contains `key`.

    Raises:
      ValueError: there is none, or there are several, or it cannot be read.
    """
    found = []
    for file in sorted(path for pattern in CONFIGS for path in folder.glob(pattern)):
        values = (read_json if file.suffix == ".json" else read_yaml)(file, Any)
        found += [(file, mappings) for mappings in _mappings_with(values, key)]
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold one configuration of a {what} ({', '.join(CONFIGS)}) with the setting {key}, "
            f"but holds {', '.join(file.name for file, _ in found) or 'none'}; "
            f"{'keep one' if found else 'copy it there'}"
        )
    return found[0]


def _mappings_with(values: Any, key: str) -> Iterator[list[Mapping[str, Any]]]:
    if not isinstance(values, Mapping):
        return
    if key in values:
        yield [values]
        return
    for inner in values.values():
        yield from ([values, *mappings] for mappings in _mappings_with(inner, key))


def _config(file: Path, settings: list[Mapping[str, Any]], tensors: Tensors) -> SoundVaeConfig:
    """Check a configuration and return it."""
    values: _Settings = parse_json(json.dumps(settings[-1]), _Settings, str(file))
    read, given = values["ddconfig"], settings[-1]["ddconfig"]
    unknown = sorted(given.keys() - {*_Sizes.__annotations__, *_SUPPORTED, *_UNUSED})
    if unknown:
        raise ValueError(f"{file} has settings that are not supported: {', '.join(unknown)}; use another autoencoder")
    for name, known in _SUPPORTED.items():
        if given.get(name, known) != known:
            raise ValueError(
                f"{file} has {name}={given[name]!r}, but only {known!r} is supported; use another autoencoder"
            )
    config = SoundVaeConfig(
        bins=read["in_channels"],
        widths=(read["ch"], *(read["ch"] * times for times in read["ch_mult"])),
        layers=read["num_res_blocks"],
        inner=read["z_channels"],
        channels=values["embed_dim"],
        kernel=read.get("kernel_size", 3),
        halvings=tuple(sorted(read.get("down_layers", []))),
        attended=tuple(sorted(read.get("attn_layers", []))),
        scaling=_scaling(file, settings, tensors),
        log_unit=log_unit(file, settings, "10"),
    )
    stages = len(config.widths) - 1
    rules = {
        f"in_channels={config.bins} and out_ch={read['out_ch']} must be {BINS}": config.bins == read["out_ch"] == BINS,
        f"kernel_size={config.kernel} must be odd": config.kernel % 2 == 1,
        f"ch={config.widths[0]} times each of ch_mult must be a multiple of {GROUPS}": not any(
            width % GROUPS for width in config.widths
        ),
        f"down_layers={list(config.halvings)} must be less than {stages - 1}, one less than the number of stages": all(
            0 <= level < stages - 1 for level in config.halvings
        ),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(f"{file}: {'; '.join(broken)}; use another autoencoder")
    return config


def log_unit(file: Path, settings: list[Mapping[str, Any]], default: str) -> float:
    """Return the natural logarithm of the base of a network's spectrograms, from the setting log_base.

    Args:
      default: the base if the setting is absent.

    Raises:
      ValueError: the base is neither 10 nor e.
    """
    base = str(next((values["log_base"] for values in settings if "log_base" in values), default))
    if base not in LOG_UNITS:
        raise ValueError(f"{file}: log_base must be {' or '.join(LOG_UNITS)}, but is {base}; change it")
    return LOG_UNITS[base]


def _scaling(file: Path, settings: list[Mapping[str, Any]], tensors: Tensors) -> float:
    """Return the factor of latents, from the checkpoint of a diffusion model or the configuration; otherwise 1."""
    if SCALE_KEY in tensors:
        given: Any = np.asarray(tensors[SCALE_KEY]).ravel().tolist()
        found = given[0] if len(given) == 1 else given
    else:
        given = [values[SCALE_KEY] for values in settings if SCALE_KEY in values]
        if not given and any(values.get("scale_by_std") for values in settings):
            raise ValueError(
                f"{file} scales latents by their standard deviation, but that number is only in the checkpoint of the "
                f"diffusion model, as {SCALE_KEY}; add the line '{SCALE_KEY}: <number>' at the beginning of {file.name}"
            )
        found = given[0] if given else 1.0
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = float(found)  # YAML reads numbers such as 2e-1 as strings
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not MIN_SCALE <= found <= MAX_SCALE:
        raise ValueError(
            f"{SCALE_KEY} must be a positive number from {MIN_SCALE:g} to {MAX_SCALE:g}, but is {found!r}; change it "
            f"in {file}"
        )
    return float(found)


def _first_stage(tensors: Tensors) -> Mapping[str, np.ndarray]:
    """Return the tensors of the autoencoder without prefix, with 1-wide kernels of attention as matrices."""
    prefix = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in tensors) else ""

    def rename(name: str) -> str | None:
        inner = name.removeprefix(prefix)
        used = name.startswith(prefix) and not inner.startswith(("loss.", "model_ema.")) and inner != SCALE_KEY
        return inner if used else None

    def shape(name: str) -> tuple[int, ...]:
        stored = tensors.shape(name)
        return stored[:-1] if _ATTENTION.search(name) and stored[-1:] == (1,) else stored

    shapes = {name: (shape(name), tensors.dtype(name)) for name in tensors if rename(name) is not None}
    return Renamed(ComputedTensors(shapes, lambda name: tensors[name].reshape(shapes[name][0])), rename)
