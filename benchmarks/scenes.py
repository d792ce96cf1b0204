"""How smooth seams of scenes and loops are: python benchmarks/scenes.py RUN

For a run of clips (docs/scenes.md). Draws a clip of two scenes for each caption and the next one, with each blend, and
prints for each blend the largest difference of neighbouring frames at the seam over the largest within the scenes, and
how many scenes are nearer to the true clip of their caption than to that of any other, by the mean distance of a frame
to the nearest one of the clip. Then it draws each caption alone, with `sample.loop` and without, and prints the
difference of the last frame and the first over the largest within. Differences are root mean squares of pixels.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config.sample import SolverName
from lumina_jax.generation.scenes import Scene
from lumina_jax.modalities import Shape
from lumina_jax.trained import open_run


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    captions: int = 8
    """Captions, the first of the data; as many clips of two scenes are drawn for each blend."""
    blends: tuple[int, ...] = (0, 2, 4)
    """Frames across the seam, as --scene-blend."""
    whole: bool = False
    """Draw clips at once instead of in windows of the length of training."""
    loops: bool = True
    """Draw clips of one caption, too."""
    solver: SolverName = "midpoint"
    steps: int = 20
    out: Path | None = None
    """Folder for a sheet of each blend and of loops: a row of frames for each clip."""


def main(arguments: Arguments) -> None:
    pipeline = open_run(arguments.run)
    samples = true_samples(pipeline.config, arguments.captions)
    trained, captions = pipeline.modality().trained_shape, samples.prompts
    settings = dataclasses.replace(pipeline.config.sample, solver=arguments.solver, steps=arguments.steps)
    long = dataclasses.replace(settings, window_frames=None if arguments.whole else trained.frames)
    shape = Shape(trained.height, trained.width, frames=2 * trained.frames)
    for blend in arguments.blends:
        clips, found = [], 0
        for index in range(len(captions)):
            pair = [index, (index + 1) % len(captions)]
            scenes = [Scene(captions[one], trained.frames) for one in pair]
            clip = pipeline([captions[index]], long, seed=index, shape=shape, scenes=scenes, scene_blend=blend)[0]
            found += sum(nearest_clip(part, samples.true) == one for part, one in zip(np.split(clip, 2), pair))
            clips.append(clip)
        ratios = [seam(clip, blend) for clip in clips]
        print(f"blend {blend}: seams {words(ratios)}; {found} of {2 * len(clips)} scenes nearest", flush=True)
        save(arguments.out, f"blend-{blend}", clips)
    for loop in (False, True) if arguments.loops else ():
        clips = pipeline(captions, dataclasses.replace(settings, loop=loop), seed=0, batch=1)
        ratios = [difference(clip[-1:], clip[:1])[0] / difference(clip[1:], clip[:-1]).max() for clip in clips]
        found = sum(nearest_clip(clip, samples.true) == index for index, clip in enumerate(clips))
        print(f"loop {loop}: last to first {words(ratios)}; {found} of {len(clips)} nearest", flush=True)
        save(arguments.out, "loops" if loop else "no-loops", clips)


def words(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}, mean {np.mean(ratios):.2f}"


def seam(clip: UInt8[np.ndarray, "f h w 3"], blend: int) -> float:
    """The largest difference of neighbouring frames at the middle of a clip, over the largest elsewhere.

    With a blend, all neighbours of which it changes the shares are at the seam.
    """
    differences, middle = difference(clip[1:], clip[:-1]), len(clip) // 2
    is_at_seam = np.abs(np.arange(1, len(clip)) - middle) <= (blend + 1) // 2
    return float(differences[is_at_seam].max() / differences[~is_at_seam].max())


def difference(frames: UInt8[np.ndarray, "f h w 3"], others: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, " f"]:
    """Root mean squares over pixels."""
    return np.asarray(np.sqrt(((frames.astype(float) - others) ** 2).mean(axis=(1, 2, 3))))


def nearest_clip(frames: UInt8[np.ndarray, "f h w 3"], clips: list[np.ndarray]) -> int:
    """The index of the clip to whose frames these are nearest."""
    return int(np.argmin([np.mean([difference(clip, frame[None]).min() for frame in frames]) for clip in clips]))


def save(folder: Path | None, name: str, clips: list[np.ndarray]) -> None:
    """A picture with a row of frames for each clip."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [np.concatenate(list(clip), axis=1) for clip in clips]
        Image.fromarray(np.concatenate(rows)).save(folder / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
