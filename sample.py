"""Draw from a trained run: python sample.py runs/emoji "red heart, noto style" "pizza, fluent style"

Each picture is a PNG that carries its settings; sheet.png shows them all with their captions. Clips and turntables are
gif and mp4, beside a PNG of their frames; sounds are wav, beside a PNG of their spectrogram. Settings that are not
given are those of the run. A label-conditional model takes the numbers of labels as prompts.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lumina_jax.config import Config, DataConfig, SampleConfig
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.run import load_config, read_model, read_prompts, read_run

if TYPE_CHECKING:
    from lumina_jax.generation.pipeline import Shape


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of weights made by `convert --to jax`."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Captions to draw."""
    config: Path | None = None
    """A configuration file, for converted weights: all but the model, which is theirs."""
    prompts_file: Path | None = None
    """A text file with more captions, one a line."""
    out: Path | None = None
    """Where the pictures go; default: samples/STEP in the folder of the run."""
    step: int | None = None
    """Checkpoint to draw from; default: the newest."""
    seed: int = 0
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


def main() -> None:
    try:
        arguments = parse(Arguments(run=Path("."), sample=SampleConfig()))
        arguments = parse(Arguments(run=arguments.run, sample=configuration(arguments).sample))
        keep_memory_on_cpu()
        draw(arguments)
    except (ValueError, OSError) as error:
        if os.environ.get("LUMINA_TRACEBACK"):
            raise
        raise SystemExit(f"error: {error}") from None


def parse(default: Arguments) -> Arguments:
    return tyro.cli(Arguments, description=__doc__, default=default)


def configuration(arguments: Arguments) -> Config:
    """That of the run, or the one named with the model of the folder."""
    if arguments.config is None:
        return read_run(arguments.run)
    return dataclasses.replace(load_config(arguments.config), model=read_model(arguments.run))


def draw(arguments: Arguments) -> None:
    config = configuration(arguments)
    prompts = [*arguments.prompts, *read_prompts(arguments.prompts_file)]
    if arguments.batch < 1:
        raise ValueError(f"batch={arguments.batch} must be at least 1")
    if arguments.frame_rate <= 0:
        raise ValueError(f"frame_rate={arguments.frame_rate} must be positive")
    if arguments.video_frames is not None and arguments.views is not None:
        raise ValueError("--video-frames and --views both say how many frames there are; give one of them")
    if not prompts:
        raise ValueError('there is nothing to draw; name captions after the run, as in: sample.py RUN "red heart"')

    shapes = shapes_of(arguments, config, prompts)

    from lumina_jax.generation.movies import save_samples
    from lumina_jax.generation.sounds import save_sounds, voice_of
    from lumina_jax.tokens import cut_views
    from lumina_jax.trained import open_run

    data = config.data_of(arguments.modality)
    voice = voice_of(config) if data.seconds is not None else None
    pipeline, step = open_run(arguments.run, arguments.step, config)
    batch = min(arguments.batch, len(prompts))
    samples = pipeline(
        prompts, arguments.sample, seed=arguments.seed, shape=shapes, batch=batch, modality=arguments.modality
    )

    out = arguments.out or arguments.run / "samples" / f"{step}"
    settings = {
        "run": config.run.name,
        "step": step,
        "modality": config.model.modality_of(arguments.modality).name,
        "seed": arguments.seed,
        "batch": batch,
        **dataclasses.asdict(arguments.sample),
    }
    if voice is not None:
        save_sounds(out, samples, prompts, settings, voice=voice, rate=data.sample_rate)
        what = "sounds"
    else:
        if data.grid_columns is not None:
            samples = [cut_views(sample, data.grid_columns) for sample in samples]
        save_samples(out, samples, prompts, settings | shapes[0]._asdict(), rate=arguments.frame_rate)
        what = "pictures" if len(samples[0]) == 1 else "clips"
    print(f"{len(samples)} {what} and {out / 'sheet.png'}")


def _picture_shape(arguments: Arguments, data: DataConfig) -> "Shape":
    """Of every picture, clip or grid of views."""
    from lumina_jax.generation.pipeline import Shape

    size, columns = arguments.size or data.image_size, data.grid_columns
    frames = next(count for count in (arguments.video_frames, arguments.views, data.frames) if count is not None)
    if columns is None:
        return Shape(arguments.height or size, arguments.width or size, frames)
    if arguments.height or arguments.width or arguments.video_frames:
        raise ValueError("this draws a grid of views; use --size for the pixels of a view, and --views")
    if frames < 1 or frames % columns:
        raise ValueError(f"--views {frames} must be a multiple of the {columns} columns of the grid")
    frames, height, width = dataclasses.replace(data, image_size=size).extent(frames)
    return Shape(height, width, frames)


def shapes_of(arguments: Arguments, config: Config, prompts: Sequence[str]) -> "list[Shape]":
    """The size of each sample."""
    from lumina_jax.generation.pipeline import Shape, check_shape
    from lumina_jax.generation.sheets import patch_pixels, shape_for
    from lumina_jax.mel import frames_of

    data = config.data_of(arguments.modality)
    of_pictures = {
        f"--{name.replace('_', '-')}": getattr(arguments, name)
        for name in ("size", "height", "width", "video_frames", "views")
    }
    given = [name for name, value in of_pictures.items() if value is not None]
    if data.seconds is not None and given:
        raise ValueError(f"{' and '.join(given)} say how large a picture is, but this draws sounds; use --seconds")
    if data.seconds is None and arguments.seconds is not None:
        raise ValueError("--seconds says how long a sound is, but this draws pictures; use --video-frames")
    if arguments.seconds is not None:
        if arguments.seconds <= 0:
            raise ValueError(f"seconds={arguments.seconds} must be positive")
        unit = patch_pixels(config, arguments.modality)[1]
        shapes = [Shape(1, -(-frames_of(arguments.seconds, data.sample_rate) // unit) * unit)] * len(prompts)
    elif data.seconds is not None:
        shapes = [shape_for(config, prompt, arguments.modality) for prompt in prompts]
    else:
        shapes = [_picture_shape(arguments, data)] * len(prompts)
    for shape in shapes:
        check_shape(shape, patch_pixels(config, arguments.modality))
    return shapes


if __name__ == "__main__":
    main()
