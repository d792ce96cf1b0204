"""lumina data COMMAND: data made ready for training.

prepare NAME    fetch a free data set through the package manager's ordinary client; the result is a folder for
                data.source=prepared, with a card (what it is, under which licence) and a sheet of samples

                  emoji             1,940 emoji in up to four styles, from npm: pictures, some of them held out

                  fluent-animated   187 animated emoji with names, from npm: clips

                  furniture         about 140 things of the house, from Debian: views

                  flite-speech      48 to 1,318 words spoken in 9 ways, from Debian: sounds

render MODELS OUT   draw your own 3-D files from all around: a folder for data.source=folder

scenes IN OUT   cut the videos of a captions .jsonl into scenes, one line for each, in a .jsonl beside it

packing CONFIG  count the tokens of a configuration's batches that hold no sample
"""

import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from lumina_jax.failures import reported

if TYPE_CHECKING:
    from lumina_jax.data.example import Source

MODULES = {
    "emoji": "emoji",
    "fluent-animated": "fluent_animated",
    "furniture": "furniture",
    "flite-speech": "flite_speech",
}
LARGEST_SIZE = 16_384
"""Pixels of a side, and views or frames of a sample."""
SHEET_SAMPLES = 24


@dataclass(frozen=True)
class Prepare:
    name: Annotated[Literal["emoji", "fluent-animated", "furniture", "flite-speech"], tyro.conf.Positional]
    out: Path = Path("data")
    """The folder NAME is made in it."""
    size: int | None = None
    """Pixels of a side of pictures; None: 64."""
    frames: int | None = None
    """Frames of a clip, or views of an object; None: 24 or 12."""
    styles: tuple[Literal["fluent", "noto", "twemoji", "emojione", "openmoji"], ...] | None = None
    """Styles of emoji; None: all but openmoji, which is under a share-alike licence."""
    skin_tones: bool = False
    """Whether emoji are also drawn in every skin tone."""
    words: int | None = None
    """Words that are spoken, up to 1,318; None: 48, none of which is held out."""


@dataclass(frozen=True)
class Render:
    models: Annotated[Path, tyro.conf.Positional]
    """A folder with .obj, .glb, .gltf, .ply or .stl files, or a .jsonl of {"model": file, "caption": text}."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to fill; what is there already is kept."""
    views: int = 12
    """At even azimuths, the first from the front."""
    size: int = 256
    """Pixels of a side of a view."""
    elevation: float = 30.0
    """Degrees from which the camera looks down."""


@dataclass(frozen=True)
class Scenes:
    captions: Annotated[Path, tyro.conf.Positional]
    """A .jsonl with {"video": ...} lines."""
    out: Annotated[Path, tyro.conf.Positional]
    """A .jsonl beside it."""
    least: float = 1.0
    """Scenes of fewer seconds are left out."""


@dataclass(frozen=True)
class Packing:
    config: Annotated[str, tyro.conf.Positional]
    """A configuration, by name or by path."""
    samples: int = 1000
    """Samples to look at, at least."""


def main(words: Sequence[str]) -> int:
    commands: dict[str, Callable[..., Prepare | Render | Scenes | Packing]] = {
        "prepare": Prepare,
        "render": Render,
        "scenes": Scenes,
        "packing": Packing,
    }
    arguments = tyro.extras.subcommand_cli_from_dict(commands, args=words, prog="lumina data", description=__doc__)
    with reported():
        match arguments:
            case Prepare():
                prepare(arguments)
            case Render():
                render(arguments)
            case Scenes():
                cut(arguments)
            case Packing():
                count(arguments)
    return 0


def check_range(name: str, value: float | int, least: float | int, most: float | int) -> None:
    """Refuse a number that is too small or too large, or not a number."""
    if not least <= value <= most:
        raise ValueError(f"{name}={value} must be between {least} and {most}")


def prepare(arguments: Prepare) -> None:
    from lumina_jax.data.prepared import EVERY, README, SHEET, PreparedSource, write_prepared

    module = importlib.import_module(f"lumina_jax.data.datasets.{MODULES[arguments.name]}")
    folder = arguments.out / arguments.name
    settings = _settings(arguments, module.SETTINGS)
    card = module.card(**settings)  # refuses settings that no data set has
    print(f"fetching {arguments.name} ...", flush=True)
    write_prepared(folder, module.samples(**settings), card)
    sheet(PreparedSource(folder, EVERY), folder / SHEET)
    print((folder / README).read_text())
    print(f"{folder} is ready: --data.source prepared --data.path {folder} --data.media {module.MEDIA}")


