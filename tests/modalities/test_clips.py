"""Clips: which frames are taken, from which files, and what is said of those that can't be read."""

import json
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from lumina_jax.config import ClipConfig, DataConfig, ModelConfig
from lumina_jax.data.example import BadSample, Record
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.scenes import scenes, write_scenes
from lumina_jax.modalities import modality_of_source
from lumina_jax.modalities.decoding.clips import read_frames
from lumina_jax.modalities.decoding.frames import evenly, moments, read_pictures
from lumina_jax.modalities.decoding.media import Clip, Views

MODEL = ModelConfig(layers=1, heads=2, width=16, patch_size=4, channels=3)
RATE = 10


def grays(count, size=(48, 32)):
    """Frames of one gray each, ten levels brighter from one to the next."""
    return [Image.new("RGB", size, (10 * index, 10 * index, 10 * index)) for index in range(count)]


def save(path, frames, rate=RATE):
    """A file of so many frames a second."""
    if path.suffix in (".gif", ".webp"):
        options = {"lossless": True} if path.suffix == ".webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // rate, loop=0, **options)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream({".mp4": "libx264", ".webm": "libvpx"}[path.suffix], rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, rate)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def levels(pictures):
    """Which gray each picture has, in steps of ten."""
    return [round(float(np.asarray(picture).mean()) / 10) for picture in pictures]


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4", "webm"])
def test_the_frame_of_a_moment_is_the_one_shown_then(tmp_path, ending):
    file = save(tmp_path / f"clip.{ending}", grays(12))
    found = read_frames(Clip(file), lambda seconds: [0.0, 0.05, 0.55, 0.61, seconds - 0.01])
    assert levels(found) == [0, 0, 5, 6, 11]
    assert {picture.size for picture in found} == {(48, 32)}


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_only_what_lies_between_start_and_end_counts(tmp_path, ending):
    file = save(tmp_path / f"clip.{ending}", grays(12))
    clip = Clip(file, start=0.3, end=0.7)
    assert levels(read_pictures(clip, ClipConfig(frames=4), None)) == [3, 4, 5, 6]


def test_bytes_of_a_file_are_read_like_the_file(tmp_path):
    file = save(tmp_path / "clip.mp4", grays(5))
    assert levels(read_pictures(Clip(file.read_bytes()), ClipConfig(frames=5), None)) == [0, 1, 2, 3, 4]


def test_a_video_of_one_frame_is_one_frame(tmp_path):
    file = save(tmp_path / "clip.mp4", grays(8)[7:])
    found = read_pictures(Clip(file), ClipConfig(frames=8, frame_rate=float(RATE)), None)
    assert levels(found) == [7]


def test_a_clip_turned_in_its_metadata_stands_upright(tmp_path):
    """Telephones write what the sensor saw and how it was held."""
    left_bright = Image.new("RGB", (48, 32))
    left_bright.paste((255, 255, 255), (0, 0, 24, 32))
    plain = save(tmp_path / "plain.mp4", [left_bright] * 3)
    turned = tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = bytearray(turned.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version 0: the display matrix follows 40 bytes of fields
    quarter = np.array([0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000], ">i4").tobytes()
    content[matrix : matrix + 36] = quarter
    turned.write_bytes(content)
    [picture] = read_frames(Clip(turned), lambda _: [0.0])
    assert picture.size == (32, 48)
    top, bottom = np.asarray(picture)[:12].mean(), np.asarray(picture)[-12:].mean()
    assert top > 200
    assert bottom < 50


def test_without_a_rate_frames_are_spread_over_the_whole_clip():
    assert moments(8.0, ClipConfig(frames=4), None) == [1.0, 3.0, 5.0, 7.0]


def test_with_a_rate_frames_keep_their_distance_and_start_anywhere_the_clip_allows():
    data = ClipConfig(frames=4, frame_rate=2.0)
    starts = []
    for seed in range(50):
        chosen = np.array(moments(10.0, data, random.Random(seed)))
        np.testing.assert_allclose(np.diff(chosen), 0.5)
        assert chosen[0] >= 0.25
        assert chosen[-1] <= 10 - 0.25
        starts.append(chosen[0])
    assert min(starts) < 1
    assert max(starts) > 7
    np.testing.assert_allclose(moments(10.0, data, None), [4.25, 4.75, 5.25, 5.75])  # the middle
    np.testing.assert_allclose(moments(1.2, data, None), [0.35, 0.85])  # too short for four


def test_views_are_spread_evenly_around_the_object(tmp_path):
    assert evenly(12, 4) == [0, 3, 6, 9]
    assert evenly(3, 8) == [0, 1, 2]
    for index, picture in enumerate(grays(12)):
        picture.save(tmp_path / f"{index}.png")
    views = Views(tuple(tmp_path / f"{index}.png" for index in range(12)))
    assert levels(read_pictures(views, ClipConfig(frames=6), None)) == [0, 2, 4, 6, 8, 10]
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match="must have one size"):
        read_pictures(views, ClipConfig(frames=6), None)


