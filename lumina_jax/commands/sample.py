"""lumina sample runs/emoji "red heart, noto style" "pizza, fluent style"

Each picture is a PNG that carries its settings, written as soon as it is drawn; sheet.png shows them all with their
captions. Clips and turntables are gif and mp4, beside a PNG of their frames; sounds are wav, beside a PNG of their
spectrogram. Pictures with other settings are never overwritten. Settings that are not given are those of the run. A
label-conditional model takes the numbers of labels as prompts.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.config import Config, SampleConfig, SoundConfig, VisualConfig
from lumina_jax.config_files import load_config
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.prompts import read_prompts
from lumina_jax.run import read_model, read_run

if TYPE_CHECKING:
    from lumina_jax.generation.request import Shape

FRAME_RATES = (0.1, 240.0)
LONGEST_SECONDS = 86_400.0


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
    """Where the pictures go; default: samples/STEP/seed-SEED in the folder of the run."""
    step: int | None = None
    """Checkpoint to draw from; default: the newest."""
    seed: int = 0
    """Of the noise, from 0 to 2**64 - 1."""
    size: int | None = None
    """Height and width in pixels; default: those of training."""
    height: int | None = None
    width: int | None = None
    modality: str | None = None
    """Which of the model's modalities to draw; default: its own."""
    video_frames: int | None = None
    """Frames of a clip; default: those of training."""
    views: int | None = None
    """Views of an object, evenly around it; the same as frames."""
    seconds: float | None = None
    """Length of a sound; default: as long as its text takes to say, or that of training."""
    frame_rate: float = 8.0
    """Frames a second of the files written."""
    batch: int = 16
    """Samples drawn at once."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")]


def main(words: Sequence[str]) -> int:
    with reported():
        arguments = parse(words, Arguments(run=Path("."), sample=SampleConfig()))
        arguments = parse(words, Arguments(run=arguments.run, sample=configuration(arguments).sample))
        keep_memory_on_cpu()
        status = draw(arguments)
    return status


def parse(words: Sequence[str], default: Arguments) -> Arguments:
    return tyro.cli(Arguments, args=list(words), prog="lumina sample", description=__doc__, default=default)


def configuration(arguments: Arguments) -> Config:
    """That of the run, or the one named with the model of the folder."""
    if arguments.config is None:
        return read_run(arguments.run)
    return dataclasses.replace(load_config(arguments.config), model=read_model(arguments.run))


def draw(arguments: Arguments) -> int:
    """The whole command, top to bottom; 1 if a sample could not be drawn, else 0."""
    config = configuration(arguments)
    check_arguments(arguments)
    prompts = [*arguments.prompts, *read_prompts(arguments.prompts_file)]
    if not prompts:
        raise ValueError('there is nothing to draw; name captions after the run, as in: lumina sample RUN "red heart"')

    # What can be refused without a look at the weights
    from lumina_jax.encoders.caption_warnings import caption_warnings
    from lumina_jax.generation.gallery import Gallery, save_as_drawn, writable
    from lumina_jax.generation.request import check_request
    from lumina_jax.generation.sheets import patch_pixels
    from lumina_jax.modalities.files.sounds import voice_of
    from lumina_jax.trained import open_run

    seed, modality = arguments.seed, arguments.modality
    shapes = shapes_of(arguments, config, prompts)
    unit = patch_pixels(config, modality)
    check_request(config, arguments.sample, prompts, shapes, unit, modality=modality, seed=seed)
    folder = writable(arguments.out or arguments.run / "samples")

    # The model
    media = config.data_of(modality).media
    voice = voice_of(config) if isinstance(media, SoundConfig) else None
    pipeline, step = open_run(arguments.run, arguments.step, None if arguments.config is None else config)
    for notice in caption_warnings(pipeline.encoder, prompts, config.text.max_tokens):
        print(notice, flush=True)

    # Samples, written as they come
    batch = min(arguments.batch, len(prompts))
    if arguments.out is None:
        folder = writable(folder / f"{step}" / f"seed-{seed}")
    of_media = {"seconds": arguments.seconds} if voice else {**shapes[0]._asdict(), "frame_rate": arguments.frame_rate}
    settings = {
        "run": config.run.name,
        "step": step,
        "modality": config.model.modality_of(modality).name,
        "seed": seed,
        "batch": batch,
        **dataclasses.asdict(arguments.sample),
        **of_media,
    }
    rate = media.sample_rate if isinstance(media, SoundConfig) else arguments.frame_rate
    columns = media.grid_columns if isinstance(media, VisualConfig) else None
    gallery = Gallery(folder, prompts, settings, rate=rate, voice=voice, columns=columns)
    drawn = pipeline.drawn(prompts, arguments.sample, seed=seed, shape=shapes, batch=batch, modality=modality)
    saved = save_as_drawn(gallery, drawn, prompts)
    what = "sounds" if voice else "clips" if gallery.is_moving else "pictures"
    print(f"{saved} {what} and {gallery.sheet() or 'no sheet'}")
    return 0 if saved == len(prompts) else 1


def check_arguments(arguments: Arguments) -> None:
    """Refuse numbers that no sample can have, whatever the model."""
    for name in ("batch", "size", "height", "width", "video_frames", "views"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if not FRAME_RATES[0] <= arguments.frame_rate <= FRAME_RATES[1]:
        raise ValueError(f"frame_rate={arguments.frame_rate} must be between {FRAME_RATES[0]} and {FRAME_RATES[1]}")
    if arguments.seconds is not None and not 0 < arguments.seconds <= LONGEST_SECONDS:
        raise ValueError(f"seconds={arguments.seconds} must be positive, and at most {LONGEST_SECONDS:.0f}")
    if arguments.video_frames is not None and arguments.views is not None:
        raise ValueError("--video-frames and --views both say how many frames there are; give one of them")


def shapes_of(arguments: Arguments, config: Config, prompts: Sequence[str]) -> "list[Shape]":
    """The size of each sample."""
    from lumina_jax.generation.request import Shape
    from lumina_jax.generation.sheets import patch_pixels, shape_for
    from lumina_jax.mel import frames_of

    media = config.data_of(arguments.modality).media
    of_pictures = {
        f"--{name.replace('_', '-')}": getattr(arguments, name)
        for name in ("size", "height", "width", "video_frames", "views")
    }
    given = [name for name, value in of_pictures.items() if value is not None]
    if isinstance(media, SoundConfig) and given:
        raise ValueError(f"{' and '.join(given)} say how large a picture is, but this draws sounds; use --seconds")
    if not isinstance(media, SoundConfig) and arguments.seconds is not None:
        raise ValueError("--seconds says how long a sound is, but this draws pictures; use --video-frames")
    if isinstance(media, SoundConfig) and arguments.seconds is not None:
        unit = patch_pixels(config, arguments.modality)[1]
        return [Shape(1, -(-frames_of(arguments.seconds, media.sample_rate) // unit) * unit)] * len(prompts)
    if isinstance(media, SoundConfig):
        return [shape_for(config, prompt, arguments.modality) for prompt in prompts]
    assert isinstance(media, VisualConfig)
    return [_picture_shape(arguments, media)] * len(prompts)


def _picture_shape(arguments: Arguments, media: VisualConfig) -> "Shape":
    """Of every picture, clip or grid of views."""
    from lumina_jax.generation.request import Shape

    def first(*values: int | None) -> int:
        return next(value for value in values if value is not None)

    size, columns = first(arguments.size, media.image_size), media.grid_columns
    frames = first(arguments.video_frames, arguments.views, media.frames)
    if columns is None:
        return Shape(first(arguments.height, size), first(arguments.width, size), frames)
    if (arguments.height, arguments.width, arguments.video_frames) != (None, None, None):
        raise ValueError("this draws a grid of views; use --size for the pixels of a view, and --views")
    if frames % columns:
        raise ValueError(f"--views {frames} must be a multiple of the {columns} columns of the grid")
    frames, height, width = dataclasses.replace(media, image_size=size).extent(frames)
    return Shape(height, width, frames)
