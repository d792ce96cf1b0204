"""Moving pictures to frames: videos, animated webp and gif.

In: a file, the part of it that counts, and which moments are wanted. Out: the frames shown then, as PIL pictures, each
finished as soon as it is decoded. No other frame is kept.

PIL reads webp, gif and png, which need no other package; PyAV (the extra `media`) reads everything else (`videos.py`).
"""

import bisect
import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageSequence, UnidentifiedImageError

from lumina_jax.modalities.decoding.kinds import check_file, file_kind
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.decoding.memory import DECODING
from lumina_jax.modalities.decoding.pictures import (
    DECODING_BYTES,
    Finish,
    as_decoded,
    check_pixels,
    opened,
    rgb_on_white,
)
from lumina_jax.modalities.decoding.videos import Moments, read_video

ANIMATIONS = (".webp", ".gif", ".png", ".apng")
STILL_SECONDS = 0.1
"""How long a frame is shown whose file does not say."""
KEPT_PIXELS = 2**22
"""An animation of more pixels is decoded twice instead of kept."""
COMPOSING = 3
"""Pictures of its size that an animation keeps while it is decoded: its canvas, and what frames replace."""


def read_frames(clip: Clip, moments: Moments, finish: Finish = as_decoded) -> list[Image.Image]:
    """The frames of a clip at some moments, RGB on white, upright, and finished.

    Raises:
      ValueError: no such file, not a moving picture, broken where it is wanted, or `start` lies after its end.
      ImportError: PyAV is needed and not installed.
    """
    try:
        animation = _opened(clip)
    except UnidentifiedImageError:
        return read_video(clip, moments, finish)
    with animation, DECODING.reserved(COMPOSING * animation.width * animation.height * DECODING_BYTES):
        return _read_animation(animation, clip, moments, finish)


def all_frames(file: Path) -> tuple[list[Image.Image], list[float]]:
    """Every frame of an animated webp, gif or png, and for how many seconds each is shown.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        with opened(file) as animation:
            frames = [(_still(frame), _seconds(frame)) for frame in _decoded(animation)]
    except UnidentifiedImageError as error:
        raise ValueError(f"the clip cannot be read ({error})") from error
    return [picture for picture, _ in frames], [seconds for _, seconds in frames]


def _opened(clip: Clip) -> Image.Image:
    """An animation; UnidentifiedImageError for a video."""
    if isinstance(clip.file, Path):
        check_file(clip.file)
    kind = file_kind(clip.file)
    if kind is not None and kind.medium == "video":
        raise UnidentifiedImageError(f"{kind.name} is no animation")
    return opened(clip.file)


def _read_animation(animation: Image.Image, clip: Clip, moments: Moments, finish: Finish) -> list[Image.Image]:
    """Keeps the frames of a small animation; a large one is decoded twice, since how long all its frames are shown
    says which of them are wanted."""
    kept, ends, most = [], [0.0], KEPT_PIXELS // (animation.width * animation.height)
    for index, frame in enumerate(_decoded(animation)):
        ends.append(ends[-1] + _seconds(frame))
        if index < most:
            kept.append(frame.copy())
    start, duration = clip.span(ends[-1])
    chosen = [min(bisect.bisect_right(ends, start + moment) - 1, len(ends) - 2) for moment in moments(duration)]
    if len(kept) < len(ends) - 1:
        kept.clear()
    frames = kept or itertools.islice(_decoded(animation), max(chosen) + 1)
    finished = {index: finish(_still(frame)) for index, frame in enumerate(frames) if index in chosen}
    return [finished[index] for index in chosen]


def _decoded(animation: Image.Image) -> Iterator[Image.Image]:
    """Each frame in turn: always the same picture, which changes."""
    read = 0
    try:
        for frame in ImageSequence.Iterator(animation):
            check_pixels(*frame.size)
            frame.load()
            read += 1
            yield frame
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all sorts on broken files
        raise ValueError(f"frame {read + 1} cannot be read ({error})") from error


def _still(frame: Image.Image) -> Image.Image:
    """The frame as a picture that does not change."""
    picture = rgb_on_white(frame)
    return picture.copy() if picture is frame else picture


def _seconds(frame: Image.Image) -> float:
    return (frame.info.get("duration") or 1000 * STILL_SECONDS) / 1000