def test_all_frames_of_a_clip_are_cropped_alike(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8)
    frames = [Image.fromarray(noise)] * 5
    frames[4] = Image.fromarray(255 - noise)  # else the animation is one frame
    data = DataConfig(media=ClipConfig(frames=5, image_size=16, crop="buckets"))
    prepare = Preparation(modality_of_source(data, MODEL), MODEL, 0)
    crops = set()
    for index in range(6):
        record = Record("clip", Clip(save(tmp_path / "clip.webp", frames)), "noise", None)
        latents = prepare((index, record))[1].latents
        assert len(latents) == 5
        np.testing.assert_array_equal(latents[0], latents[1])
        np.testing.assert_allclose(latents[4], -latents[0], atol=0.1)
        crops.add(latents[0].tobytes())
    assert len(crops) > 1  # another part at each visit


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.mp4", None, "there is no file"),
        ("text.mp4", b"no video at all", "cannot be read"),
        ("empty.webm", b"", "cannot be read"),
    ],
)
def test_what_is_no_clip_is_named_with_the_reason(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_frames(Clip(tmp_path / name), lambda _: [0.0])


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4"])
def test_a_clip_that_is_cut_off_is_refused_where_frames_are_missing(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3), np.uint8)
    file = save(tmp_path / f"clip.{ending}", [Image.fromarray(frame) for frame in noise])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot be read|is broken|no frame"):
        read_pictures(Clip(file), ClipConfig(frames=12), None)


def test_a_broken_frame_is_refused_with_its_time_or_the_decoder_s_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3), np.uint8)
    file = save(tmp_path / "clip.mp4", [Image.fromarray(frame) for frame in noise])
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + len(content) // 2
    content[start : start + 2000] = bytes(2000)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken|cannot be read"):
        read_pictures(Clip(file), ClipConfig(frames=12), None)


def test_a_part_that_is_not_there_is_refused(tmp_path):
    file = save(tmp_path / "clip.gif", grays(5))
    for start, end in ((0.6, None), (0.3, 0.2), (-1.0, None)):
        with pytest.raises(ValueError, match="must start before it ends"):
            read_frames(Clip(file, start, end), lambda _: [0.0])


def test_a_folder_may_hold_pictures_clips_and_views(tmp_path):
    save(tmp_path / "clip.gif", grays(4))
    lines = [
        {"video": "clip.gif", "caption": "moving", "start": 0.1},
        {"views": ["a.png", "b.png"], "caption": "a chair"},
        {"image": "a.png", "caption": "still"},
        {"video": "clip.gif", "caption": "x", "start": "soon"},
        {"views": [], "caption": "nothing"},
        {"smell": "a.nose", "caption": "?"},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    clip, views, image, *bad = [FolderSource(tmp_path)[index] for index in range(6)]
    assert clip.media == Clip(tmp_path / "clip.gif", 0.1, None)
    assert views.media == Views((tmp_path / "a.png", tmp_path / "b.png"))
    assert image.media == tmp_path / "a.png"
    assert all(isinstance(record, BadSample) for record in bad)
    assert "'start' must be a number" in bad[0].reason
    assert "'views' must be a list of files" in bad[1].reason
    assert "no 'image' or 'video' or 'audio' or 'views'" in bad[2].reason


def test_scenes_end_where_the_content_changes(tmp_path):
    random_pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), np.uint8)
    frames = [Image.fromarray(random_pixels[index // 20]).resize((96, 64)) for index in range(60)]
    save(tmp_path / "film.mp4", frames, rate=20)
    found = list(scenes(Clip(tmp_path / "film.mp4")))
    np.testing.assert_allclose(found, [(0, 1), (1, 2), (2, 3)], atol=0.06)

    save(tmp_path / "still.gif", grays(3))
    lines = [
        {"video": "film.mp4", "caption": "three scenes", "start": 0.5},
        {"video": "still.gif", "caption": "an animation"},
        {"video": "gone.mp4", "caption": "missing"},
    ]
    captions, out = tmp_path / "captions.jsonl", tmp_path / "scenes.jsonl"
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = write_scenes(captions, out, least=0.8)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["caption"] for line in written] == ["three scenes", "three scenes", "an animation"]
    np.testing.assert_allclose([written[0]["start"], written[1]["start"]], [1, 2], atol=0.06)
    assert (report.videos, report.scenes, report.too_short) == (1, 2, 1)
    assert "there is no file" in report.bad["gone.mp4"]
    with pytest.raises(ValueError, match="must lie beside"):
        write_scenes(captions, tmp_path / "elsewhere" / "scenes.jsonl", least=1.0)
