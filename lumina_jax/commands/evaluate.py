"""lumina evaluate RUN: draw every caption of a run's data, and count the samples that match theirs.

Samples and a sheet of them go into samples/STEP/evaluated-seed-SEED of the run, as they are drawn.

A drawn sample matches when, of all true ones, that of its own caption is nearest by pixels. Embedded emoji are counted
apart for the pairs trained on and for those held out. Of clips and views each frame is also compared with all frames of
all samples, and the motion with that of the true clip. Speech is given to a recogniser, which may hear any text of the
data, and so are the true recordings, through the same spectrogram and the same way back to sound.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from lumina_jax.config import Config, EmojiConfig, SoundConfig
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.progress import counted
from lumina_jax.run import read_run

if TYPE_CHECKING:
    from lumina_jax.generation.gallery import Gallery
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.generation.request import Shape

FRAME_RATE = 8.0


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    step: int | None = None
    """Checkpoint to draw from; default: the newest."""
    seed: int = 1
    modality: str | None = None
    """Which of the model's modalities to draw; default: its own."""
    limit: int = 512
    """Samples of the data, at most."""
    batch: int = 32
    """Pictures drawn at once."""
    likelihood: int = 0
    """How many pictures are also walked back to noise: their likelihood, and how well they are drawn again."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina evaluate", description=__doc__)
    keep_memory_on_cpu()
    with reported():
        status = evaluate(arguments)
    return status


def evaluate(arguments: Arguments) -> int:
    """The whole command; 1 if a sample could not be drawn, else 0."""
    from lumina_jax.generation.gallery import writable
    from lumina_jax.generation.sheets import trained_shape
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
    if arguments.likelihood and config.vae.path:
        raise ValueError("--likelihood needs a model of pixels, but this one draws latents (vae.path); leave it out")
    media = config.data_of(arguments.modality).media
    if isinstance(media, SoundConfig):
        return evaluate_speech(arguments, config, media)
    prompts, true, is_held_out = true_samples(config, arguments.limit, arguments.modality)
    pipeline, step = open_run(arguments.run, arguments.step)
    shapes = [trained_shape(config, arguments.modality)] * len(prompts)
    drawn, gallery = drawn_samples(arguments, config, pipeline, step, prompts, shapes)
    compare(np.stack([*drawn.values()]), true[[*drawn]], is_held_out[[*drawn]])
    print(f"contact sheet: {gallery.sheet()}")
    if arguments.likelihood:
        chosen = slice(arguments.likelihood)
        likelihood(pipeline, config, true[chosen], prompts[chosen], arguments.seed, arguments.batch)
    return 0 if len(drawn) == len(prompts) else 1


def drawn_samples(
    arguments: Arguments,
    config: Config,
    pipeline: "Pipeline",
    step: int,
    prompts: list[str],
    shapes: "list[Shape]",
    **of_sounds: Any,
) -> "tuple[dict[int, Any], Gallery]":
    """The samples that could be drawn by their index, in order, and where they are; errors if there are none."""
    from lumina_jax.encoders.caption_warnings import caption_warnings
    from lumina_jax.generation.gallery import Gallery, save_as_drawn, writable
    from lumina_jax.generation.pipeline import NotDrawn

    print(f"drawing {len(prompts)} captions at step {step}", flush=True)
    for notice in caption_warnings(pipeline.encoder, prompts, config.text.max_tokens):
        print(notice, flush=True)
    asked: dict[str, Any] = {"seed": arguments.seed, "batch": arguments.batch, "modality": arguments.modality}
    name = "-".join(["evaluated", *filter(None, [arguments.modality]), f"seed-{arguments.seed}"])
    folder = writable(arguments.run / "samples" / f"{step}" / name)
    settings = {"run": config.run.name, "step": step, **asked, **dataclasses.asdict(config.sample)}
    gallery = Gallery(folder, prompts, settings, **{"rate": FRAME_RATE, **of_sounds})
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


def compare(drawn: np.ndarray, true: np.ndarray, is_held_out: np.ndarray) -> None:
    """Print how many samples [n f h w 3] are nearest to the true one of their caption."""
    from lumina_jax.evaluation.retrieval import nearest

    matches = nearest(drawn, true) == np.arange(len(true))
    for name, chosen in (("trained on", ~is_held_out), ("held out", is_held_out), ("all", is_held_out | True)):
        if chosen.any():
            share = matches[chosen].mean()
            print(
                f"  {name:<11} {matches[chosen].sum():4} of {chosen.sum():4} nearest to their own sample: {share:.1%}"
            )
    if true.shape[1] > 1:
        compare_frames(drawn, true)


def evaluate_speech(arguments: Arguments, config: Config, media: SoundConfig) -> int:
    """Which texts are heard in what is drawn from them, and in a true recording of each."""
    from lumina_jax.data.example import BadSample
    from lumina_jax.data.sources import open_source
    from lumina_jax.evaluation.speech import Recogniser, spoken_text
    from lumina_jax.generation.sheets import shape_for
    from lumina_jax.mel import log_mel
    from lumina_jax.modalities.decoding.sounds import read_sound
    from lumina_jax.modalities.files.sounds import voice_of
    from lumina_jax.trained import open_run

    source, voice = open_source(config.data_of(arguments.modality), config.model), voice_of(config)
    records = [record for record in map(source.__getitem__, range(len(source))) if not isinstance(record, BadSample)]
    true = {record.caption: record.media for record in reversed(records) if record.caption}
    prompts = list(true)[: arguments.limit]
    wanted = [spoken_text(prompt) for prompt in prompts]
    recogniser = Recogniser([spoken_text(caption) for caption in true])
    pipeline, step = open_run(arguments.run, arguments.step)
    shapes = [shape_for(config, prompt, arguments.modality) for prompt in prompts]
    of_sounds = {"voice": voice, "rate": media.sample_rate}
    found, gallery = drawn_samples(arguments, config, pipeline, step, prompts, shapes, **of_sounds)
    drawn, total = [*found.values()], len(prompts)
    prompts, wanted = [prompts[index] for index in found], [wanted[index] for index in found]
    recorded = [log_mel(read_sound(true[prompt], media), media.sample_rate) for prompt in prompts]
    for name, spectrograms in (("drawn", drawn), ("recorded", recorded)):
        heard = [recogniser(voice(spectrogram, media.sample_rate), media.sample_rate) for spectrogram in spectrograms]
        wrong = [f"{text} ({other or 'nothing'})" for text, other in zip(wanted, heard) if text != other]
        share = 1 - len(wrong) / len(wanted)
        print(f"  {name:<9} {len(wanted) - len(wrong):4} of {len(wanted):4} heard: {share:.1%}")
        if wrong:
            print(f"            not heard: {', '.join(wrong)}")
    print(f"sounds and spectrograms: {gallery.sheet()}")
    return 0 if len(found) == total else 1


def compare_frames(drawn: np.ndarray, true: np.ndarray) -> None:
    """Each frame against all frames, and how much clips [n f h w 3] move."""
    from lumina_jax.evaluation.retrieval import look_alike, motion, nearest

    frames = [clips.reshape(-1, *clips.shape[2:]) for clips in (drawn, true)]
    found = nearest(*frames)
    count, own = true.shape[1], np.arange(len(found))
    own_sample, exact = found // count == own // count, found == own
    alike = own_sample & look_alike(frames[1][found], frames[1])
    print(
        f"  single frames nearest to one of their own sample: {own_sample.mean():.1%}; to the same frame or one that "
        f"looks like it: {alike.mean():.1%} (to the same frame itself: {exact.mean():.1%})"
    )
    moving, wanted = motion(drawn), motion(true)
    agreement = np.corrcoef(moving, wanted)[0, 1]
    ratio = np.median(moving / np.maximum(wanted, 1e-9))
    print(
        f"  motion (mean difference of consecutive frames): {ratio:.2f} times the true one in the median; correlation "
        f"over clips {agreement:.2f}"
    )


def likelihood(
    pipeline: "Pipeline", config: Config, pictures: np.ndarray, prompts: list[str], seed: int, batch: int
) -> None:
    """Bits for each value of pictures uint8 [n f h w 3], and the error after a walk to noise and back; `batch` at once.

    Values of a byte are spread evenly over their interval, so that a density in nats becomes a bound on their bits.
    """
    from lumina_jax.flow.solvers import SOLVERS
    from lumina_jax.tokens import pixels_to_unit

    solver = config.sample.solver if config.sample.solver in SOLVERS else "midpoint"
    settings = dataclasses.replace(config.sample, solver=solver, guidance=1.0)
    spread = np.random.default_rng(seed).uniform(-0.5, 0.5, pictures.shape)
    values = pixels_to_unit(pictures + spread)
    log_density, error = np.empty(len(values)), np.empty(len(values))
    with counted("walking pictures to noise and back", len(values)) as show:
        for start in range(0, len(values), batch):
            done = min(start + batch, len(values))
            part = np.minimum(np.arange(start, start + min(batch, len(values))), len(values) - 1)  # of equal lengths
            own, words = values[part], [prompts[index] for index in part]
            log_density[part] = pipeline.log_density(own, words, settings, seed=seed)
            again = np.asarray(pipeline.latents(pipeline.invert(own, words, settings), words, settings))
            error[part] = np.abs(again - own).mean(axis=tuple(range(1, own.ndim))) * 127.5
            show(done)
    bits = np.log2(127.5) - log_density / (np.log(2) * values[0].size)
    print(f"{len(pictures)} pictures have {bits.mean():.3f} bits a value, from {bits.min():.3f} to {bits.max():.3f}")
    print(f"walked to noise and back, their values differ by {error.mean():.2f} of 255 on average")


def true_samples(config: Config, limit: int, modality: str | None = None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions (or labels), pixels uint8 [n f h w 3] as training crops them, and which were held out."""
    from lumina_jax.data.example import Example
    from lumina_jax.data.preparation import Preparation, possible_sizes
    from lumina_jax.data.sources import open_source
    from lumina_jax.tokens import unit_to_pixels

    data = config.data_of(modality).replace(caption_dropout=0.0)
    if "crop" in data.media.setting_names():
        data = data.replace(crop="square")
    held_out: set[str] = set()
    if isinstance(data.source, EmojiConfig):
        hidden = open_source(data.replace(split="held_out"), config.model)
        held_out = {hidden[index].name for index in range(len(hidden))}
        data = data.replace(split="all")
    source = open_source(data, config.model)
    prepare = Preparation(data, config.model, 0, tuple(possible_sizes(data, config.model)))
    prepared = [prepare((index, source[index]))[1] for index in range(min(limit, len(source)))]
    examples = [example for example in prepared if isinstance(example, Example)]
    prompts = [
        example.caption or "" if config.model.conditioning == "text" else f"{example.label}" for example in examples
    ]
    pixels = np.stack([unit_to_pixels(example.latents) for example in examples])
    return prompts, pixels, np.array([example.name in held_out for example in examples])
