"""Opening published checkpoints, whose tensors are then read one at a time.

In: a folder or a file in one of the layouts. Out: a `Source` with our configuration of the model, its parameters in our
layout, and their origin.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from lumina_jax.config import ModelConfig
from lumina_jax.documents import parse_json, read_json
from lumina_jax.interop.converted import check_parameters, parameter_shapes, read_model
from lumina_jax.interop.diffusers import CLASS
from lumina_jax.interop.layouts import LAYOUTS, Layout
from lumina_jax.interop.names import check_whole, network
from lumina_jax.interop.shards import MergedShards
from lumina_jax.run import CONFIG_FILE, found_model
from lumina_jax.weights.files import INDEX, VARIANT_INDEX, TensorFiles
from lumina_jax.weights.formats import describe_file
from lumina_jax.weights.hub import REPOSITORY, local_folder, published_name
from lumina_jax.weights.indices import indexed_files
from lumina_jax.weights.pickles import PickledTensors, read_arguments
from lumina_jax.weights.rules import Rule
from lumina_jax.weights.streams import Restacked
from lumina_jax.weights.tensors import JoinedTensors, Resized, Tensors

StateName = Literal["ema", "params"]
SHARD = re.compile(r"consolidated(_ema)?\.(\d+)-of-(\d+)\.(safetensors|pth)")
ARGUMENTS = "model_args.pth"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
PICKLE_INDEX = "*.bin.index.json"
NAMED_SIZES = {
    "600M": {"dim": 1536, "n_layers": 16, "n_heads": 32},
    "2B": {"dim": 2304, "n_layers": 24, "n_heads": 32},
    "2B_GQA": {"dim": 2304, "n_layers": 24, "n_heads": 32, "n_kv_heads": 8},
    "3B": {"dim": 3072, "n_layers": 32, "n_heads": 32},
    "5B": {"dim": 3072, "n_layers": 32, "n_heads": 32},
    "7B": {"dim": 4096, "n_layers": 32, "n_heads": 32},
}
"""The arguments of the released functions DiT_Llama_<size>_patch2 and NextDiT_<size>_patch2."""
PRESET = re.compile(rf"(DiT_Llama|NextDiT)_({'|'.join(sorted(NAMED_SIZES, key=len, reverse=True))})_patch2")


class ScriptArguments(TypedDict, total=False):
    """The arguments of the released training script that are used here."""

    model: str
    qk_norm: bool


class WeightSource(NamedTuple):
    """A complete checkpoint, whose names and shapes match the configuration."""

    config: ModelConfig
    ours: Tensors
    origin: str
    notes: tuple[str, ...] = ()
    rules: Sequence[Rule] = ()
    """The rules between the published layout and ours; empty for our layout."""


def open_weights(path: str | Path, layout: str, weights: StateName | None = None) -> WeightSource:
    """Open a checkpoint in the layout "lumina", "diffusers" or "jax".

    Args:
      weights: the moving average or the parameters; None: the moving average if there is one.

    Raises:
      ValueError: there is no such checkpoint, it is damaged, it contains code, or its names or shapes do not match its
        configuration.
    """
    path = resolved(Path(path), "checkpoint")
    if layout == "lumina":
        return _lumina(path, weights)
    if weights is not None:
        raise ValueError(f"--weights {weights} needs a released checkpoint or a run, but {path} is neither")
    return _diffusers(path) if layout == "diffusers" else _jax(path)


def resolved(path: Path, what: str) -> Path:
    """Return the path if it exists, or the model of the package or the snapshot of a downloaded repository with this
    name.

    Raises:
      ValueError: neither exists.
    """
    path = found_model(path)
    if path.exists():
        return path
    if not REPOSITORY.fullmatch(str(path)):
        raise ValueError(f"there is no file or folder {path}; name a {what}")
    return local_folder(str(path), what=what)


def _jax(path: Path) -> WeightSource:
    path = found_model(path)
    config, tensors = read_model(path if path.is_dir() else path.parent), open_tensors(path)
    check_whole(tensors, str(path))
    check_parameters(tensors, config)
    return WeightSource(
        config, tensors, f"{_name(path)}, parameters of lumina_jax", tuple(getattr(tensors, "notes", ()))
    )


def _diffusers(path: Path) -> WeightSource:
    if (path / "transformer").is_dir():
        path = path / "transformer"
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{file} is missing, which describes the model in {path}; name a folder that diffusers saved")
    layout = LAYOUTS["diffusers"]
    theirs = read_json(file, layout.settings)
    if (name := theirs.get("_class_name", CLASS)) != CLASS:
        raise ValueError(f"{file} must describe a {CLASS}, but describes {name!r}, which is not supported")
    usual = path / "diffusion_pytorch_model.safetensors"
    return _theirs(
        layout, theirs, open_tensors(usual if usual.is_file() else path), f"{_name(path)}, {name} of diffusers"
    )


def _lumina(path: Path, weights: StateName | None) -> WeightSource:
    if weights is not None and path.is_file():
        raise ValueError(f"--weights {weights} selects files in a folder, but {path} is a file; leave it out")
    files, notes = _consolidated(path, weights) if path.is_dir() else ([path], [])
    shards = [open_tensors(file) for file in files] if files else [open_tensors(path)]
    if len(files) > 1:
        notes.append(f"merged from {len(files)} shards of tensor parallelism")
    arguments, training_notes = _arguments(path if path.is_dir() else path.parent)
    names = ", ".join(file.name for file in files)
    origin = f"{_name(path)}{f' ({names})' if path.is_dir() and files else ''}, a checkpoint of Lumina-T2X"
    tensors = shards[0] if len(shards) == 1 else MergedShards(shards)
    return _theirs(LAYOUTS["lumina"], arguments, tensors, origin, (*notes, *training_notes))


def _theirs(
    layout: Layout, theirs: Mapping[str, Any], tensors: Tensors, origin: str, notes: Sequence[str] = ()
) -> WeightSource:
    notes = [*notes, *getattr(tensors, "notes", ())]
    tensors, removed = network(tensors, layout.name, origin)
    if (
        layout.name == "lumina"
        and "cap_embedder.1.bias" not in tensors
        and not theirs.keys() & {"n_heads", "num_heads"}
    ):
        raise ValueError(
            "the number of heads of a label-conditional model cannot be inferred from its tensors, and neither "
            f"{ARGUMENTS} nor {CONFIG_FILE} next to the tensors of {origin} contains it; write the latter, such as "
            '{"n_heads": 32}'
        )
    try:
        config = layout.read_config(theirs, tensors)
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{origin}: it does not have the tensors of a model in the {layout.name} layout "
            f"({type(error).__name__}: {error}); check --from"
        ) from error
    except ValueError as error:
        raise ValueError(f"{origin}: its configuration or tensors do not describe a valid model: {error}") from error
    rules = layout.rules(config)
    ours = Restacked(tensors, rules, layers=config.layers)
    check_parameters(ours, config, {name: rule.theirs for name, rule in ours.rules.items()})
    return _without_closed_heads(WeightSource(config, ours, origin, (*notes, *removed), rules))


def _without_closed_heads(source: WeightSource) -> WeightSource:
    """The checkpoint without the text of last heads whose gates and values are 0 in all layers: one that was pruned."""
    config = source.config
    if not config.has_gates:
        return source
    group = config.heads // config.key_heads
    is_open = source.ours["blocks.text.gate"].reshape(config.layers, -1, group).any(axis=(0, 2))
    count = 1 + max(np.flatnonzero(is_open), default=0)
    values = (source.ours.part("blocks.text.value.kernel", layer) for layer in range(config.layers))
    if count == config.key_heads or any(part[:, count * config.head_width :].any() for part in values):
        return source
    config = config.replace(text_heads=group * int(count))
    note = f"pruned: {config.text_heads} of {config.heads} heads in each layer attend to the text"
    return source._replace(
        config=config, ours=Resized(source.ours, parameter_shapes(config)), notes=(*source.notes, note)
    )


def open_tensors(path: Path) -> Tensors:
    """Open a safetensors or PyTorch file, or a folder with one such file or with several and their index."""
    if path.is_file():
        if path.suffix in PICKLES:
            return PickledTensors(path, within="state_dict" if path.suffix == ".ckpt" else None)
        return TensorFiles(path)
    if any(any(path.glob(pattern)) for pattern in ("*.safetensors", INDEX, VARIANT_INDEX)):
        return TensorFiles(path)
    if indices := sorted(path.glob(PICKLE_INDEX)):
        return JoinedTensors([PickledTensors(file) for file in indexed_files(indices[0])])
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    pickles = [file for file in files if file.suffix in PICKLES and file.name != ARGUMENTS]
    if len(pickles) == 1:
        return open_tensors(pickles[0])
    if ggufs := [file for file in files if file.suffix == ".gguf"]:
        raise ValueError(describe_file(ggufs[0], "is not a supported file of weights; name a .safetensors file"))
    raise ValueError(f"{path} contains no .safetensors file and {len(pickles)} PyTorch files; name the file itself")


def _consolidated(folder: Path, weights: StateName | None) -> tuple[list[Path], list[str]]:
    """Return the consolidated files of all ranks in order, if there are any, and a note on the selected weights."""
    found: dict[tuple[bool, int], dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):  # .safetensors comes after .pth and replaces it
        if match := SHARD.fullmatch(file.name):
            found.setdefault((match[1] is not None, int(match[3])), {})[int(match[2])] = file
    if not found:
        if weights is not None:
            raise ValueError(f"--weights {weights} selects consolidated files, but {folder} has none; leave it out")
        return [], []
    has_ema = any(is_ema for is_ema, _ in found)
    is_ema = has_ema if weights is None else weights == "ema"
    chosen = [count for ema, count in found if ema == is_ema]
    if len(chosen) != 1:
        kind = "consolidated_ema" if is_ema else "consolidated"
        raise ValueError(
            f"{folder} must contain one set of {kind} files, but contains {len(chosen)}; name the file itself"
        )
    [count] = chosen
    ranks = found[is_ema, count]
    for file in ranks.values():
        if not file.is_file():
            raise ValueError(f"{file} must be a file of tensors, but it is a folder; copy the checkpoint again")
    if missing := [rank for rank in range(count) if rank not in ranks]:
        raise ValueError(f"{folder} lacks the shards of ranks {missing} out of {count}; copy them there")
    note = "the moving average (ema)" if is_ema else "the parameters (params)"
    both = ", as both are available" if len({ema for ema, _ in found}) > 1 else ""
    return [ranks[rank] for rank in range(count)], [f"weights: {note}{both}"]


def _arguments(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the constructor arguments in config.json or in the saved script arguments, and notes on training."""
    if (folder / CONFIG_FILE).is_file():
        return read_json(folder / CONFIG_FILE, LAYOUTS["lumina"].settings), []
    if not (folder / ARGUMENTS).is_file():
        return {}, []
    script = read_arguments(folder / ARGUMENTS)
    used = parse_json(json.dumps(script), ScriptArguments, str(folder / ARGUMENTS))
    match = PRESET.fullmatch(used.get("model", ""))
    sizes: dict[str, Any] = {"patch_size": 2} | NAMED_SIZES[match[2]] if match else {}
    reported = ("model", "image_size", "vae", "tokenizer_path", "lm", "rope_scaling_factor", "ntk_factor", "snr_type")
    note = ", ".join(f"{name}={script[name]!r}" for name in reported if script.get(name) is not None)
    return sizes | {name: used[name] for name in ("qk_norm",) if name in used}, [f"trained with {note}"] * bool(note)


def _name(path: Path) -> str:
    """Return a name for the path that may be published: the repository of the hub, or the last component."""
    if published := published_name(path):
        return published
    parts = Path(os.path.abspath(path).encode(errors="replace").decode()).parts  # file names need not be valid text
    return "/".join(parts[-2:] if path.name == "transformer" else parts[-1:])
