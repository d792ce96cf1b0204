"""Tables of runs whose law is known: losses of a planted law with noise."""

import json

import numpy as np

from lumina_jax.scaling.law import LossLaw
from lumina_jax.scaling.table import Cells, TrainedRun

CHINCHILLA = LossLaw(E=1.69, A=406.4, a=0.34, B=410.7, b=0.28)
FLOPS = 6.0
"""FLOPs for each parameter and sample."""


def full_grid(sizes=5, counts=4, smallest=1e6, largest=1e8, samples=20.0):
    """Parameters and samples of a full grid; `samples` is their number for each parameter, at the middle."""
    parameters = np.geomspace(smallest, largest, sizes)
    middle = np.sqrt(smallest * largest)
    pairs = np.meshgrid(parameters, samples * middle * np.geomspace(1 / 15, 15, counts))
    return tuple(one.ravel() for one in pairs)


def isoflop_grid(sizes=5, budgets=4, smallest=1e6, largest=1e8, samples=20.0, width=5.0):
    """Parameters and samples of a grid of budgets, each with sizes around sqrt(C)."""
    flops = FLOPS * samples * np.geomspace(2 * smallest, largest / 2, budgets) ** 2
    parameters = np.sqrt(flops / FLOPS / samples)[:, None] * np.geomspace(1 / width, width, sizes)
    return parameters.ravel(), (flops[:, None] / FLOPS / parameters).ravel()


def random_law(random, grid, least=0.05, greatest=0.7, floor=None):
    """A law whose terms are alike in the middle of a grid."""
    size, samples = (np.exp(np.log(one).mean()) for one in grid)
    a, b = random.uniform(least, greatest, 2)
    A, B = random.uniform(0.3, 1.5, 2)
    E = random.choice([0.0, 0.3, 1.0, 3.0]) if floor is None else floor
    return LossLaw(float(E), float(A * size**a), float(a), float(B * samples**b), float(b))


def planted_losses(law, grid, random, noise, seeds=2, noise_model="relative"):
    """Losses [n seeds] with noise in proportion to themselves, or to their mean."""
    loss = law.loss(*grid)[:, None]
    size = loss if noise_model == "relative" else loss.mean()
    return loss + noise * size * random.standard_normal((len(loss), seeds))


def planted_cells(law, grid, random, noise, seeds=2, noise_model="relative"):
    losses = planted_losses(law, grid, random, noise, seeds, noise_model)
    flops = FLOPS * grid[0] * grid[1]
    return Cells(*grid, flops, losses.mean(1), np.full(len(losses), seeds), flops)


def planted_runs(law, grid, random, noise, seeds=2, recipe="planted", saving=1.0):
    """Runs whose FLOPs are `saving` times those of the planted law's."""
    losses = planted_losses(law, grid, random, noise, seeds)
    return [
        TrainedRun(
            recipe=recipe,
            parameters=float(size),
            samples=float(samples),
            flops=float(saving * FLOPS * size * samples),
            loss=float(loss),
            seed=seed,
        )
        for size, samples, row in zip(*grid, losses)
        for seed, loss in enumerate(row)
    ]


def write_runs(file, runs):
    file.write_text("".join(json.dumps(run if isinstance(run, dict) else run.model_dump()) + "\n" for run in runs))
    return file
