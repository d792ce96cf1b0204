"""Files to be edited: what is done to a source and its mask, and what is said about it."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.config import ClipConfig, PictureConfig, ViewsConfig
from lumina_jax.modalities import Shape
from lumina_jax.modalities.decoding.edited import read_mask, read_still
from tests.modalities.test_modalities import SOUNDS, modality

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
SIZE = (24, 16)


def saved(folder, array, name="source.png", **how):
    Image.fromarray(array).save(folder / name, **how)
    return folder / name


def test_a_source_of_the_size_that_is_drawn_is_taken_as_it_is(tmp_path):
    found, size, notices = read_still(saved(tmp_path, PIXELS), SIZE)
    np.testing.assert_array_equal(found[0], PIXELS)
    assert (size, notices) == (SIZE, [])


def test_sixteen_bits_transparency_and_frames_become_eight_bits_on_white_of_the_first_frame(tmp_path):
    deep = saved(tmp_path, PIXELS[..., 0].astype(np.uint16) * 257, "deep.png")
    np.testing.assert_array_equal(read_still(deep, SIZE)[0][0], np.repeat(PIXELS[..., :1], 3, axis=2))
    alpha = np.where(np.arange(24) < 12, 0, 255).astype(np.uint8)
    clear = saved(tmp_path, np.dstack([PIXELS, np.broadcast_to(alpha, (16, 24))]), "clear.png")
    found, _, notices = read_still(clear, SIZE)
    np.testing.assert_array_equal(found[0], np.where(alpha[:, None] == 0, 255, PIXELS))
    assert notices == [f"{clear} is transparent: it is laid on white"]
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    found, _, notices = read_still(tmp_path / "moving.png", SIZE)
    np.testing.assert_array_equal(found[0], PIXELS)
    assert notices == [f"{tmp_path / 'moving.png'} is animated: its first frame is taken"]


def test_another_aspect_is_cropped_to_its_middle_and_the_mask_with_it(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 8:56] = 200
    found, size, notices = read_still(saved(tmp_path, wide), SIZE)
    assert found.min() == 200
    assert notices == [f"{tmp_path / 'source.png'} of 64 x 32 pixels is resized and cropped to its middle: 24 x 16"]
    white = np.zeros((32, 64), np.uint8)
    white[10, 8:10], white[20, 21], white[5, 5] = 255, 128, 255
    white[0] = 127
    mask = read_mask(saved(tmp_path, white, "mask.png"), size, SIZE)
    assert sorted(zip(*np.nonzero(mask))) == [(5, 0), (10, 6)]


def test_a_mask_of_another_size_a_black_one_and_a_broken_file_are_refused_by_their_names(tmp_path):
    small = saved(tmp_path, PIXELS[:8, :, 0], "small.png")
    with pytest.raises(ValueError, match=r"the size of the source, 24 x 16 pixels, but .*small\.png has 24 x 8"):
        read_mask(small, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"black\.png is black wherever the source is taken"):
        read_mask(saved(tmp_path, np.zeros((16, 24), np.uint8), "black.png"), SIZE, SIZE)
    (tmp_path / "text.png").write_text("not a picture")
    for read in (lambda file: read_still(file, SIZE), lambda file: read_mask(file, SIZE, SIZE)):
        with pytest.raises(ValueError, match=r"text\.png: the file is not a picture"):
            read(tmp_path / "text.png")
        with pytest.raises(ValueError, match="there is no file"):
            read(tmp_path / "missing.png")


def test_a_source_that_is_surrounded_stays_at_its_corner_and_all_around_it_is_drawn_anew(tmp_path):
    pictures = modality(PictureConfig())
    white = np.zeros((16, 24), np.uint8)
    white[2, 3] = 255
    source, mask = saved(tmp_path, PIXELS), saved(tmp_path, white, "mask.png")
    found = pictures.read_source(source, mask, Shape(32, 40), (6, 16))
    expected = np.ones((32, 40), bool)
    expected[16:32, 6:30] = white > 0
    np.testing.assert_array_equal(found.mask, expected)
    np.testing.assert_array_equal(found.sample[0, 16:, 6:30], PIXELS)
    assert found.notices == ()
    for corner, shape in (((17, 0), Shape(32, 40)), ((0, 0), Shape(16, 24))):
        with pytest.raises(ValueError, match=r"must lie within the .* and leave some of them"):
            pictures.read_source(source, None, shape, corner)


def test_a_picture_is_the_first_frame_of_clips_and_views_and_a_clip_gives_as_many_as_are_drawn(tmp_path):
    still = saved(tmp_path, PIXELS[:, :16])
    for media in (ClipConfig(image_size=16, frames=4), ViewsConfig(image_size=16, frames=4)):
        assert modality(media).read_source(still, None, Shape(16, 16, 4)).sample.shape == (1, 16, 16, 3)
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * index, np.uint8)) for index in range(4)]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    clips = modality(ClipConfig(image_size=16, frames=4))
    found = clips.read_source(tmp_path / "clip.webp", None, Shape(16, 16, 4)).sample
    assert found[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
    assert modality(PictureConfig()).read_source(tmp_path / "clip.webp", None, Shape(16, 16)).sample.shape[0] == 1


@pytest.mark.slow
def test_a_recording_is_cut_to_what_is_drawn_and_has_no_mask_of_pixels(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "tone.wav", 0.1 * np.sin(np.arange(8000) / 9), 16_000)
    sounds = modality(SOUNDS)
    whole = sounds.read_source(tmp_path / "tone.wav", None, Shape(1, 1000))
    cut = sounds.read_source(tmp_path / "tone.wav", None, Shape(1, 20))
    np.testing.assert_array_equal(cut.sample, whole.sample[:20])
    assert sounds.extent_of(whole.sample).width == len(whole.sample) < 1000
    assert "the first 20 are taken" in cut.notices[0]
    with pytest.raises(ValueError, match=r"mask\.png cannot mask a sound"):
        sounds.read_source(tmp_path / "tone.wav", tmp_path / "mask.png", Shape(1, 20))
