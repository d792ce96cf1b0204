"""A request, checked before weights are read: what is drawn, and what its files say of it.

In: arguments. Out: a `Prepared`, which draws with any opened model of the run, and describes what was drawn so that it
can be drawn again. What was changed about files of sources is said to whom it may concern.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina_jax.config import Config
from lumina_jax.generation.clips import check_clips
from lumina_jax.generation.gallery import Gallery
from lumina_jax.generation.not_drawn import NotDrawn
from lumina_jax.generation.pipeline import BATCH, Pipeline, Sample
from lumina_jax.generation.request import check_request
from lumina_jax.modalities import Asked, Files, Modality, Shape, modality_of
from lumina_jax.models.precision import matrix_type
from lumina_jax.prompts import read_prompts
from lumina_jax.sample_requests.arguments import Arguments, check_arguments, configuration, given_parts, seeds_of
from lumina_jax.sample_requests.captions import captions_beside, scenes_of, what_has_captions
from lumina_jax.sample_requests.sources import what_is_edited, whose_style


@dataclass(frozen=True)
class Prepared:
    """A request that a model of its configuration can draw."""

    arguments: Arguments
    config: Config
    modality: Modality
    prompts: list[str]
    seeds: list[int] | None
    """Of each sample; None: all have `arguments.seed`."""
    asked: Asked
    shapes: list[Shape]
    parts: dict[str, Any]
    """What else `Pipeline.drawn` is told: sources, regions, scenes, a style."""
    files: Files

    @property
    def seed(self) -> int:
        return self.arguments.seed or 0

    @property
    def batch(self) -> int:
        """Samples drawn at once."""
        asked = self.arguments.batch
        return asked if self.seeds and asked else min(asked or BATCH, len(self.prompts))

    @property
    def captions(self) -> list[str]:
        """All that the text encoder reads."""
        return [*self.prompts, *captions_beside(self.arguments, self.parts)]

    def drawn(self, pipeline: Pipeline) -> Iterator[tuple[int, Sample | NotDrawn]]:
        """Index and sample of each prompt, as `Pipeline.drawn` draws them."""
        return pipeline.drawn(
            self.prompts,
            self.arguments.sample,
            seed=self.seed,
            seeds=self.seeds,
            shape=self.shapes,
            batch=self.batch,
            modality=self.arguments.modality,
            **self.parts,
        )

    def settings(self, pipeline: Pipeline) -> dict[str, Any]:
        """All that draws the samples again, as JSON."""
        given = given_parts(self.arguments)
        if self.parts["scenes"]:
            given["scene_blend"] = self.parts["scene_blend"]
        return {
            "run": self.config.run.name,
            "step": pipeline.step,
            "modality": self.modality.config.name,
            **({"seed": self.seed} if self.seeds is None else {"seeds": self.seeds}),
            "batch": self.batch,
            **{name: f"{value}" if isinstance(value, Path) else value for name, value in given.items()},
            **dataclasses.asdict(self.arguments.sample),
            "weights": matrix_type(pipeline.parameters),
            **self.files.about(self.asked, self.shapes[0]),
        }

    def gallery(self, folder: Path, pipeline: Pipeline) -> Gallery:
        """The files of the samples, in a folder that `writable` has checked."""
        of_each = None if self.seeds is None else [{"seeds": [one]} for one in self.seeds]
        return Gallery(folder, self.prompts, self.settings(pipeline), self.files, of_each)


def prepared(arguments: Arguments, say: Callable[[str], None]) -> Prepared:
    """A request, after everything that can be refused without a look at the weights.

    Args:
      say: is told what was changed about the files of sources.

    Raises:
      ValueError: there is nothing to draw, or a flag cannot be read or does not fit the model or another flag.
    """
    config = configuration(arguments)
    check_arguments(arguments)
    scenes, seeds = scenes_of(arguments), seeds_of(arguments)
    prompts = [*arguments.prompts, *read_prompts(arguments.prompts_file)]
    if scenes:
        prompts = [scenes[0].caption] * len(seeds or [0])
    if not prompts:
        raise ValueError('there is nothing to draw; name captions after the run, as in: lumina sample RUN "red heart"')
    modality = modality_of(config, arguments.modality)
    asked = Asked(**{field: getattr(arguments, field) for field in Asked._fields})
    asked = (asked._replace(video_frames=sum(scene.frames for scene in scenes)) if scenes else asked).checked()
    shapes = modality.asked_shapes(asked, prompts, config.text)
    seed: dict[str, Any] = {"modality": arguments.modality, "seed": arguments.seed or 0, "seeds": seeds}
    check_request(config, arguments.sample, prompts, shapes, modality.patch_extent, **seed)
    parts = _parts(arguments, config, modality, shapes, say)
    check_clips(arguments.sample, shapes, has_style="style" in parts)
    files = modality.files(arguments.frame_rate)
    return Prepared(arguments, config, modality, prompts, seeds, asked, shapes, parts, files)


def _parts(
    arguments: Arguments, config: Config, modality: Modality, shapes: Sequence[Shape], say: Callable[[str], None]
) -> dict[str, Any]:
    """What is edited, whose style it has, and captions besides the prompts."""
    parts = what_is_edited(arguments, modality, shapes, say) | whose_style(arguments, modality, shapes, say)
    return parts | what_has_captions(arguments, config, modality, shapes)
