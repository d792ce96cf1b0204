"""Whether a model has learned a style from a few pictures, and forgotten nothing: python benchmarks/new_style.py emoji

In: a model with its data, and an adapter that was trained on the first pictures of a prepared folder in the new style.
Draws other names of the folder, and captions that the model was trained on, with and without the adapter. Prints for
each how often the drawn picture is nearer to its own true one than to 50 others of its style, by features of
EfficientNet-lite0, and the Frechet distance of the drawn and the true ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config import PreparedConfig
from lumina_jax.evaluation.features import feature_network
from lumina_jax.evaluation.picture_report import set_report
from lumina_jax.trained import open_run, strength_of

WANTED = ("nearest_among_50_trained_on", "frechet")


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    adapter: str
    """FOLDER or FOLDER:STRENGTH."""
    new: Path
    """The prepared folder of the new style."""
    trained: int = 40
    """Pictures of it that the adapter was trained on, the first ones."""
    names: int = 150
    """Captions of the new style, the next ones, and of the old styles, the first ones."""
    seed: int = 1


def main(arguments: Arguments) -> None:
    network = feature_network()
    base = open_run(arguments.run)
    adapted = open_run(arguments.run, adapters=[strength_of(arguments.adapter)])
    new = base.config.replace(data={"source": PreparedConfig(path=str(arguments.new))})
    chosen = slice(arguments.trained, arguments.trained + arguments.names)
    parts = {
        "other names, new style": (true_samples(new, chosen.stop, split="train"), chosen),
        "old styles": (true_samples(base.config, arguments.names, split="train"), slice(arguments.names)),
    }
    for title, (samples, part) in parts.items():
        prompts, true = samples.prompts[part], [sample[0] for sample in samples.true[part]]
        for name, pipeline in (("without", base), ("with", adapted)):
            drawn = [one[0] for one in pipeline(prompts, seed=arguments.seed)]
            report = set_report(prompts, drawn, true, np.zeros(len(prompts), bool), network)
            found = {key: value for line in report for key, value in line.numbers.items()}
            numbers = ", ".join(f"{key} {found[key]:.3f}" for key in WANTED if key in found)
            print(f"{title}, {name} the adapter, {len(prompts)} captions: {numbers}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