def _settings(arguments: Prepare, defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings of a data set: its defaults, and what is asked for.

    Raises:
      ValueError: the data set has no such setting, or a number is out of range.
    """
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("name", "out") and value != getattr(Prepare, name)
    }
    if unknown := [f"--{name.replace('_', '-')}" for name in given if name not in defaults]:
        known = ", ".join(f"--{name.replace('_', '-')}" for name in defaults) or "none"
        raise ValueError(f"{arguments.name} has no {', '.join(unknown)}; its settings: {known}")
    settings = defaults | given
    for name in settings.keys() & {"size", "frames"}:
        check_range(name, settings[name], 1, LARGEST_SIZE)
    return settings


def render(arguments: Render) -> None:
    from lumina_jax.data.file_sources import FolderSource
    from lumina_jax.data.prepared import SHEET
    from lumina_jax.data.renders import Look, find_models, render_models

    def say(done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="\n" if done == total else "", flush=True)

    check_range("views", arguments.views, 1, LARGEST_SIZE)
    check_range("size", arguments.size, 1, LARGEST_SIZE)
    look = Look(arguments.views, arguments.size, arguments.elevation)
    report = render_models(find_models(arguments.models), arguments.out, look, say)
    for name, reason in report.bad.items():
        print(f"skipped {name}: {reason}")
    sheet(FolderSource(arguments.out), arguments.out / SHEET)
    flags = f"--data.source folder --data.path {arguments.out} --data.media views"
    print(f"{len(report.rendered)} objects are drawn: {flags}")


def cut(arguments: Scenes) -> None:
    from lumina_jax.data.scenes import write_scenes

    check_range("least", arguments.least, 0, 86_400)
    report = write_scenes(arguments.captions, arguments.out, least=arguments.least)
    for name, reason in report.bad.items():
        print(f"skipped {name}: {reason}")
    print(
        f"{report.videos} videos have {report.scenes} scenes of {arguments.least} s or more, and {report.too_short} "
        f"shorter ones, which are left out: --data.source folder --data.path {arguments.out} --data.media clips"
    )


def count(arguments: Packing) -> None:
    from lumina_jax.config_files import load_config
    from lumina_jax.data.batches import Stream
    from lumina_jax.data.sources import open_source

    check_range("samples", arguments.samples, 1, 10**9)
    config = load_config(arguments.config)
    if config.vae.path:
        raise ValueError("this counts the batches of a model of pixels, but vae.path names an autoencoder")
    samples = np.zeros(len(config.model.modalities), int)
    tokens, slots, batches = np.zeros(len(samples), int), 0, 0
    with Stream(open_source(config.data, config.model), config.data, config.model, seed=config.run.seed) as stream:
        while samples.sum() < arguments.samples:
            batch = next(stream)
            segments = batch.tokens.segment_ids
            modalities = np.zeros_like(segments) if batch.tokens.modalities is None else batch.tokens.modalities
            for modality in range(len(samples)):
                chosen = (segments > 0) & (modalities == modality)
                tokens[modality] += chosen.sum()
                samples[modality] += sum(len(np.unique(row[part])) for row, part in zip(segments, chosen))
            slots += segments.size
            batches += 1
    for named, held, used in zip(config.model.modalities, samples, tokens):
        print(f"  {named.name:<10} {held:6} samples  {used:9} tokens")
    print(f"{batches} batches have {slots} tokens, of which {1 - tokens.sum() / slots:.2%} hold no sample")


def sheet(source: "Source", path: Path) -> None:
    """Some samples of a source with their captions."""
    from lumina_jax.data.example import Record
    from lumina_jax.modalities.files.contact_sheet import contact_sheet
    from lumina_jax.modalities.files.png import save_png
    from lumina_jax.modalities.media_preview import media_preview

    chosen = random.Random(0).sample(range(len(source)), min(SHEET_SAMPLES, len(source)))
    records = [record for record in map(source.__getitem__, chosen) if isinstance(record, Record)]
    pictures = [media_preview(record.media) for record in records]
    save_png(path, contact_sheet(pictures, [record.caption or "" for record in records]), {"samples": chosen})
