"""Mel spectrograms to latents and back, with the one-dimensional autoencoder of the released audio models.

In: a folder with one checkpoint and one configuration, as the authors publish them (a Lightning .ckpt beside a YAML
with `ddconfig`), and log mel spectrograms [b t 80] as `lumina_jax/mel.py` makes them. Out: the distribution of their
latents [b t/f c], f = 2 and c = 20 for the published one, and latents back to spectrograms. A latent in the scale that
diffusion models use, "scaled", is z * scaling.

The published autoencoder and its vocoder know decimal logarithms of amplitudes, `mel.py` natural ones; what comes in
and goes out here is natural. A configuration with `log_base: e` or `log_base: 10` says otherwise of its network.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key
from typing_extensions import TypedDict

from lumina_jax.documents import parse_json, read_json, read_yaml
from lumina_jax.encoders.numbers import Count, Counts, Indices, Layers
from lumina_jax.encoders.sound_vae_layers import GROUPS, SoundAutoencoder, SoundVaeConfig, sound_rules
from lumina_jax.mel import BINS
from lumina_jax.parallel.mesh import axis_size, row_spec
from lumina_jax.weights.files import Renamed, TensorFiles
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.modules import fill, named_parameters
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.tensors import ComputedTensors, Tensors

CONFIGS = ("*.yaml", "*.yml", "*.json")
CHECKPOINTS = ("*.safetensors", "*.ckpt", "*.pt", "*.pth")
WITHIN_DIFFUSION = "first_stage_model."
SCALE = "scale_factor"
SCALES = 1e-6, 1e6
"""The smallest and the largest that latents are multiplied with."""
LOG_UNITS = {"10": math.log(10), "e": 1.0}
"""Natural logarithms in one of each base."""

_ONLY: dict[str, Any] = {"double_z": True, "resamp_with_conv": True, "tanh_out": False, "give_pre_end": False}
"""Settings of which only this value, which is also the default, is understood."""
_UNUSED = ("dropout",)
_ATTENTION = re.compile(r"\.(q|k|v|proj_out)\.weight$")

AnyArray = Array | np.ndarray


class _Sizes(TypedDict):
    """Settings that shape the network."""

    ch: Count
    ch_mult: Counts
    num_res_blocks: Layers
    in_channels: Count
    out_ch: Count
    z_channels: Count
    kernel_size: NotRequired[Count]
    down_layers: NotRequired[Indices]
    attn_layers: NotRequired[Indices]


class _Around(TypedDict):
    """What stands around the sizes."""

    embed_dim: Count
    ddconfig: _Sizes


class Posterior(NamedTuple):
    """The normal distribution of each value of a latent, as the encoder has it, not scaled."""

    mean: Float[AnyArray, "b l c"]
    log_variance: Float[AnyArray, "b l c"]


class SoundVae:
    """A sound autoencoder ready to use; its programs are compiled once for each shape of batch."""

    def __init__(self, model: SoundAutoencoder, config: SoundVaeConfig, *, fingerprint: str, mesh: Mesh | None):
        self.config = config
        self.factor, self.channels = config.factor, config.channels
        self.fingerprint = fingerprint
        self._mesh = mesh
        self.devices = 1 if mesh is None else axis_size(mesh, "data", "fsdp")
        self._encode = functools.partial(jax.jit(SoundAutoencoder.encode), model)
        self._decode = functools.partial(jax.jit(SoundAutoencoder.decode), model)

    def encode(self, mel: Float[AnyArray, "b t n"]) -> Posterior:
        """The distribution of the latents of spectrograms [b t 80].

        Raises:
          ValueError: the frames are no multiple of `factor`, or the bins are not those of the autoencoder.
        """
        frames, bins = mel.shape[1:]
        if bins != self.config.bins:
            raise ValueError(f"spectrograms must have {self.config.bins} bins, but they have {bins}; make them anew")
        if frames % self.factor:
            raise ValueError(
                f"the frames must be a multiple of the {self.factor} frames of a value of the latent, but the "
                f"spectrograms have {frames}; fill them up with silence"
            )
        return Posterior(*jnp.split(self._encode(self._placed(mel / self.config.log_unit)), 2, axis=-1))

    def sample(self, posterior: Posterior, key: Key[Array, ""]) -> Float[Array, "b l c"]:
        """Scaled latents drawn from their distribution, as training uses them."""
        noise = jax.random.normal(key, posterior.mean.shape)
        return self.scaled(posterior.mean + jnp.exp(posterior.log_variance / 2) * noise)

    def scaled(self, latents: Float[Any, "*b c"]) -> Any:
        """Latents of the network in the scale of diffusion models."""
        return latents * self.config.scaling

    def decode(self, latents: Float[AnyArray, "b l c"]) -> Float[Array, "b t n"]:
        """Spectrograms [b t 80] of scaled latents.

        Raises:
          ValueError: the latents have other channels than the autoencoder's.
        """
        if latents.shape[-1] != self.channels:
            raise ValueError(
                f"latents must have the {self.channels} channels of the autoencoder, but they have "
                f"{latents.shape[-1]}; sample them with a model of this autoencoder"
            )
        return self._decode(self._placed(latents / self.config.scaling)) * self.config.log_unit

    def _placed(self, x: AnyArray) -> Array:
        """On the devices of the mesh: sounds spread over its rows if they divide evenly, else whole on each."""
        if self._mesh is None:
            return jnp.asarray(x)
        spec = PartitionSpec() if len(x) % self.devices else row_spec(self._mesh)
        return jax.device_put(x, NamedSharding(self._mesh, spec))


def sound_vae(
    name: str | Path, mesh: Mesh | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> SoundVae:
    """The autoencoder of a folder, or of a repository of the hub downloaded before.

    Args:
      mesh: devices that hold the parameters whole and share the sounds of a batch; None: the default device.
      dtype: of parameters and activations; norms and softmax are float32 in either.

    Raises:
      ValueError: a file is missing or damaged, or asks for another network; the message names the remedy.
    """
    file, tensors, config = _opened(name)
    stored = _first_stage(tensors)

    def build() -> SoundAutoencoder:
        return SoundAutoencoder(nnx.Rngs(0), config)

    shardings = None
    if mesh is not None:
        names = named_parameters(nnx.to_pure_dict(nnx.state(nnx.eval_shape(build))))
        shardings = dict.fromkeys(names, NamedSharding(mesh, PartitionSpec()))
    try:
        model = fill(build, stored, sound_rules(config), layers=1, dtype=jnp.dtype(dtype), shardings=shardings)
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not fit {file.name} beside it: {error}") from error
    total = hashlib.sha256(f"{dtype} {config}".encode())
    with open(tensors.path, "rb") as opened:
        total.update(hashlib.file_digest(opened, "sha256").digest())
    return SoundVae(model, config, fingerprint=total.hexdigest()[:16], mesh=mesh)


def read_sound_vae_config(name: str | Path) -> SoundVaeConfig:
    """The configuration of the autoencoder in a folder or repository; its weights are opened, but not read.

    Raises:
      ValueError: as for `sound_vae`.
    """
    return _opened(name)[2]


def _opened(name: str | Path) -> tuple[Path, Any, SoundVaeConfig]:
    """The file of the configuration, the checkpoint, and what both say of the network."""
    folder = local_folder(name, what="sound autoencoder")
    file, settings = read_settings(folder, "ddconfig", what="sound autoencoder")
    tensors = checkpoint(folder, "state_dict", what="sound autoencoder")
    return file, tensors, _config(file, settings, tensors)


def checkpoint(folder: Path, within: str, *, what: str, preferred: tuple[str, ...] = ()) -> Any:
    """The tensors of the only checkpoint in a folder, of the first of `preferred` where it is there.

    Args:
      within: the name under which a file of PyTorch holds the tensors among other things.

    Raises:
      ValueError: there is no checkpoint, or more than one, or it is damaged.
    """
    found = [folder / name for name in preferred if (folder / name).is_file()][:1]
    found = found or sorted(path for pattern in CHECKPOINTS for path in folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold one checkpoint of a {what} ({', '.join(CHECKPOINTS)}), but it holds "
            f"{', '.join(path.name for path in found) or 'none'}; {'keep one' if found else 'copy it there'}"
        )
    return TensorFiles(found[0]) if found[0].suffix == ".safetensors" else PickledTensors(found[0], within=within)


def read_settings(folder: Path, wanted: str, *, what: str) -> tuple[Path, list[Mapping[str, Any]]]:
    """The only configuration of a folder that has the setting `wanted` somewhere within.

    Returns:
      The file, and its mappings from the outermost to the one with the setting.

    Raises:
      ValueError: there is none, or more than one, or it cannot be read.
    """
    found = []
    for file in sorted(path for pattern in CONFIGS for path in folder.glob(pattern)):
        values = (read_json if file.suffix == ".json" else read_yaml)(file, Any)
        found += [(file, path) for path in _paths(values, wanted)]
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold one configuration of a {what} ({', '.join(CONFIGS)}) with the setting {wanted}, "
            f"but it holds {', '.join(file.name for file, _ in found) or 'none'}; "
            f"{'keep one' if found else 'copy it there'}"
        )
    return found[0]


def _paths(values: Any, wanted: str) -> Iterator[list[Mapping[str, Any]]]:
    if not isinstance(values, Mapping):
        return
    if wanted in values:
        yield [values]
        return
    for inner in values.values():
        yield from ([values, *path] for path in _paths(inner, wanted))


def _config(file: Path, settings: list[Mapping[str, Any]], tensors: Tensors) -> SoundVaeConfig:
    """The configuration, checked."""
    around: _Around = parse_json(json.dumps(settings[-1]), _Around, str(file))
    read, given = around["ddconfig"], settings[-1]["ddconfig"]
    unknown = sorted(given.keys() - {*_Sizes.__annotations__, *_ONLY, *_UNUSED})
    if unknown:
        raise ValueError(f"{file} has settings that this autoencoder does not know: {', '.join(unknown)}")
    for name, known in _ONLY.items():
        if given.get(name, known) != known:
            raise ValueError(f"{file} asks for {name}={given[name]!r}, but this autoencoder knows only {known!r}")
    config = SoundVaeConfig(
        bins=read["in_channels"],
        widths=(read["ch"], *(read["ch"] * times for times in read["ch_mult"])),
        layers=read["num_res_blocks"],
        inner=read["z_channels"],
        channels=around["embed_dim"],
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
        f"down_layers={list(config.halvings)} must lie in 0..{stages - 2}, where the decoder doubles what they halve": (
            all(0 <= level < stages - 1 for level in config.halvings)
        ),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(f"{file}: {'; '.join(broken)}; take another autoencoder")
    return config


def log_unit(file: Path, settings: list[Mapping[str, Any]], usual: str) -> float:
    """Natural logarithms in 1 of a network's spectrograms, by the setting log_base.

    Raises:
      ValueError: the base is neither 10 nor e.
    """
    base = str(next((values["log_base"] for values in settings if "log_base" in values), usual))
    if base not in LOG_UNITS:
        raise ValueError(f"{file}: log_base must be {' or '.join(LOG_UNITS)}, but is {base}; correct it")
    return LOG_UNITS[base]


def _scaling(file: Path, settings: list[Mapping[str, Any]], tensors: Tensors) -> float:
    """From a diffusion model's checkpoint, else from the configuration; 1 where neither speaks of it."""
    if SCALE in tensors:
        given: Any = np.asarray(tensors[SCALE]).ravel().tolist()
        found = given[0] if len(given) == 1 else given
    else:
        given = [values[SCALE] for values in settings if SCALE in values]
        if not given and any(values.get("scale_by_std") for values in settings):
            raise ValueError(
                f"{file} says that latents are scaled by their deviation, but the number is only in the checkpoint of "
                f"the diffusion model, as {SCALE}; write '{SCALE}: <number>' at the beginning of {file.name}"
            )
        found = given[0] if given else 1.0
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = float(found)  # YAML takes numbers such as 2e-1 for text
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not SCALES[0] <= found <= SCALES[1]:
        raise ValueError(
            f"{SCALE} must be a positive number from {SCALES[0]:g} to {SCALES[1]:g}, but is {found!r}; correct it in "
            f"{file}"
        )
    return float(found)


def _first_stage(tensors: Tensors) -> Mapping[str, np.ndarray]:
    """The autoencoder's tensors under its own names; kernels of 1-wide convolutions within attention as matrices."""
    prefix = WITHIN_DIFFUSION if any(name.startswith(WITHIN_DIFFUSION) for name in tensors) else ""

    def rename(name: str) -> str | None:
        inner = name.removeprefix(prefix)
        used = name.startswith(prefix) and not inner.startswith(("loss.", "model_ema.")) and inner != SCALE
        return inner if used else None

    def shape(name: str) -> tuple[int, ...]:
        stored = tensors.shape(name)
        return stored[:-1] if _ATTENTION.search(name) and stored[-1:] == (1,) else stored

    shapes = {name: (shape(name), tensors.dtype(name)) for name in tensors if rename(name) is not None}
    return Renamed(ComputedTensors(shapes, lambda name: tensors[name].reshape(shapes[name][0])), rename)
