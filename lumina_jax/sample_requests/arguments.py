"""What is asked of a run: the flags of `lumina sample`, which the page of `lumina demo` fills in, too.

In: the values of flags. Out: an `Arguments`, its configuration and what it says of seeds.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lumina_jax.config import Config, MeshConfig, SampleConfig
from lumina_jax.config_files import load_config
from lumina_jax.run import read_model, read_run
from lumina_jax.sample_requests.sources import given_edit, given_style

FRAME_RATES = (0.1, 240.0)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of weights made by `convert --to jax`."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Captions to draw."""
    config: str | None = None
    """A configuration, by name or by path, for converted weights: all but the model, which is theirs."""
    prompts_file: Path | None = None
    """A text file with more captions, one a line; - is standard input."""
    out: Path | None = None
    """Where the pictures go; default: samples/STEP/seed-SEED in the folder of the run, or with --seeds
    samples/STEP/seeds."""
    step: int | None = None
    """Checkpoint to draw from; default: the newest."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An adapter to draw with, as FOLDER or FOLDER:STRENGTH, such as runs/style:0.8; may be given several times. The
    folder is a run that trained adapters, one of PEFT, or a file with kohya's names."""
    seed: int | None = None
    """Of the noise, from 0 to 2**64 - 1; default: 0."""
    seeds: str | None = None
    """A seed for each prompt instead, such as 3,8: each picture is the first one that its seed draws alone."""
    source: Path | None = None
    """A picture, a clip or a sound to edit instead of drawing from noise alone; a shorter one is continued."""
    mask: Path | None = None
    """A picture as large as the source: what is white in it is drawn anew, what is black is kept."""
    outpaint: str | None = None
    """Left and top pixel of a smaller source in the picture, such as 16,0: what surrounds it is drawn."""
    strength: float | None = None
    """How much of the source is drawn anew, from 0 to 1: drawing begins at the time 1 - strength. Default: 1, with a
    mask or a source that is continued."""
    invert: str | None = None
    """What the source shows, as a caption: drawing begins with the noise from which the model draws the source with
    that caption. '' is none."""
    normalize_source: bool = False
    """Give each channel of the latents of the source the mean 0 and the deviation 1, so that its colours do not
    stay."""
    style_of: str | None = None
    """Whose style all samples have: the index of one of them, or a file."""
    style_caption: str = ""
    """What the file of --style-of shows."""
    style_strength: float = 1.0
    """How strongly samples attend to that of --style-of, from 0 to 1."""
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further caption of every sample and its weight, such as "0.5: a sunset"; the prompt has the weight 1. It may be
    repeated."""
    region: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A part of every picture and its caption, such as "0,0,16,32: a cat" (left, top, right and bottom pixel) or
    "mask.png: a cat" (white is the region). It may be repeated; later regions cover earlier ones."""
    region_blend: int = 0
    """Pixels across the edges of regions in which one caption gives way to the other."""
    scenes: tuple[str, ...] = ()
    """Captions of the parts of a clip and their seconds, instead of prompts: "a sunrise @ 2" "a storm @ 1.5"."""
    scene_blend: int | None = None
    """Frames across the seam of two scenes in which one caption gives way to the other; 0: a cut. Default: three
    quarters of the frames of the shortest scene, rounded down."""
    size: int | None = None
    """Height and width in pixels; default: those of training."""
    height: int | None = None
    width: int | None = None
    modality: str | None = None
    """The modality of the model to draw; default: the first."""
    video_frames: int | None = None
    """Frames of a clip; default: those of training."""
    views: int | None = None
    """Views of an object, evenly around it; the same as frames."""
    seconds: float | None = None
    """Length of a sound; default: as long as its text takes to say, or that of training."""
    frame_rate: float = 8.0
    """Frames a second of the files written."""
    batch: int | None = None
    """Samples drawn at once, on all devices together; default: all, but at most 16. Another number may change the last
    bits of a sample."""
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (an immutable value)
    """How the devices of this host share the work; by default each draws a part of the samples."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")]


def configuration(arguments: Arguments) -> Config:
    """That of the run, or the one named with the model of the folder."""
    if arguments.config is None:
        return read_run(arguments.run)
    return dataclasses.replace(load_config(arguments.config), model=read_model(arguments.run))


def seeds_of(arguments: Arguments) -> list[int] | None:
    """The seed of each prompt; None: all have one.

    Raises:
      ValueError: --seed is given as well, or one of them is no number.
    """
    if arguments.seeds is None:
        return None
    if arguments.seed is not None:
        raise ValueError("--seed is for all prompts, and --seeds has one for each; give one of them")
    words = arguments.seeds.split(",")
    if not all(word.strip().isdecimal() and len(word) <= 30 for word in words):
        raise ValueError(f"--seeds must be numbers with commas between them, such as 3,8, but is {arguments.seeds!r}")
    return [int(word) for word in words]


def given_parts(arguments: Arguments) -> dict[str, Any]:
    """The flags of editing, styles, further captions and adapters that are given, by their names; not the blend of
    scenes, which `what_has_captions` finds."""
    found = given_edit(arguments) | given_style(arguments)
    lists = ("also", "region", "scenes", "adapter")
    found |= {name: list(given) for name in lists if (given := getattr(arguments, name))}
    return found | ({"region_blend": arguments.region_blend} if arguments.region else {})


def check_arguments(arguments: Arguments) -> None:
    """Refuse numbers that no model can draw."""
    if arguments.batch is not None and arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch} must be at least 1")
    if not FRAME_RATES[0] <= arguments.frame_rate <= FRAME_RATES[1]:
        raise ValueError(f"frame_rate={arguments.frame_rate} must be between {FRAME_RATES[0]} and {FRAME_RATES[1]}")
