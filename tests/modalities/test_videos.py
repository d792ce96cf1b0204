"""Videos: the frame that is shown at a moment, in every container, however it is timed, cut or held."""

import bisect
import random

import av
import numpy as np
import pytest
from PIL import Image

from lumina_jax.modalities.decoding import videos
from lumina_jax.modalities.decoding.clips import read_frames
from lumina_jax.modalities.decoding.media import Clip
from tests.modalities.films import RATE, WIDTH, number_of, numbered_frame, shown_times, write_film

FAST = {"preset": "ultrafast", "crf": "18", "bf": "3"}
VP8 = {"b": "2M", "cpu-used": "8", "deadline": "realtime"}
UNEVEN = (np.cumsum(np.random.default_rng(1).integers(10, 90, 50)) / 1000).tolist()
LATE = [100 + number / RATE for number in range(50)]
EARLY = [number / RATE - 0.2 for number in range(50)]
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
FILMS = {
    "long-groups.mp4": {"codec": "libx264", "options": FAST},
    "fragments.mp4": {"codec": "libx264", "options": FAST, "group": 12, "muxing": FRAGMENTS},
    "short-groups.mkv": {"codec": "libx264", "options": FAST, "group": 12},
    "a.webm": {"codec": "libvpx", "options": VP8, "group": 12},
    "without-length.webm": {"codec": "libvpx", "options": VP8, "group": 12, "muxing": {"live": "1"}},
    "a.ts": {"codec": "libx264", "options": FAST, "group": 12},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"b": "4M"}, "group": 12, "between": 2},
    "program.mpg": {"codec": "mpeg2video", "options": {"b": "4M"}, "group": 12, "between": 2},
    "stream.m2v": {"codec": "mpeg2video", "options": {"b": "4M"}, "group": 12, "format": "mpeg2video"},
    "reordered.avi": {"codec": "libx264", "options": FAST, "group": 12},
    "plain.avi": {"codec": "mpeg4", "options": {"b": "4M"}, "group": 12},
    "a.flv": {"codec": "libx264", "options": FAST, "group": 12},
    "stream.h264": {"codec": "libx264", "options": FAST, "group": 12, "format": "h264"},
    "uneven.mp4": {"codec": "libx264", "options": FAST, "group": 12, "times": UNEVEN},
    "uneven.mkv": {"codec": "libx264", "options": FAST, "group": 12, "times": UNEVEN},
    "uneven.ts": {"codec": "libx264", "options": FAST, "group": 12, "times": UNEVEN},
    "late.mkv": {"codec": "libx264", "options": FAST, "group": 12, "times": LATE},
    "late.webm": {"codec": "libvpx", "options": VP8, "group": 12, "times": LATE},
    "late.ts": {"codec": "libx264", "options": FAST, "group": 12, "times": LATE},
    "late.mp4": {"codec": "libx264", "options": FAST, "group": 12, "times": LATE},
    "trimmed.mov": {
        "codec": "libx264",
        "options": FAST,
        "group": 12,
        "times": EARLY,
        "muxing": {"avoid_negative_ts": "disabled"},
    },
}


@pytest.mark.parametrize("name", FILMS)
def test_every_moment_shows_the_last_frame_that_begins_no_later(tmp_path, name):
    file = write_film(tmp_path / name, **FILMS[name])
    times, numbers = shown_times(file)
    draws = random.Random(0)
    for start in [0.0, *(draws.uniform(0, times[-1]) for _ in range(6))]:
        moments = []

        def choose(seconds, start=start, moments=moments):
            assert times[-1] <= start + seconds <= times[-1] + 0.15
            moments += sorted(draws.uniform(0, seconds) for _ in range(3))
            return moments

        found = [number_of(frame) for frame in read_frames(Clip(file, start), choose)]
        assert found == [numbers[bisect.bisect_right(times, start + moment) - 1] for moment in moments]


def test_a_frame_that_begins_exactly_then_is_the_one_shown(tmp_path):
    file = write_film(tmp_path / "a.ts", "libx264", options=FAST, group=12)  # begins at 0.08 s of its clock
    found = read_frames(Clip(file), lambda _: [index / RATE for index in range(50)])
    assert [number_of(frame) for frame in found] == list(range(50))


