"""Videos to frames, by PyAV (the extra `media`).

In: a file, the part of it that counts, and which moments are wanted. Out: for each moment the last frame that begins no
later, however the file was cut, copied or timed. Only what lies between the first and the last moment is decoded, so
that an hour of video costs no more than a clip of it; where seeking turns out to be unreliable, as it is in transport
streams, decoding begins earlier, and at last at the start of the file.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.modalities.decoding.containers import load_av, open_container
from lumina_jax.modalities.decoding.kinds import mistaken
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.decoding.memory import DECODING
from lumina_jax.modalities.decoding.pictures import Finish, check_pixels, rgb_on_white

Moments = Callable[[float], Sequence[float]]
"""From the seconds of a clip to the times in it, in order, at which frames are wanted."""
STEPS_BACK = (0, 2, 10, 60)
"""Seconds before the first moment at which decoding begins, in the order in which they are tried."""
DECODING_BYTES = 30
"""Memory that a pixel takes while frames are decoded, of which several are under way at once."""
ROUNDING = 1e-6
LATE = 0.5
"""Seconds on the clock of a file from which its first frame is late."""
SLACK = 0.05
"""Seconds by which a file may end before it says it does, besides half a frame."""
USUAL_RATE = 25.0
"""Frames a second where a file says nothing about time."""
STRETCHED = (0.1, 10.0)
"""Between these a pixel's width may be that many times its height."""
TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""By the matrix of a file: x of the picture shown is a x + c y, and y is b x + d y, of (a, b, c, d)."""


class Timeline(NamedTuple):
    """When a video begins on the clock of its file, and for how many seconds it goes on, as the file says."""

    first: float
    seconds: float


class Shown(NamedTuple):
    """A decoded frame, and from when to when it is shown."""

    frame: Any
    time: float
    end: float


class UnreliableError(Exception):
    """Seeking led to frames that cannot be trusted."""


def read_video(clip: Clip, moments: Moments, finish: Finish) -> list[Image.Image]:
    """The frames of a video at some moments, RGB on white, upright, and finished.

    Raises:
      ValueError: not a video, broken or missing where it is wanted, or `start` lies after its end.
      ImportError: PyAV is not installed.
    """
    with _opened(clip) as video:
        timeline = _timeline(video)
        start, duration = clip.span(timeline.seconds)
        wanted = [timeline.first + start + moment + ROUNDING for moment in moments(duration)]
        begins = [begin for back in STEPS_BACK if (begin := wanted[0] - back) > timeline.first]
        attempts: list[float | None] = [*begins, None]
        if not video.is_spent:
            with contextlib.suppress(UnreliableError):
                return _shown_at(wanted, video, attempts.pop(0), timeline, finish)
    for attempt in attempts:
        with contextlib.suppress(UnreliableError), _opened(clip) as video:
            return _shown_at(wanted, video, attempt, timeline, finish)
    raise ValueError("the video has no frame that can be decoded")


class Video:
    """The moving pictures of an open file.

    Attributes:
      is_timed: whether its frames bear times, and not only guesses, as those of a bare stream and of an AVI file with
        reordered frames do.
      reach: seconds on the file's clock up to which anything, frames or sound, was found.
      is_spent: whether it was read to its end.
    """

    def __init__(self, container: Any) -> None:
        from av.stream import Disposition

        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            raise ValueError('the file holds no video that PyAV knows; name a sound as {"audio": file}')
        self._container, self.stream, self.reach, self.is_spent = container, streams[0], 0.0, False
        if self.stream.codec_context is None:
            raise ValueError("the codec of the video is unknown to PyAV; convert it: `ffmpeg -i IN OUT.mp4`")
        is_guessed = container.format.name == "avi" and self.stream.codec_context.has_b_frames
        self.is_timed = self.stream.start_time is not None and not is_guessed
        check_pixels(self.stream.width, self.stream.height)

    def rate(self) -> float:
        """Frames a second, about."""
        return float(self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE)

    def claimed(self) -> float | None:
        """Seconds that the whole file takes, as it says; None: it doesn't."""
        return self._container.duration / 1e6 if self._container.duration and self._container.duration > 0 else None

    def frames(self, first: float) -> Iterator[Shown]:
        """All frames from the start of the file; where they bear no times, these follow from their numbers."""
        for number, frame in enumerate(self._decoded()):
            is_timed = self.is_timed and frame.time is not None
            yield self._shown(frame, frame.time if is_timed else first + number / self.rate())

    def frames_from(self, begin: float) -> Iterator[Shown]:
        """The frames from the last key frame before `begin` on.

        Raises:
          UnreliableError: what comes is not that.
        """
        from av.error import FFmpegError

        if not self.is_timed:
            raise UnreliableError
        try:
            self._container.seek(int(begin / self.stream.time_base), stream=self.stream)
            for number, frame in enumerate(self._decoded()):
                if frame.time is None or frame.is_corrupt or (number == 0 and not _begins(frame, begin)):
                    raise UnreliableError
                yield self._shown(frame, frame.time)
        except FFmpegError:
            raise UnreliableError from None

    def end(self, begin: float | None) -> float:
        """When the last frame ends, found by reading all that follows `begin` (None: the start) without decoding it."""
        self.is_spent = True
        if begin is not None:
            self._container.seek(int(begin * 1e6))
        ends, packets = [], 0
        for packet in self._container.demux(self.stream):
            packets += packet.size > 0
            if packet.pts is not None:
                ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return max(ends, default=packets / self.rate())

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux():
            if packet.stream.index == self.stream.index:
                yield from packet.decode()
            elif packet.pts is not None:
                self.reach = max(self.reach, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def _shown(self, frame: Any, time: float) -> Shown:
        is_timed = frame.duration and frame.time_base
        end = time + (float(frame.duration * frame.time_base) if is_timed else 1 / self.rate())
        self.reach = max(self.reach, end)
        return Shown(frame, time, end)


@contextlib.contextmanager
def _opened(clip: Clip) -> Iterator[Video]:
    """The video of a file, while memory for its frames is reserved."""
    av = load_av()
    try:
        with open_container(clip.file if isinstance(clip.file, Path) else io.BytesIO(clip.file)) as container:
            video = Video(container)
            video.stream.thread_type = "AUTO"
            with DECODING.reserved(video.stream.width * video.stream.height * DECODING_BYTES):
                yield video
    except av.error.FFmpegError as error:
        reason = mistaken(clip.file, "video") or error.strerror
        raise ValueError(f"the video cannot be read ({reason})") from error


def _timeline(video: Video) -> Timeline:
    stream, claimed = video.stream, video.claimed()
    first = float(stream.start_time * stream.time_base) if stream.start_time and video.is_timed else 0.0
    if stream.duration:
        return Timeline(first, float(stream.duration * stream.time_base))
    if claimed is not None and first < LATE:  # on a clock that counts from zero
        return Timeline(first, claimed - first)
    end = video.end(claimed)
    if claimed is None:
        return Timeline(first, end - first)
    return Timeline(first, claimed - first if end <= claimed + LATE else claimed)


def _begins(frame: Any, begin: float) -> bool:
    """Whether decoding may begin with a frame, so that the one that is shown at `begin` will be right."""
    return bool(frame.key_frame) and frame.time <= begin


def _shown_at(
    wanted: Sequence[float], video: Video, begin: float | None, timeline: Timeline, finish: Finish
) -> list[Image.Image]:
    """For each moment the last frame that begins no later; before the first frame, that.

    Args:
      begin: where decoding begins; None: at the start of the file.
    """
    found: list[Image.Image] = []
    shown = broken = None
    for following in video.frames(timeline.first) if begin is None else video.frames_from(begin):
        while shown is not None and len(found) < len(wanted) and following.time > wanted[len(found)]:
            found.append(_finished(shown, broken, video, finish))
        if len(found) == len(wanted):
            return found
        shown = following
        broken = shown.time if shown.frame.is_corrupt else None if shown.frame.key_frame else broken
    if shown is None:
        raise UnreliableError
    is_cut = timeline.first + timeline.seconds - video.reach > SLACK + (shown.end - shown.time) / 2
    for moment in wanted[len(found) :]:
        if is_cut and moment > shown.end:
            raise ValueError(
                f"the video breaks off after {shown.end - timeline.first:.2f} s, but says that it has "
                f"{timeline.seconds:.2f} s; copy it again, or give an end before that"
            )
        found.append(_finished(shown, broken, video, finish))
    return found


def _finished(shown: Shown, broken: float | None, video: Video, finish: Finish) -> Image.Image:
    if broken is not None:
        raise ValueError(f"the frame at {broken:.2f} s is broken")
    return finish(_upright(shown.frame, video.stream))


def _upright(frame: Any, stream: Any) -> Image.Image:
    """A frame with square pixels, turned as the camera was held."""
    check_pixels(frame.width, frame.height)
    if any(component.is_alpha for component in frame.format.components):
        picture = rgb_on_white(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        picture = frame.to_image()
    aspect = float(stream.sample_aspect_ratio or 1)
    if aspect != 1 and STRETCHED[0] <= aspect <= STRETCHED[1]:
        width = max(1, round(frame.width * aspect))
        check_pixels(width, frame.height)
        picture = picture.resize((width, frame.height), Image.Resampling.BICUBIC)
    turn = _turn(frame)
    return picture if turn is None else picture.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    """What makes a frame upright that was filmed with the camera turned, or in a mirror."""
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    if found is None:
        return None
    matrix = np.sign(np.round(np.frombuffer(found, np.int32)[[0, 1, 3, 4]] / 2**16)).astype(int)
    return TURNS.get(tuple(matrix.tolist()))
