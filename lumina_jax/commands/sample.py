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
from typing import Annotated

import tyro

from lumina_jax.config import Config, MeshConfig, SampleConfig
from lumina_jax.config_files import load_config
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.prompts import read_prompts
from lumina_jax.run import read_model, read_run

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
    """The modality of the model to draw; default: the first."""
    video_frames: int | None = None
    """Frames of a clip; default: those of training."""
    views: int | None = None
    """Views of an object, evenly around it; the same as frames."""
    seconds: float | None = None
    """Length of a sound; default: as long as its text takes to say, or that of training."""
    frame_rate: float = 8.0
    """Frames a second of the files written."""
    batch: int = 16
    """Samples drawn at once, on all devices together."""
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (an immutable value)
    """How the devices of this host share the work; by default each draws a part of the samples."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")]


def main(words: Sequence[str]) -> int:
    with reported():
        arguments = parse(words, Arguments(run=Path("."), sample=SampleConfig()))
        arguments = parse(words, Arguments(run=arguments.run, sample=configuration(arguments).sample))
        keep_memory_on_cpu()
        status = draw_samples(arguments)
    return status


def parse(words: Sequence[str], default: Arguments) -> Arguments:
    return tyro.cli(Arguments, args=list(words), prog="lumina sample", description=__doc__, default=default)


def configuration(arguments: Arguments) -> Config:
    """That of the run, or the one named with the model of the folder."""
    if arguments.config is None:
        return read_run(arguments.run)
    return dataclasses.replace(load_config(arguments.config), model=read_model(arguments.run))


def draw_samples(arguments: Arguments) -> int:
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
    from lumina_jax.modalities import Asked, modality_of
    from lumina_jax.models.precision import matrix_type
    from lumina_jax.trained import how_it_draws, open_run

    seed, name = arguments.seed, arguments.modality
    modality = modality_of(config, name)
    asked = Asked(**{field: getattr(arguments, field) for field in Asked._fields}).checked()
    shapes = modality.asked_shapes(asked, prompts, config.text)
    check_request(config, arguments.sample, prompts, shapes, modality.patch_extent, modality=name, seed=seed)
    folder = writable(arguments.out or arguments.run / "samples")
    files = modality.files(arguments.frame_rate)

    # The model
    other = None if arguments.config is None else config
    pipeline = open_run(arguments.run, arguments.step, other, mesh=arguments.mesh, weights=arguments.sample.weights)
    print(
        f"drawing {len(prompts)} captions at step {pipeline.step} {how_it_draws(pipeline.mesh, pipeline.parameters)}",
        flush=True,
    )
    for notice in caption_warnings(pipeline.encoder, prompts, config.text.max_tokens):
        print(notice, flush=True)

    # Samples, written as they come
    batch = min(arguments.batch, len(prompts))
    if arguments.out is None:
        folder = writable(folder / f"{pipeline.step}" / f"seed-{seed}")
    settings = {
        "run": config.run.name,
        "step": pipeline.step,
        "modality": modality.config.name,
        "seed": seed,
        "batch": batch,
        **dataclasses.asdict(arguments.sample),
        "weights": matrix_type(pipeline.parameters),
        **files.about(asked, shapes[0]),
    }
    gallery = Gallery(folder, prompts, settings, files)
    drawn = pipeline.drawn(prompts, arguments.sample, seed=seed, shape=shapes, batch=batch, modality=name)
    saved = save_as_drawn(gallery, drawn, prompts)
    print(f"{saved} {gallery.plural} and {gallery.sheet() or 'no sheet'}")
    return 0 if saved == len(prompts) else 1


def check_arguments(arguments: Arguments) -> None:
    """Refuse numbers that no model can draw."""
    if arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch} must be at least 1")
    if not FRAME_RATES[0] <= arguments.frame_rate <= FRAME_RATES[1]:
        raise ValueError(f"frame_rate={arguments.frame_rate} must be between {FRAME_RATES[0]} and {FRAME_RATES[1]}")
