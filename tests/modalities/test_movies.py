"""Clips on disk: what is written can be read again, and sheets show every frame."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lumina_jax.config import ClipConfig
from lumina_jax.evaluation.retrieval import motion, nearest
from lumina_jax.generation.gallery import Gallery
from lumina_jax.modalities.decoding.frames import read_pictures
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.files.movies import FrameFiles, frame_sheet, moving_sheet, save_gif, save_mp4
from lumina_jax.modalities.files.png import read_png_metadata


def flat_colors(frames=5, height=16, width=24):
    """Frames of one color each, which every format keeps."""
    colors = np.random.default_rng(0).integers(40, 200, (frames, 1, 1, 3), np.uint8)
    return np.broadcast_to(colors, (frames, height, width, 3)).copy()


def test_a_gif_has_every_frame_and_their_rate(tmp_path):
    frames = flat_colors()
    save_gif(tmp_path / "clip.gif", frames, rate=4.0)
    with Image.open(tmp_path / "clip.gif") as image:
        read = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert [duration for _, duration in read] == [250] * 5
    for (pixels, _), frame in zip(read, frames):
        assert np.abs(pixels.astype(int) - frame).max() <= 4


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_a_video_shows_its_frames_again(tmp_path, size):
    frames = flat_colors(5, *size)
    save_mp4(tmp_path / "clip.mp4", frames, rate=6.0)
    read = read_pictures(Clip(tmp_path / "clip.mp4"), ClipConfig(frames=5), None)
    assert read[0].size == (size[1] + size[1] % 2, size[0] + size[0] % 2)
    for picture, frame in zip(read, frames, strict=True):
        assert np.abs(np.asarray(picture).astype(int).mean((0, 1)) - frame[0, 0]).max() <= 4


def test_all_frames_stand_side_by_side_in_lines_of_at_most_sixteen():
    assert frame_sheet(flat_colors(1)).shape == (16, 24, 3)
    strip = frame_sheet(flat_colors(3))
    assert strip.shape == (16, 3 * 24 + 2 * 2, 3)
    for index, frame in enumerate(flat_colors(3)):
        np.testing.assert_array_equal(strip[:, 26 * index : 26 * index + 24], frame)
    assert frame_sheet(flat_colors(17)).shape == (2 * 16 + 2, 9 * 26 - 2, 3)


def test_a_shorter_clip_begins_again_on_a_moving_sheet():
    sheet = moving_sheet([flat_colors(2), flat_colors(4)], ["short", "long"])
    assert len(sheet) == 4
    left, right = sheet[:, :, : sheet.shape[2] // 2], sheet[:, :, sheet.shape[2] // 2 :]
    np.testing.assert_array_equal(left[0], left[2])
    assert np.abs(right[0].astype(int) - right[2]).max() > 0


def save(folder, samples, prompts, settings):
    gallery = Gallery(folder, prompts, settings, FrameFiles(8.0))
    for index, sample in enumerate(samples):
        gallery.add(index, sample)
    gallery.sheet()


def test_clips_are_saved_in_every_form_and_pictures_as_png_alone(tmp_path):
    save(tmp_path / "clips", [flat_colors()] * 2, ["red heart", "sun"], {"seed": 3})
    names = {file.name for file in (tmp_path / "clips").iterdir()}
    forms = {f"{name}.{ending}" for name in ("000-red-heart", "001-sun") for ending in ("png", "gif", "mp4")}
    assert names == forms | {"sheet.png", "sheet.gif"}
    about = read_png_metadata(tmp_path / "clips" / "001-sun.png")
    assert about == {"prompt": "sun", "index": 1, "seed": 3}
    save(tmp_path / "pictures", [flat_colors(1)], ["sun"], {})
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {"000-sun.png", "sheet.png"}


def test_motion_is_the_mean_difference_of_consecutive_frames():
    still, moving = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)
    moving[1] = 30  # 0, 30, 0
    moving[2, :2] = 10
    np.testing.assert_allclose(motion(np.stack([still, moving])), [0, (30 + 25) / 2])


def test_a_noisy_clip_is_nearest_to_its_original():
    random = np.random.default_rng(0)
    true = random.integers(0, 255, (6, 3, 4, 4, 3), np.uint8)
    order = [3, 0, 5, 1, 2, 4]
    noisy = np.clip(true[order].astype(int) + random.integers(-20, 20, true.shape), 0, 255).astype(np.uint8)
    assert nearest(noisy, true).tolist() == order
