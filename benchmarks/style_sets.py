"""Whether sets drawn with --style-of share a style and still follow their prompts: python benchmarks/style_sets.py RUN

For a run of `make demo`. Each set has a reference of one style, and samples of other emoji whose captions name the
other style. Prints, for independent samples and for those that attend to the reference: the mean cosine of the features
of two members of a set, and of a sample and the reference; the share of samples whose nearest emoji by pixels has their
name; and how much nearer samples are to the emoji of their name in the style of the reference than to that in the
other, (other - this) / (other + this) by root mean squared differences. Features, less their means over all emoji: the
Gram matrices of the first layers of EfficientNet-lite0 (Gatys et al., arXiv 1508.06576), and its means over pictures.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config.sample import SolverName
from lumina_jax.evaluation.features import feature_network
from lumina_jax.evaluation.retrieval import nearest
from lumina_jax.generation.style import StyleOf
from lumina_jax.trained import open_run

STYLES = ("fluent", "noto")
BLOCKS = 5
"""Of the network, whose outputs have 16 to 40 channels."""


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    names: int = 15
    """Samples of a set besides the reference."""
    references: tuple[str, ...] = ("red heart", "pizza")
    strengths: tuple[float, ...] = (0.5, 1.0)
    seeds: int = 1
    solver: SolverName = "euler"
    steps: int = 20


def main(arguments: Arguments) -> None:
    pipeline = open_run(arguments.run)
    settings = dataclasses.replace(pipeline.config.sample, solver=arguments.solver, steps=arguments.steps)
    true = true_samples(pipeline.config, 10_000)
    pictures = np.stack([sample[0] for sample in true.true])
    indices = {prompt: index for index, prompt in enumerate(true.prompts)}
    names = list(dict.fromkeys(prompt.rsplit(", ", 1)[0] for prompt in true.prompts))
    features, numbers = Features(pictures), dict[str, list[list[float]]]()
    for reference, (style, other), seed in itertools.product(
        arguments.references, (STYLES, STYLES[::-1]), range(arguments.seeds)
    ):
        chosen = [name for name in names if name != reference][: arguments.names]
        prompts = [f"{reference}, {style} style", *(f"{name}, {other} style" for name in chosen)]
        wanted = np.stack(
            [[pictures[indices[f"{name}, {of} style"]] for name in chosen] for of in (style, other)]
        ).astype(float)
        for strength in (None, *arguments.strengths):
            options: dict[str, Any] = {} if strength is None else {"style": StyleOf(0, strength=strength)}
            drawn = np.stack(pipeline(prompts, settings, seed=seed, batch=len(prompts), **options))[:, 0]
            found = nearest(drawn[1:], pictures)
            this, far = np.sqrt(((drawn[1:] - wanted) ** 2).mean(axis=(2, 3, 4)))
            row = [number for cosines in features(drawn) for number in similarity(cosines)]
            row += [
                float(np.mean([true.prompts[index].startswith(f"{name}, ") for index, name in zip(found, chosen)])),
                float(((far - this) / (far + this)).mean()),
            ]
            key = "independent" if strength is None else f"strength {strength:g}"
            numbers.setdefault(key, []).append(row)
            print(f"{reference}, {style}, {seed}, {key}", *(f"{number:.3f}" for number in row), flush=True)
    print(f"{'':14}Gram: set, reference   means: set, reference    name   style")
    for key, rows in numbers.items():
        print(
            f"{key:14}{{:10.3f}} {{:10.3f}} {{:12.3f}} {{:10.3f}} {{:7.1%}} {{:+7.3f}}".format(*np.mean(rows, axis=0))
        )


def similarity(features: np.ndarray) -> tuple[float, float]:
    """The mean cosine of two members of a set, and of the first one and another."""
    cosines = features @ features.T
    return float(cosines[np.triu_indices(len(cosines), 1)].mean()), float(cosines[0, 1:].mean())


class Features:
    """Features of pictures, less the means over some, of length 1: Gram matrices, and means over the picture."""

    def __init__(self, pictures: np.ndarray):
        self._network = feature_network()
        self._means = [found.mean(axis=0) for found in self._raw(pictures)]

    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        found = [values - mean for values, mean in zip(self._raw(pictures), self._means)]
        return [values / np.linalg.norm(values, axis=1, keepdims=True) for values in found]

    def _raw(self, pictures: np.ndarray) -> list[np.ndarray]:
        prepared = [self._network.prepare(Image.fromarray(picture)) for picture in pictures]
        found = [_features(self._network.model, jnp.asarray(one)[None].astype(jnp.float32)) for one in prepared]
        return [np.concatenate(values) for values in zip(*found)]


@jax.jit
def _features(model: Any, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Gram matrix of the channels after each of the first blocks, each of length 1, and the features at the end."""
    x, grams = model.stem((pictures - 127) / 128), []
    for block in model.blocks[:BLOCKS]:
        x = block(x)
        gram = jnp.einsum("bhwi,bhwj->bij", x, x).reshape(len(x), -1)
        grams.append(gram / jnp.linalg.norm(gram, axis=1, keepdims=True))
    return jnp.concatenate(grams, axis=1), model(pictures)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
