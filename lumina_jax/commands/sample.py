"""lumina sample runs/emoji "red heart, noto style" "pizza, fluent style"

Each picture is a PNG that carries its settings, written as soon as it is drawn; sheet.png shows them all with their
captions. Clips and turntables are gif and mp4, beside a PNG of their frames; sounds are wav, beside a PNG of their
spectrogram. Pictures with other settings are never overwritten. Settings that are not given are those of the run. A
label-conditional model takes the numbers of labels as prompts. --source edits what there is: docs/editing.md.
--region gives parts of pictures captions: docs/regions.md.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lumina_jax.config import Config, MeshConfig, SampleConfig
from lumina_jax.config_files import load_config
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.prompts import read_prompts
from lumina_jax.run import read_model, read_run

if TYPE_CHECKING:
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.modalities import Modality, Shape

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
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further caption of every sample and its weight, such as "0.5: a sunset"; the prompt has the weight 1. It may be
    repeated."""
    region: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A part of every picture and its caption, such as "0,0,16,32: a cat" (left, top, right and bottom pixel) or
    "mask.png: a cat" (white is the region). It may be repeated; later regions cover earlier ones."""
    region_blend: int = 0
    """Pixels across the edges of regions in which one caption gives way to the other."""
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
    from lumina_jax.generation.gallery import Gallery, save_as_drawn, writable
    from lumina_jax.generation.pipeline import BATCH
    from lumina_jax.generation.request import check_request
    from lumina_jax.modalities import Asked, modality_of
    from lumina_jax.models.precision import matrix_type

    seed, seeds, name = arguments.seed or 0, seeds_of(arguments), arguments.modality
    modality = modality_of(config, name)
    asked = Asked(**{field: getattr(arguments, field) for field in Asked._fields}).checked()
    shapes = modality.asked_shapes(asked, prompts, config.text)
    unit = modality.patch_extent
    check_request(config, arguments.sample, prompts, shapes, unit, modality=name, seed=seed, seeds=seeds)
    parts = what_is_edited(arguments, modality, shapes) | what_has_captions(arguments, config, modality, shapes)
    folder = writable(arguments.out or arguments.run / "samples")
    files = modality.files(arguments.frame_rate)

    pipeline = opened(arguments, config, prompts, captions_beside(arguments, parts))

    # Samples, written as they come
    batch = arguments.batch if seeds and arguments.batch else min(arguments.batch or BATCH, len(prompts))
    if arguments.out is None:
        folder = writable(folder / f"{pipeline.step}" / (f"seed-{seed}" if seeds is None else "seeds"))
    settings = {
        "run": config.run.name,
        "step": pipeline.step,
        "modality": modality.config.name,
        **({"seed": seed} if seeds is None else {"seeds": seeds}),
        "batch": batch,
        **{name: f"{given}" if isinstance(given, Path) else given for name, given in given_parts(arguments).items()},
        **dataclasses.asdict(arguments.sample),
        "weights": matrix_type(pipeline.parameters),
        **files.about(asked, shapes[0]),
    }
    gallery = Gallery(folder, prompts, settings, files, None if seeds is None else [{"seeds": [one]} for one in seeds])
    drawn = pipeline.drawn(
        prompts, arguments.sample, seed=seed, seeds=seeds, shape=shapes, batch=batch, modality=name, **parts
    )
    saved = save_as_drawn(gallery, drawn, prompts)
    print(f"{saved} {gallery.plural} and {gallery.sheet() or 'no sheet'}")
    return 0 if saved == len(prompts) else 1


def opened(arguments: Arguments, config: Config, prompts: Sequence[str], beside: Sequence[str]) -> "Pipeline":
    """The model with its adapters; how it draws, and what it does not read of the captions, is printed."""
    from lumina_jax.encoders.caption_warnings import caption_warnings
    from lumina_jax.trained import how_it_draws, open_run, strength_of

    pipeline = open_run(
        arguments.run,
        arguments.step,
        None if arguments.config is None else config,
        mesh=arguments.mesh,
        weights=arguments.sample.weights,
        adapters=[strength_of(word) for word in arguments.adapter],
    )
    print(
        f"drawing {len(prompts)} captions at step {pipeline.step} {how_it_draws(pipeline.mesh, pipeline.parameters)}"
        + "".join(f", adapter {word}" for word in arguments.adapter),
        flush=True,
    )
    for notice in caption_warnings(pipeline.encoder, [*prompts, *beside], config.text.max_tokens):
        print(notice, flush=True)
    return pipeline


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


def what_is_edited(arguments: Arguments, modality: "Modality", shapes: "Sequence[Shape]") -> dict[str, Any]:
    """The source, its mask and the strength, for `Pipeline.drawn`; what was changed about the files is printed.

    Raises:
      ValueError: a file cannot be read or does not fit, or a mask or a strength has no source.
    """
    from lumina_jax.generation.originals import originals

    if arguments.source is None:
        if given := given_edit(arguments):
            flags = " and ".join(f"--{name}" for name in given)
            raise ValueError(f"{flags} is for a source, but there is none; name its file with --source")
        return {}
    corner = None if arguments.outpaint is None else corner_of(arguments.outpaint)
    found = [modality.read_source(arguments.source, arguments.mask, shape, corner) for shape in dict.fromkeys(shapes)]
    of_shape = dict(zip(dict.fromkeys(shapes), found))
    edited: dict[str, Any] = {
        "source": [of_shape[shape].sample for shape in shapes],
        "mask": None if found[0].mask is None else [of_shape[shape].mask for shape in shapes],
        "strength": arguments.strength,
    }
    originals(modality, shapes, **edited)
    for notice in dict.fromkeys(notice for one in found for notice in one.notices):
        print(notice, flush=True)
    return edited


def corner_of(words: str) -> tuple[int, int]:
    """Left and top, as in "16,0".

    Raises:
      ValueError: they are no two numbers.
    """
    parts = words.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise ValueError(f"--outpaint must be the left and top pixel of the source, such as 16,0, but is {words!r}")
    return int(parts[0]), int(parts[1])


def given_edit(arguments: Arguments) -> dict[str, Any]:
    """The flags of editing that are given, by their names."""
    named = {name: getattr(arguments, name) for name in ("source", "mask", "outpaint", "strength")}
    return {name: given for name, given in named.items() if given is not None}


def what_has_captions(
    arguments: Arguments, config: Config, modality: "Modality", shapes: "Sequence[Shape]"
) -> dict[str, Any]:
    """The captions besides the prompts, for `Pipeline.drawn`.

    Raises:
      ValueError: a flag cannot be read, a file of a mask is missing, or the captions do not fit what is drawn.
    """
    from lumina_jax.generation.composition import PictureRegion, check_captions, composition
    from lumina_jax.modalities.decoding.edited import read_white

    if arguments.region_blend and not arguments.region:
        raise ValueError(f"--region-blend {arguments.region_blend} is for the edges of regions; name one with --region")
    also, regions = [], []
    for words in arguments.also:
        weight, caption = split_at_colon("--also", words, "0.5: a sunset")
        try:
            also.append((caption, float(weight)))
        except ValueError:
            raise ValueError(f"--also must begin with a weight, such as 0.5: a sunset, but is {words!r}") from None
    for words in arguments.region:
        area, caption = split_at_colon("--region", words, "0,0,16,32: a cat")
        is_box = all(sign in "0123456789,.+- " for sign in area)
        where = box_of(area) if is_box else read_white(Path(area))
        regions.append(PictureRegion(caption, where, arguments.region_blend))
    check_captions(config, also, regions)
    for shape in dict.fromkeys(shapes):
        composition(modality, shape, also, regions)
    return {"also": also, "regions": regions}


def split_at_colon(flag: str, words: str, example: str) -> tuple[str, str]:
    """The text before the first colon, and the caption after it.

    Raises:
      ValueError: there is no colon, or nothing before it.
    """
    before, colon, caption = words.partition(":")
    if not colon or not before.strip():
        raise ValueError(f'{flag} must name a caption after a colon, as in {flag} "{example}", but is {words!r}')
    return before.strip(), caption.strip()


def box_of(words: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, as in "0,0,16,32".

    Raises:
      ValueError: they are not four whole numbers.
    """
    try:
        left, top, right, bottom = map(int, words.split(","))
    except ValueError:
        raise ValueError(
            "--region must begin with the left, top, right and bottom pixel of a box, such as 0,0,16,32, or with the "
            f"file of a mask, but begins with {words!r}"
        ) from None
    return left, top, right, bottom


def captions_beside(arguments: Arguments, parts: dict[str, Any]) -> list[str]:
    """The negative and the captions of weights and regions, as far as there are some."""
    captions = [caption for caption, _ in parts["also"]] + [region.caption for region in parts["regions"]]
    return [arguments.sample.negative, *captions] if arguments.sample.negative else captions


def given_parts(arguments: Arguments) -> dict[str, Any]:
    """The flags of editing, of further captions and of adapters that are given, by their names."""
    found = given_edit(arguments)
    found |= {name: list(given) for name in ("also", "region", "adapter") if (given := getattr(arguments, name))}
    return found | ({"region_blend": arguments.region_blend} if arguments.region else {})


def check_arguments(arguments: Arguments) -> None:
    """Refuse numbers that no model can draw."""
    if arguments.batch is not None and arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch} must be at least 1")
    if not FRAME_RATES[0] <= arguments.frame_rate <= FRAME_RATES[1]:
        raise ValueError(f"frame_rate={arguments.frame_rate} must be between {FRAME_RATES[0]} and {FRAME_RATES[1]}")
