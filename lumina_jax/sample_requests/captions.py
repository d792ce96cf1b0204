"""The flags of `lumina sample` for captions besides the prompts: of regions, of scenes, and with weights.

In: arguments and the shapes of the samples. Out: options of `Pipeline.drawn`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumina_jax.config import Config
    from lumina_jax.generation.scenes import Scene
    from lumina_jax.modalities import Modality, Shape
    from lumina_jax.sample_requests.arguments import Arguments


def what_has_captions(
    arguments: "Arguments", config: "Config", modality: "Modality", shapes: "Sequence[Shape]"
) -> dict[str, Any]:
    """The captions besides the prompts, for `Pipeline.drawn`.

    Raises:
      ValueError: a flag cannot be read, a file of a mask is missing, or the captions do not fit what is drawn.
    """
    from lumina_jax.generation.composition import PictureRegion, check_captions, composition
    from lumina_jax.generation.scenes import frames_of_blend
    from lumina_jax.modalities.decoding.edited import read_white

    if arguments.region_blend and not arguments.region:
        raise ValueError(f"--region-blend {arguments.region_blend} is for the edges of regions; name one with --region")
    also, regions = [], []
    for words in arguments.also:
        weight, caption = split_at_colon("--also", words, "0.5: a sunset")
        try:
            also.append((caption, float(weight)))
        except ValueError:
            raise ValueError(f"--also must begin with a weight, such as 0.5: a sunset, but is {words!r}") from None
    for words in arguments.region:
        area, caption = split_at_colon("--region", words, "0,0,16,32: a cat")
        is_box = all(sign in "0123456789,.+- " for sign in area)
        where = box_of(area) if is_box else read_white(Path(area))
        regions.append(PictureRegion(caption, where, arguments.region_blend))
    found: dict[str, Any] = {"also": also, "regions": regions, "scenes": scenes_of(arguments)}
    check_captions(config, **found)
    if found["scenes"]:
        found["scene_blend"] = frames_of_blend(found["scenes"], arguments.scene_blend)
    for shape in dict.fromkeys(shapes):
        composition(modality, shape, **found)
    return found


def scenes_of(arguments: "Arguments") -> "list[Scene]":
    """The scenes, with the frames that `--frame-rate` makes of their seconds.

    Raises:
      ValueError: one cannot be read, or is shorter than a frame; or the number of frames, or prompts, are given too.
    """
    from lumina_jax.generation.scenes import Scene

    if not arguments.scenes:
        if arguments.scene_blend is not None:
            raise ValueError(
                f"--scene-blend {arguments.scene_blend} is for the seams of scenes; name some with --scenes"
            )
        return []
    if arguments.prompts or arguments.prompts_file is not None:
        raise ValueError("--scenes are the captions of clips; leave out other captions")
    for name in ("video_frames", "views", "seconds"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--scenes say how long a clip is; leave --{name.replace('_', '-')} out")
    scenes = []
    for words in arguments.scenes:
        caption, at, seconds = words.rpartition("@")
        try:
            frames = round(float(seconds) * arguments.frame_rate)
        except (ValueError, OverflowError):
            at, frames = "", 0
        if not at or not caption.strip() or frames < 1:
            raise ValueError(
                "--scenes must be captions with seconds behind an @, of a frame or more, such as "
                f'--scenes "a sunrise @ 2" "a storm @ 1.5", but one is {words!r}'
            )
        scenes.append(Scene(caption.strip(), frames))
    return scenes


def split_at_colon(flag: str, words: str, example: str) -> tuple[str, str]:
    """The text before the first colon, and the caption after it.

    Raises:
      ValueError: there is no colon, or nothing before it.
    """
    before, colon, caption = words.partition(":")
    if not colon or not before.strip():
        raise ValueError(f'{flag} must name a caption after a colon, as in {flag} "{example}", but is {words!r}')
    return before.strip(), caption.strip()


def box_of(words: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, as in "0,0,16,32".

    Raises:
      ValueError: they are not four whole numbers.
    """
    try:
        left, top, right, bottom = map(int, words.split(","))
    except ValueError:
        raise ValueError(
            "--region must begin with the left, top, right and bottom pixel of a box, such as 0,0,16,32, or with the "
            f"file of a mask, but begins with {words!r}"
        ) from None
    return left, top, right, bottom


def captions_beside(arguments: "Arguments", parts: dict[str, Any]) -> list[str]:
    """The negative and the captions of weights, regions and scenes, as far as there are some."""
    captions = [caption for caption, _ in parts["also"]]
    captions += [one.caption for one in (*parts["regions"], *parts["scenes"])]
    return [arguments.sample.negative, *captions] if arguments.sample.negative else captions
