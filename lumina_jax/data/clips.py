"""Moving pictures to frames: videos, animated webp and gif.

In: a file, the part of it that counts, and which moments are wanted. Out: the frames shown then, as PIL pictures. Only
what lies between the first and the last of them is decoded, so that an hour of video costs no more than a clip of it.

PIL reads webp, gif and png, which need no other package; PyAV (the extra `media`) reads everything else.
"""

import bisect
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from lumina_jax.data.example import Clip
from lumina_jax.data.pictures import check_pixels, rgb_on_white

ANIMATIONS = (".webp", ".gif", ".png", ".apng")
Moments = Callable[[float], Sequence[float]]
"""Seconds from the start of a clip at which frames are wanted, of a clip of so many seconds; in order."""
STILL_SECONDS = 0.1
"""How long a frame is shown whose file does not say."""


def read_frames(clip: Clip, moments: Moments) -> list[Image.Image]:
    """The frames of a clip at some moments, RGB on white, upright.

    Raises:
      ValueError: no such file, not a moving picture, broken where it is wanted, or `start` lies after its end.
      RuntimeError: PyAV is needed and not installed.
    """
    if isinstance(clip.file, Path) and not clip.file.is_file():
        raise ValueError(f"there is no file {clip.file}")
    try:
        animation = Image.open(_source(clip))
    except UnidentifiedImageError:
        return _read_video(clip, moments)
    except OSError as error:
        raise ValueError(f"the clip cannot be read ({error})") from error
    with animation:
        return _read_animation(animation, clip, moments)


def all_frames(file: Path) -> tuple[list[Image.Image], list[float]]:
    """Every frame of an animated webp, gif or png, and for how many seconds each is shown.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        with Image.open(file) as animation:
            return _frames_of(animation)
    except OSError as error:
        raise ValueError(f"the clip cannot be read ({error})") from error


def _read_animation(animation: Image.Image, clip: Clip, moments: Moments) -> list[Image.Image]:
    frames, seconds = _frames_of(animation)
    ends = list(itertools.accumulate(seconds))
    start, duration = window(clip, ends[-1])
    places = (bisect.bisect_right(ends, start + moment) for moment in moments(duration))
    return [frames[min(place, len(frames) - 1)] for place in places]


def _frames_of(animation: Image.Image) -> tuple[list[Image.Image], list[float]]:
    check_pixels(*animation.size)
    frames, seconds = [], []
    try:
        for frame in ImageSequence.Iterator(animation):
            frames.append(rgb_on_white(frame))
            seconds.append((frame.info.get("duration") or 1000 * STILL_SECONDS) / 1000)
    except Exception as error:  # decoders raise all sorts on broken files
        raise ValueError(f"frame {len(frames) + 1} cannot be read ({error})") from error
    return frames, seconds


def _source(clip: Clip) -> Path | io.BytesIO:
    return clip.file if isinstance(clip.file, Path) else io.BytesIO(clip.file)


def _read_video(clip: Clip, moments: Moments) -> list[Image.Image]:
    av = _av()
    try:
        with av.open(_source(clip)) as container:
            if not container.streams.video:
                raise ValueError("the file holds no video")
            stream = container.streams.video[0]
            check_pixels(stream.width, stream.height)
            stream.thread_type = "AUTO"
            first = float((stream.start_time or 0) * stream.time_base)
            start, duration = window(clip, _seconds(container, stream))
            wanted = [first + start + moment for moment in moments(duration)]
            container.seek(int(wanted[0] / stream.time_base), stream=stream)
            return _shown_at(wanted, container.decode(stream))
    except av.error.FFmpegError as error:
        raise ValueError(f"the video cannot be read ({error.strerror})") from error


def _shown_at(wanted: Sequence[float], frames: Any) -> list[Image.Image]:
    """For each moment the last frame that begins no later than it; `frames` are PyAV's, in order."""
    found: list[Image.Image] = []
    shown = None
    for frame in itertools.chain(frames, [None]):
        while len(found) < len(wanted) and (frame is None or frame.time > wanted[len(found)]):
            current = shown or frame  # a moment before the first frame shows that
            if current is None:
                raise ValueError("the video has no frame that can be decoded")
            if current.is_corrupt:
                raise ValueError(f"the frame at {current.time:.2f} s is broken")
            found.append(_upright(current))
        if len(found) == len(wanted):
            break
        shown = frame
    return found


def _upright(frame: Any) -> Image.Image:
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _seconds(container: Any, stream: Any) -> float:
    """How long a video is."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / 1e6
    raise ValueError("the video does not say how long it is; rewrite it, as with `ffmpeg -i IN -c copy OUT`")


def window(clip: Clip, whole: float) -> tuple[float, float]:
    """Start and duration in seconds of the part of a file of `whole` seconds that counts.

    Raises:
      ValueError: nothing is left of it.
    """
    end = whole if clip.end is None else min(clip.end, whole)
    if not 0 <= clip.start < end:
        raise ValueError(f"a clip must start before it ends, but start={clip.start} and it ends at {end:.2f} s")
    return clip.start, end - clip.start


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise RuntimeError("reading videos needs PyAV: pip install 'lumina_jax[media]'") from None
    return av
