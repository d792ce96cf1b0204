"""What each technique buys at sizes that a model was not trained at: python benchmarks/extrapolation.py RUN

Draws the same captions with the same noise at multiples of the size of training, without any technique and with each
(docs/extrapolation.md), and prints for each size and technique: the share of pictures that are nearest to their own
true picture, of all those of its style, by features of EfficientNet-lite0 (a wide picture counts if one of its squares
is); the Frechet distance of these features (of the middle squares) to those of the true pictures; and the number of
separate things in a picture over that in the true one, each covering at least one hundredth of a square, which is above
1 where things are repeated.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from scipy.ndimage import label
from scipy.spatial.distance import cdist

from lumina_jax.commands.evaluate import TrueSamples, true_samples
from lumina_jax.config.sample import SolverName
from lumina_jax.evaluation.features import feature_network
from lumina_jax.evaluation.frechet import frechet_distance
from lumina_jax.evaluation.picture_report import picture_features
from lumina_jax.modalities import Shape
from lumina_jax.trained import open_run

ROOT = "root"
"""Stands for the root of the ratio of the numbers of pixels; as a factor of positions in a sequence, for the ratio."""
ALONE: dict[str, Any] = {"proportional_attention": False}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "none": {"rope_factor": 1.0, **ALONE},
    "proportional attention": {"rope_factor": 1.0},
    "linear": {"rope_watershed": 2.0, "rope_factor": ROOT, **ALONE},
    "NTK": ALONE,
    "frequency-aware": {"rope_frequency_aware": True, **ALONE},
    "time-aware": {"rope_watershed": 0.3, **ALONE},
    "linear, proportional": {"rope_watershed": 2.0, "rope_factor": ROOT},
    "NTK, proportional": {},
    "frequency-aware, proportional": {"rope_frequency_aware": True},
    "time-aware, proportional": {"rope_watershed": 0.3},
    "time-aware to 0.7, proportional": {"rope_watershed": 0.7},
    "NTK, proportional, time shift": {"time_shift": ROOT},
    "merged": {"rope_factor": 1.0, "merge_tokens": 2, **ALONE},
    "linear, merged": {"rope_watershed": 2.0, "rope_factor": ROOT, "merge_tokens": 2, **ALONE},
}
"""Settings of drawing. The time shift is that of Esser et al., arXiv 2403.03206, section 5.3.2."""
NEUTRAL: dict[str, Any] = {
    "rope_factor": None, "rope_watershed": 0.0, "rope_frequency_aware": False, "proportional_attention": True,
    "time_shift": 1.0, "merge_tokens": 1, "merge_until": 0.5,
}  # fmt: skip
"""What techniques change, whatever the run says."""
WHITE, LEAST_AREA = 240, 0.01


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    captions: int = 64
    """Captions that are drawn, evenly over those trained on."""
    pictures: int = 600
    """True pictures, the first of the data, among which a drawn one must find its own."""
    sizes: tuple[str, ...] = ("1x1", "1.5x1.5", "2x2", "1x2", "3x3", "1x6")
    """Heights and widths as multiples of those of training."""
    techniques: tuple[str, ...] = tuple(TECHNIQUES)
    solver: SolverName = "midpoint"
    steps: int = 20
    out: Path | None = None
    """Folder for a sheet of each size: a row for each technique."""


def main(arguments: Arguments) -> None:
    pipeline = open_run(arguments.run)
    settings = dataclasses.replace(pipeline.config.sample, solver=arguments.solver, steps=arguments.steps)
    judge = Judge(true_samples(pipeline.config, arguments.pictures), arguments.captions)
    side = pipeline.modality().trained_shape.height
    is_sequence = pipeline.config.model.position_axes == 1
    print("| size | technique | nearest | Frechet distance | things |\n|---|---|---|---|---|")
    for size in arguments.sizes:
        height, width = (round(side * float(multiple)) for multiple in size.split("x"))
        rows = []
        # At the size of training they all do nothing.
        for name in arguments.techniques if height != side or width != side else ("none",):
            asked = dataclasses.replace(settings, **settings_of(name, math.sqrt(height * width) / side, is_sequence))
            drawn = [one[0] for one in pipeline(judge.prompts, asked, seed=0, shape=Shape(height, width))]
            numbers = "{:.0%} | {:.1f} | {:.2f}".format(*judge(drawn))
            print(f"| {height} x {width} | {name} | {numbers} |", flush=True)
            rows.append(np.concatenate(drawn[:8], axis=1))
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(rows)).save(arguments.out / f"{height}x{width}.png")


def settings_of(technique: str, root: float, is_sequence: bool) -> dict[str, Any]:
    """Those of a technique, at a size of which `root` is the root of the ratio of the numbers of pixels.

    Positions in a sequence are as much longer as there are more pixels.
    """
    ratios = {"rope_factor": root**2 if is_sequence else root, "time_shift": root}
    settings = NEUTRAL | TECHNIQUES[technique]
    return {name: ratios[name] if value == ROOT else value for name, value in settings.items()}


class Judge:
    """Compares drawn pictures with true ones."""

    def __init__(self, samples: TrueSamples, count: int):
        trained_on = np.flatnonzero(~samples.is_held_out)
        self._chosen = trained_on[np.linspace(0, len(trained_on) - 1, count).astype(int)]
        self.prompts = [samples.prompts[index] for index in self._chosen]
        self._styles = np.array([prompt.rpartition(",")[2] for prompt in samples.prompts])
        self._network = feature_network()
        self._true = [sample[0] for sample in samples.true]
        self._features = picture_features(self._network, self._true)

    def __call__(self, drawn: list[np.ndarray]) -> tuple[float, float, float]:
        """The three numbers of pictures uint8 [h w 3] of the prompts."""
        views = [squares(picture) for picture in drawn]
        found = picture_features(self._network, [view for several in views for view in several])
        apart = np.split(cdist(found, self._features), np.cumsum([len(several) for several in views])[:-1])
        distances = np.stack([rows.min(axis=0) for rows in apart])
        distances[self._styles[self._chosen][:, None] != self._styles] = np.inf
        middles = np.cumsum([0, *map(len, views)])[:-1] + [len(several) // 2 for several in views]
        frechet = frechet_distance(self._features[self._chosen], found[middles])
        ratio = np.mean([*map(things, drawn)]) / np.mean([things(self._true[index]) for index in self._chosen])
        return float((distances.argmin(axis=1) == self._chosen).mean()), frechet, float(ratio)


def squares(picture: np.ndarray) -> list[np.ndarray]:
    """Squares along the longer side, which overlap by half; of a square picture itself."""
    side, long = min(picture.shape[:2]), max(picture.shape[:2])
    is_wide = picture.shape[1] == long
    starts = range(0, long - side + 1, max(1, side // 2))
    return [picture[:, start : start + side] if is_wide else picture[start : start + side] for start in starts]


def things(picture: np.ndarray) -> int:
    """Connected areas that are not white and cover at least `LEAST_AREA` of a square."""
    areas = np.bincount(label((picture < WHITE).any(axis=2))[0].ravel())[1:]
    return int((areas >= LEAST_AREA * min(picture.shape[:2]) ** 2).sum())


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
