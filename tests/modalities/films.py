"""Films whose frames show their own number, so that a test can tell which frame it was given."""

from fractions import Fraction

import av
import numpy as np

RATE = 25
WIDTH, HEIGHT, BLOCK = 160, 64, 16


def numbered_frame(number):
    """Eight blocks, white for the ones of a number, on gray; noise above, so that frames differ from one another."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    frame[:12] = np.random.default_rng(number).integers(0, 255, (12, WIDTH, 3))
    for bit in range(8):
        left = BLOCK * (bit + 1)
        frame[16:48, left - 4 : left + 12] = 255 if number >> bit & 1 else 0
    return frame


def number_of(picture):
    """What a frame shows."""
    values = np.asarray(picture.convert("L").resize((WIDTH, HEIGHT)))[22:42]
    means = [values[:, BLOCK * (bit + 1) : BLOCK * (bit + 1) + 8].mean() for bit in range(8)]
    assert all(abs(mean - 128) > 60 for mean in means), means
    return sum(int(mean > 128) << bit for bit, mean in enumerate(means))


def write_film(
    path, codec, *, frames=50, times=None, group=250, between=None, options=None, format=None, muxing=None, sound=0.0
):
    """A film of numbered frames.

    Args:
      times: seconds at which they are shown; None: 25 a second.
      group, between: frames from one key frame to the next, frames that refer to later ones.
      sound: seconds of silence beside it.
    """
    base = Fraction(1, RATE) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", format=format, options=muxing or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        stream.gop_size = group
        if between is not None:
            stream.codec_context.max_b_frames = between
        track = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number if times is None else round(times[number] / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, round(sound * 16000)), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(track.encode(silence))
            container.mux(track.encode())
    return path


def shown_times(path):
    """When the frames of a film are shown, from the first on, and their numbers, by decoding it from start to end."""
    times, numbers = [], []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(container.streams.video[0])):
            has_times = frame.time is not None and container.format.name != "avi"  # there, PyAV guesses
            times.append(frame.time if has_times else index / RATE)
            numbers.append(number_of(frame.to_image()))
    return [time - times[0] for time in times], numbers
