"""lumina sample runs/emoji "red heart, noto style" "pizza, fluent style"

Each picture is a PNG that carries its settings, written as soon as it is drawn; sheet.png shows them all with their
captions. Clips and turntables are gif and mp4, beside a PNG of their frames; sounds are wav, beside a PNG of their
spectrogram. Pictures with other settings are never overwritten. Settings that are not given are those of the run. A
label-conditional model takes the numbers of labels as prompts. --source edits what there is: docs/editing.md.
--region gives parts of pictures captions: docs/regions.md. --style-of gives all one style: docs/style-sets.md.
--scenes draws clips of several captions: docs/scenes.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lumina_jax.config import SampleConfig
from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.run import samples_folder
from lumina_jax.sample_requests.arguments import Arguments, configuration

if TYPE_CHECKING:
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.sample_requests.preparation import Prepared


def main(words: Sequence[str]) -> int:
    with reported():
        arguments = parse(words, Arguments(run=Path("."), sample=SampleConfig()))
        arguments = parse(words, Arguments(run=arguments.run, sample=configuration(arguments).sample))
        keep_memory_on_cpu()
        status = draw_samples(arguments)
    return status


def parse(words: Sequence[str], default: Arguments) -> Arguments:
    return tyro.cli(Arguments, args=list(words), prog="lumina sample", description=__doc__, default=default)


def draw_samples(arguments: Arguments) -> int:
    """The whole command, top to bottom; 1 if a sample could not be drawn, else 0."""
    from lumina_jax.generation.gallery import save_as_drawn, writable
    from lumina_jax.sample_requests.preparation import prepared

    request = prepared(arguments, lambda notice: print(notice, flush=True))
    folder = writable(arguments.out or samples_folder(arguments.run))
    pipeline = opened(request)
    if arguments.out is None:
        of_seed = "seeds" if request.seeds else f"seed-{request.seed}"
        folder = writable(samples_folder(arguments.run, pipeline.step) / of_seed)
    gallery = request.gallery(folder, pipeline)
    saved = save_as_drawn(gallery, request.drawn(pipeline), request.prompts)
    print(f"{saved} {gallery.plural} and {gallery.sheet() or 'no sheet'}")
    return 0 if saved == len(request.prompts) else 1


def opened(request: "Prepared") -> "Pipeline":
    """The model with its adapters; how it draws, and what it does not read of the captions, is printed."""
    from lumina_jax.encoders.caption_warnings import caption_warnings
    from lumina_jax.trained import how_it_draws, open_run, strength_of

    arguments, config = request.arguments, request.config
    pipeline = open_run(
        arguments.run,
        arguments.step,
        None if arguments.config is None else config,
        mesh=arguments.mesh,
        weights=arguments.sample.weights,
        adapters=[strength_of(word) for word in arguments.adapter],
    )
    print(
        f"drawing {len(request.prompts)} captions at step {pipeline.step} "
        f"{how_it_draws(pipeline.mesh, pipeline.parameters)}"
        + "".join(f", adapter {word}" for word in arguments.adapter),
        flush=True,
    )
    for notice in caption_warnings(pipeline.encoder, request.captions, config.text.max_tokens):
        print(notice, flush=True)
    return pipeline