@pytest.mark.parametrize(
    ("name", "film"),
    [
        ("a.mp4", {"codec": "libx264", "options": FAST, "group": 12, "muxing": {"movflags": "faststart"}}),
        ("a.mkv", {"codec": "libx264", "options": FAST, "group": 12}),
        ("a.webm", {"codec": "libvpx", "options": VP8, "group": 12}),
        ("late.mkv", {"codec": "libx264", "options": FAST, "group": 12, "times": LATE}),
    ],
)
def test_a_cut_video_is_refused_where_it_breaks_off_and_read_before(tmp_path, name, film):
    content = write_film(tmp_path / name, **film).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(content[: len(content) * 6 // 10])
    for start in (0.0, 1.0, 1.6):
        with pytest.raises(ValueError, match=r"breaks off after [01]\.\d\d s, but says that it has 2\.00 s"):
            read_frames(Clip(cut, start), lambda seconds: [seconds / 2, seconds - 0.01])
    found = read_frames(Clip(cut, 0.2, 0.8), lambda seconds: [(index + 0.5) * seconds / 5 for index in range(5)])
    assert [number_of(frame) for frame in found] == [6, 9, 12, 15, 18]


def test_a_cut_transport_stream_is_as_long_as_what_is_there(tmp_path):
    content = write_film(tmp_path / "a.ts", "libx264", options=FAST, group=12).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(content[: len(content) // 2])
    found = read_frames(Clip(cut), lambda seconds: [(index + 0.5) * seconds / 8 for index in range(8)])
    numbers = [number_of(frame) for frame in found]
    assert len(set(numbers)) == 8
    assert numbers[-1] < 30


def test_the_last_frame_stays_while_the_sound_goes_on(tmp_path):
    file = write_film(tmp_path / "a.mkv", "libx264", options=FAST, frames=20, sound=2.0)
    found = read_frames(Clip(file), lambda _: [0.5, 0.79, 1.5])
    assert [number_of(frame) for frame in found] == [12, 19, 19]


def test_where_seeking_fails_the_file_is_decoded_from_its_start(tmp_path, monkeypatch):
    file = write_film(tmp_path / "a.mp4", "libx264", options=FAST, group=12)
    tried = []

    def failing(self, begin):
        tried.append(begin)
        raise videos.UnreliableError
        yield

    monkeypatch.setattr(videos.Video, "frames_from", failing)
    [frame] = read_frames(Clip(file, 1.0), lambda _: [0.02])
    assert number_of(frame) == 25
    assert len(tried) == 1  # two seconds before lies the start already


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    file = tmp_path / "wide.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "18", "x264-params": "sar=4/3"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(5), format="rgb24")))
        container.mux(stream.encode())
    [frame] = read_frames(Clip(file), lambda _: [0.0])
    assert frame.size == (round(WIDTH * 4 / 3), 64)
    assert number_of(frame) == 5


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_film_is_turned_and_mirrored_as_its_matrix_says(tmp_path, quarters, is_mirrored):
    """Pixel (x, y) of a frame is shown at (a x + c y, b x + d y); the matrix is written as (a, b, _, c, d, _, ...)."""
    content = bytearray(write_film(tmp_path / "plain.mp4", "libx264", options=FAST, frames=2).read_bytes())
    across, down = np.array([-1 if is_mirrored else 1, 0]), np.array([0, 1])
    for _ in range(quarters):  # a quarter clockwise takes right to down, and down to left
        across, down = ((np.array([-y, x])) for x, y in (across, down))
    matrix = np.zeros((3, 3), int)
    matrix[0, :2], matrix[1, :2], matrix[2, 2] = across, down, 2**14
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = (matrix * 2**16).astype(">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(content)
    [plain] = read_frames(Clip(tmp_path / "plain.mp4"), lambda _: [0.0])
    [turned] = read_frames(Clip(tmp_path / "turned.mp4"), lambda _: [0.0])
    pixels = np.asarray(plain)[:, ::-1] if is_mirrored else np.asarray(plain)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(pixels, -quarters))


def test_a_transparent_video_lies_on_white(tmp_path):
    file = tmp_path / "clear.mov"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("qtrle", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "argb"
        pixels = np.zeros((16, 32, 4), np.uint8)
        pixels[:, :16] = (255, 0, 0, 255)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    [frame] = read_frames(Clip(file), lambda _: [0.0])
    assert frame.getpixel((4, 4)) == (255, 0, 0)
    assert frame.getpixel((28, 4)) == (255, 255, 255)


def test_what_holds_no_video_is_named_with_the_reason(tmp_path):
    content = write_film(tmp_path / "a.mp4", "libx264", options=FAST, frames=3).read_bytes()
    (tmp_path / "unknown.mp4").write_bytes(content.replace(b"avc1", b"zzzz"))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(track.encode(silence))
        container.mux(track.encode())
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><title>404</title>")
    (tmp_path / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, reason in {
        "unknown.mp4": "the codec of the video is unknown to PyAV",
        "sound.mp4": "the file holds no video",
        "page.mp4": "a web page, as a failed download leaves it; download it again",
        "pointer.mp4": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    }.items():
        with pytest.raises(ValueError, match=reason):
            read_frames(Clip(tmp_path / name), lambda _: [0.0])


def test_metadata_of_another_encoding_does_no_harm(tmp_path):
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        container.metadata["title"] = "Wave"
        stream = container.add_stream("libx264", rate=RATE, options=FAST)
        stream.width, stream.height, stream.pix_fmt = WIDTH, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(9), format="rgb24")))
        container.mux(stream.encode())
    file.write_bytes(file.read_bytes().replace(b"Wave", b"W\xe4ve"))
    [frame] = read_frames(Clip(file), lambda _: [0.0])
    assert number_of(frame) == 9


def test_an_enormous_picture_as_a_video_is_refused(tmp_path):
    header = b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + b"\0\0\0"
    (tmp_path / "bomb.gif").write_bytes(header + b",\0\0\0\0" + (60_000).to_bytes(2, "little") * 2 + b"\0\2\0;")
    with pytest.raises(ValueError, match="make it smaller"):
        read_frames(Clip(tmp_path / "bomb.gif"), lambda _: [0.0])


def test_frames_of_a_video_are_finished_one_by_one(tmp_path):
    file = write_film(tmp_path / "a.mp4", "libx264", options=FAST, frames=10)
    sizes = []

    def small(picture):
        sizes.append(picture.size)
        return picture.resize((8, 8))

    found = read_frames(Clip(file), lambda _: [0.0, 0.1], small)
    assert [frame.size for frame in found] == [(8, 8)] * 2
    assert sizes == [(WIDTH, 64)] * 2
    assert all(isinstance(frame, Image.Image) for frame in found)
