"""Do regions show their captions, and swap when these are swapped? python benchmarks/regions.py RUN

Draws pictures whose left and right half have a caption each, and the same with the same noise and the two captions
swapped. Prints how many halves are nearest by pixels to that half of the true picture of their caption, of all true
ones.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config.sample import SolverName
from lumina_jax.evaluation.retrieval import nearest
from lumina_jax.generation.composition import PictureRegion
from lumina_jax.trained import open_run


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    pairs: int = 16
    """Pairs of captions, evenly over those trained on."""
    pictures: int = 600
    """True pictures, the first of the data, among whose halves a drawn one must find its own."""
    solver: SolverName = "midpoint"
    steps: int = 20
    out: Path | None = None
    """File for a picture: a column for each pair, and below it with its captions swapped."""


def main(arguments: Arguments) -> None:
    pipeline = open_run(arguments.run)
    samples = true_samples(pipeline.config, arguments.pictures)
    true = np.stack([sample[0] for sample in samples.true])
    trained_on = np.flatnonzero(~samples.is_held_out)
    chosen = trained_on[np.linspace(0, len(trained_on) - 1, 2 * arguments.pairs).astype(int)]
    pairs = np.stack([chosen[: arguments.pairs], chosen[arguments.pairs :]], axis=1)
    settings = dataclasses.replace(pipeline.config.sample, solver=arguments.solver, steps=arguments.steps)
    side, rows = true.shape[1], []
    for name, order in (("as they are", pairs), ("swapped", pairs[:, ::-1])):
        drawn = []
        for index, (left, right) in enumerate(order):
            region = PictureRegion(samples.prompts[right], (side // 2, 0, side, side))
            drawn.append(pipeline([samples.prompts[left]], settings, seed=index, regions=[region])[0][0])
        pictures = np.stack(drawn)
        halves = zip(np.split(pictures, 2, axis=2), np.split(true, 2, axis=2), order.T)
        found = [int((nearest(half, of_true) == wanted).sum()) for half, of_true, wanted in halves]
        print(f"captions {name}: {found[0]} left and {found[1]} right halves of {len(order)} nearest to their own")
        rows.append(np.concatenate(drawn, axis=1))
    if arguments.out is not None:
        Image.fromarray(np.concatenate(rows)).save(arguments.out)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
