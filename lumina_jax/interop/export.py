"""Writing a checkpoint in another layout: weights, configuration and model card.

In: a `Source`, the layout and the folder. Out: a complete folder that the tools of that layout can open, with these
files: jax: config.json, model.safetensors. lumina: config.json, consolidated.00-of-01.safetensors. diffusers:
transformer/, scheduler/, model_index.json, and optionally vae/, text_encoder/ and tokenizer/. Each also has a model
card, README.md, and the marker of `weights/folders.py`, which allows a later export to replace the folder.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.interop.cards import model_card
from lumina_jax.interop.fitting import fitted
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.sources import WeightSource
from lumina_jax.run import CONFIG_FILE
from lumina_jax.weights.folders import check_destination, check_room, new_folder, write_marker
from lumina_jax.weights.rules import Rule
from lumina_jax.weights.streams import plan_ours, plan_theirs
from lumina_jax.weights.writer import Planned, total_bytes, write_tensors, write_text

CARD, INDEX = "README.md", "model_index.json"
COMPONENTS = ("vae", "text_encoder", "tokenizer")
FILES = {
    "jax": "model",
    "lumina": "consolidated.00-of-01",
    "diffusers": "transformer/diffusion_pytorch_model",
}
SMALL_FILES = 2**20
"""The disk space reserved for files other than weights, in bytes."""
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
PIPELINE = {
    "_class_name": "LuminaPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "GemmaModel"],
    "tokenizer": ["transformers", "GemmaTokenizerFast"],
    "transformer": ["diffusers", "LuminaNextDiT2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class PipelineFiles(TypedDict, total=False):
    """The library and the class of each component in model_index.json."""

    vae: tuple[str, str]
    text_encoder: tuple[str, str]
    tokenizer: tuple[str, str]


class Export(NamedTuple):
    """Everything that will be written, determined before writing begins."""

    source: WeightSource
    layout: str
    config: dict[str, Any]
    rules: Sequence[Rule]
    """The rules between our layout and the published one; empty for our layout."""
    plan: Sequence[Planned]


def plan_export(source: WeightSource, layout: str, dtype: str | None = None, sample_size: int | None = None) -> Export:
    """Determine what an export consists of.

    Args:
      dtype: the type of the weights; None: the stored type.
      sample_size: the default side of latents in a diffusers pipeline; None: 128.

    Raises:
      ValueError: the layout cannot represent this model; the message gives the reason.
    """
    if sample_size is not None and layout != "diffusers":
        raise ValueError(f"the {layout} layout has no sample size; leave out {sample_size=}")
    stored = None if dtype is None else np.dtype(dtype)
    if layout == "jax":
        return Export(source, layout, {"model": dataclasses.asdict(source.config)}, (), plan_ours(source.ours, stored))
    theirs, source = LAYOUTS[layout], fitted(source, layout)
    config, rules = theirs.write_config(source.config), theirs.rules(source.config)
    config |= {} if sample_size is None else {"sample_size": sample_size}
    return Export(source, layout, config, rules, plan_theirs(source.ours, rules, stored))


def write_export(
    export: Export,
    folder: Path,
    *,
    shard_bytes: int | None,
    overwrite: bool = False,
    components: Path | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Write the export to `folder` atomically.

    Args:
      shard_bytes: larger files are split, except in the lumina layout, whose reader needs a single file.
      components: a folder with vae/, text_encoder/ and tokenizer/ to copy into a diffusers pipeline.
      progress: called with the number of bytes written since its last call.

    Raises:
      ValueError: the folder exists and must not be replaced, there is not enough space on the disk, or the weights are
        not finite. No files are left behind.
      OSError: the disk is full or not writable. No files are left behind.
    """
    check_destination(folder, overwrite=overwrite)
    copied = _sizes(components, export.layout) if components else 0
    classes = PIPELINE | (_classes(components) if components else {})
    check_room(folder, total_bytes(export.plan) + copied + SMALL_FILES)
    with new_folder(folder.resolve(), overwrite=overwrite) as temporary:
        weights_folder = (temporary / FILES[export.layout]).parent
        weights_folder.mkdir(exist_ok=True)
        labels = {"lumina_jax": "1"} if export.layout == "jax" else {}
        written = write_tensors(
            weights_folder,
            Path(FILES[export.layout]).name,
            export.plan,
            shard_bytes=None if export.layout == "lumina" else shard_bytes,
            metadata=labels,
            progress=progress,
        )
        _write_json(weights_folder / CONFIG_FILE, export.config)
        if export.layout == "diffusers":
            _write_pipeline(temporary, components, classes)
        write_text(temporary / CARD, model_card(export.source, export.layout, export.plan, written, temporary))
        write_marker(temporary, {file.path: file.sha256 for file in written})


def mapping_table(export: Export) -> list[tuple[str, str, str, str, str]]:
    """Return for each parameter: source name, our name, exported name, our shape and type, and the operations."""
    ours = export.source.ours
    sources: dict[str, Rule] = {rule.ours: rule for rule in reversed(export.source.rules)}
    targets: dict[str, list[Rule]] = {}
    for rule in export.rules:
        targets.setdefault(rule.ours, []).append(rule)
    rows = []
    for name in ours:
        rules = [rule for rule in (sources.get(name), *targets.get(name, ())) if rule is not None]
        steps = [f"axes {rule.axes}" for rule in rules if rule.axes is not None]
        if any(rule.is_stacked for rule in rules):
            steps.append("layers " + ("stacked" if export.layout == "jax" else "separate"))
        source = sources[name].theirs if name in sources else name
        target = " and ".join(rule.theirs for rule in targets[name]) if name in targets else name
        rows.append(
            (source, name, target, f"{list(ours.shape(name))} {ours.dtype(name)}", ", ".join(steps) or "unchanged")
        )
    return rows


def _write_pipeline(folder: Path, components: Path | None, classes: dict[str, Any]) -> None:
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / INDEX, classes)
    if components is None:
        return
    for name in COMPONENTS:
        try:
            shutil.copytree(components / name, folder / name)
        except shutil.Error as error:
            source, _, reason = error.args[0][0]
            raise ValueError(f"{source} cannot be copied ({reason}); check {components}") from error


def _classes(components: Path) -> dict[str, tuple[str, str]]:
    """Return the libraries and classes of the components, if their pipeline lists them."""
    file = components / INDEX
    theirs = read_json(file, PipelineFiles) if file.is_file() else {}
    return {name: theirs[name] for name in COMPONENTS if name in theirs}


def _sizes(components: Path, layout: str) -> int:
    """Return the size of the components in bytes, after checking that all exist."""
    if layout != "diffusers":
        raise ValueError(f"--components needs --to diffusers, but the layout is {layout}; leave it out")
    if missing := [name for name in COMPONENTS if not (components / name).is_dir()]:
        raise ValueError(
            f"{components} must contain the folders {', '.join(COMPONENTS)}, but lacks {', '.join(missing)}; copy them "
            "there"
        )
    files = [file for name in COMPONENTS for file in (components / name).rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_json(file: Path, value: dict[str, Any]) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")
