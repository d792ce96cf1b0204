"""Has a model learned a style from a few pictures, and forgotten none? python benchmarks/new_style.py RUN ADAPTER NEW

In: a model with its data, an adapter, and a prepared folder in the new style, whose first pictures the adapter learned.
Draws other names of the folder with the caption that the adapter learned the style by, and captions that the model was
trained on, with and without the adapter. Prints how often a drawn picture is nearer to its own true one than to 50
others of its style, by features of EfficientNet-lite0: the mean over all ways to choose the others. And how often one
that is drawn in the new style is nearer, by pixels, to its own true one than to those of the same name in old styles.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.special import comb

from lumina_jax.commands.evaluate import TrueSamples, true_samples
from lumina_jax.config import PreparedConfig
from lumina_jax.evaluation.features import feature_network
from lumina_jax.evaluation.picture_report import picture_features
from lumina_jax.evaluation.retrieval import DISTRACTORS
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.trained import open_run, strength_of

WITHOUT_AND_WITH = "{:.1%} without the adapter, {:.1%} with it"


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    adapter: Annotated[str, tyro.conf.Positional]
    """FOLDER or FOLDER:STRENGTH."""
    new: Annotated[Path, tyro.conf.Positional]
    """The prepared folder of the new style."""
    caption: str = "{name}, {style} style"
    """Of the new style, as the adapter learned it; {style} is the word that the folder has for it."""
    trained: int = 40
    """Pictures of it that the adapter was trained on, the first ones."""
    names: int = 150
    """True pictures of the new style, the next ones, among which a drawn one must find its own."""
    drawn: int = 40
    """Captions of them that are drawn, and of each old style, evenly over them."""
    steps: int = 20
    seed: int = 1
    out: Path | None = None
    """Folder for sheets: rows of the pictures drawn without and with the adapter, and the true ones."""


def main(arguments: Arguments) -> None:
    base = open_run(arguments.run)
    adapted = open_run(arguments.run, adapters=[strength_of(arguments.adapter)])
    new = base.config.replace(data={"source": PreparedConfig(path=str(arguments.new))})
    samples = true_samples(new, arguments.trained + arguments.names, split="train")
    sets = {"new style": Pictures(samples.prompts[arguments.trained :], samples.true[arguments.trained :])}
    old = true_samples(base.config, 4 * arguments.names, split="train")
    for style in sorted({style_of(prompt) for prompt in old.prompts}):
        chosen = [index for index, prompt in enumerate(old.prompts) if style_of(prompt) == style]
        sets[style] = Pictures([old.prompts[index] for index in chosen], [old.true[index] for index in chosen])
    for title, true in sets.items():
        own = np.linspace(0, len(true.prompts) - 1, arguments.drawn).astype(int)
        prompts = [true.prompts[index] for index in own]
        if title == "new style":
            words = [prompt.rpartition(", ")[::2] for prompt in prompts]
            prompts = [arguments.caption.format(name=name, style=style.removesuffix(" style")) for name, style in words]
        rows = [drawn_with(pipeline, prompts, arguments) for pipeline in (base, adapted)]
        found = WITHOUT_AND_WITH.format(*(true.found(row, own) for row in rows))
        print(f"{title}: {len(prompts)} of {len(true.prompts)} captions, {found}", flush=True)
        if title == "new style":
            nearer = WITHOUT_AND_WITH.format(*(share_in_style(row, true, own, old) for row in rows))
            print(f"nearer to their own true picture than to those of old styles: {nearer}", flush=True)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            pictures = np.concatenate([np.concatenate(row[:16], axis=1) for row in [*rows, true.pictures(own)]])
            Image.fromarray(pictures).save(arguments.out / f"{title.replace(' ', '_')}.png")


class Pictures:
    """True pictures of one style [1 h w 3], with their captions."""

    def __init__(self, prompts: list[str], true: list[np.ndarray]):
        self.prompts, self._true, self._network = prompts, true, feature_network()
        self._features = picture_features(self._network, self.pictures(np.arange(len(true))))

    def pictures(self, own: np.ndarray) -> list[np.ndarray]:
        return [self._true[index][0] for index in own]

    def found(self, drawn: list[np.ndarray], own: np.ndarray) -> float:
        """The share of drawn pictures that are nearer to their own true one than to `DISTRACTORS` others."""
        distances: Float[np.ndarray, "n m"] = cdist(picture_features(self._network, drawn), self._features)
        nearer = (distances < distances[np.arange(len(own)), own][:, None]).sum(axis=1)
        others = len(self.prompts) - 1
        return float((comb(others - nearer, DISTRACTORS) / comb(others, DISTRACTORS)).mean())


def share_in_style(drawn: list[np.ndarray], true: Pictures, own: np.ndarray, old: TrueSamples) -> float:
    """The share of drawn pictures whose pixels are nearer to their true one than to those of their name in old styles.

    Names that no old style has do not count.
    """
    is_nearer = []
    for picture, index, wanted in zip(drawn, own, true.pictures(own), strict=True):
        name = name_of(true.prompts[index])
        rivals = [other[0] for prompt, other in zip(old.prompts, old.true, strict=True) if name_of(prompt) == name]
        if rivals:
            distances = [np.square(picture.astype(float) - other).mean() for other in [wanted, *rivals]]
            is_nearer.append(int(np.argmin(distances)) == 0)
    return float(np.mean(is_nearer))


def name_of(prompt: str) -> str:
    return prompt.rpartition(", ")[0]


def style_of(prompt: str) -> str:
    return prompt.rpartition(", ")[2]


def drawn_with(pipeline: Pipeline, prompts: list[str], arguments: Arguments) -> list[np.ndarray]:
    settings = dataclasses.replace(pipeline.config.sample, steps=arguments.steps)
    return [one[0] for one in pipeline(prompts, settings, seed=arguments.seed)]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
