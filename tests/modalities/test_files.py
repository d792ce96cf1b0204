"""Pictures keep their pixels and settings; sheets hold every picture and caption, and nothing overlaps."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageFont

from lumina_jax.modalities.files import contact_sheet as sheets
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.modalities.files.png import read_png_metadata, save_png


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)


def flat(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


def boxes(sheet, colour):
    """Top, bottom, left, right of the pixels of exactly this colour."""
    rows, columns = np.nonzero((sheet == np.array(colour)).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_a_png_gives_back_its_pixels_and_its_settings(tmp_path):
    settings = {"prompt": "ein roter Ballon, 红色气球 🎈\nsecond line", "seed": 7, "guidance": 4.0, "steps": None}
    path = tmp_path / "new folder" / "sample.png"
    save_png(path, picture(5, 9), settings)
    assert read_png_metadata(path) == settings
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture(5, 9))
    assert [file.name for file in path.parent.iterdir()] == ["sample.png"]


def test_the_settings_are_in_a_text_chunk_named_parameters(tmp_path):
    save_png(tmp_path / "a.png", picture(4, 4), {"seed": 3})
    data = (tmp_path / "a.png").read_bytes()
    assert b"iTXtparameters\x00\x00\x00\x00\x00" + json.dumps({"seed": 3}).encode() in data


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, picture(4, 4), {"seed": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_png(path, picture(4, 4, seed=1), {"seed": 2})
    assert read_png_metadata(path) == {"seed": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_settings_that_are_not_json_and_files_without_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be JSON"):
        save_png(tmp_path / "a.png", picture(4, 4), {"x": object()})
    Image.fromarray(picture(4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain.png must carry a text chunk 'parameters', but has none"):
        read_png_metadata(tmp_path / "plain.png")


def test_small_pictures_are_enlarged_by_a_whole_number_and_keep_their_proportions():
    colours = [(200, 0, 0), (0, 120, 0), (0, 0, 200)]
    shapes = [(32, 32), (16, 32), (32, 8)]
    sheet = contact_sheet([flat(*shape, colour) for shape, colour in zip(shapes, colours)], ["a", "b", "c"])
    for (height, width), colour in zip(shapes, colours):
        top, bottom, left, right = boxes(sheet, colour)
        assert (bottom - top, right - left) == (4 * height, 4 * width)


def test_large_pictures_are_shown_pixel_for_pixel():
    pixels = picture(300, 260)
    sheet = contact_sheet([pixels], ["x"])
    found = sheet[sheets.MARGIN : sheets.MARGIN + 300, sheets.MARGIN : sheets.MARGIN + 260]
    np.testing.assert_array_equal(found, pixels)


def test_an_explicit_scale_and_number_of_columns_are_respected():
    colours = [(10 * index, 50, 90) for index in range(5)]
    sheet = contact_sheet([flat(8, 8, colour) for colour in colours], ["x"] * 5, columns=2, scale=3)
    tops = [boxes(sheet, colour)[0] for colour in colours]
    lefts = [boxes(sheet, colour)[2] for colour in colours]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]
    assert boxes(sheet, colours[0])[1] - tops[0] == 24


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (8, 4), (12, 4), (16, 4), (18, 6), (24, 6)])
def test_the_last_row_is_full_when_a_nearby_number_of_columns_makes_it_so(count, columns):
    assert min(count, sheets._columns(count)) == columns


def test_captions_stand_below_their_picture_and_inside_their_cell():
    words = "a caption that is much too long for the width of one cell and therefore wraps"
    colours = [(200, 0, 0), (0, 0, 200)]
    sheet = contact_sheet([flat(32, 32, colour) for colour in colours], [words, words], columns=2)
    ink = (sheet < 120).all(-1)
    below = max(boxes(sheet, colour)[1] for colour in colours)
    assert not ink[:below].any()
    assert ink[below:].any()
    columns = np.nonzero(ink.any(0))[0]
    middle = sheet.shape[1] // 2
    assert columns.min() >= sheets.MARGIN - sheets.GAP // 2
    assert columns.max() < sheet.shape[1] - sheets.MARGIN + sheets.GAP // 2
    assert not ink[:, middle - 3 : middle + 3].any(), "captions of neighbours must not touch"


def test_every_word_of_a_caption_that_fits_is_drawn_and_a_longer_one_ends_in_dots():
    font = ImageFont.load_default(sheets.FONT_SIZE)
    caption = "woman bouncing ball light, fluent style"
    lines = sheets._caption_lines(caption, font, 140)
    assert " ".join(lines) == caption
    assert all(font.getlength(line) <= 140 for line in lines)
    long = sheets._caption_lines("word " * 100, font, 140)
    assert len(long) == sheets.CAPTION_LINES
    assert long[-1].endswith("...")
    assert "".join(sheets._caption_lines("x" * 40, font, 140)) == "x" * 40


def test_lines_of_a_caption_are_balanced():
    font = ImageFont.load_default(sheets.FONT_SIZE)
    assert (
        sheets._caption_lines("aaaa aaaa aaaa aaaa", font, int(font.getlength("aaaa aaaa aaaa")) + 1)
        == ["aaaa aaaa"] * 2
    )


def test_characters_without_a_glyph_are_replaced_readably():
    font = ImageFont.load_default(sheets.FONT_SIZE)
    assert sheets._lacking(font, "caption, with: (marks) 123") == set()
    assert sheets._readable("caf\u00e9 \u65e5 ok", font) == "cafe ? ok"
    assert sheets._readable("heart\ufe0f", font) == "heart"
    assert contact_sheet([picture(8, 8)], ["\u65e5\u672c \u00e9 \U0001f600"]).dtype == np.uint8


def test_an_empty_caption_leaves_no_ink_and_a_sheet_needs_matching_captions():
    sheet = contact_sheet([flat(32, 32, (200, 0, 0))], [""])
    assert not (sheet < 120).all(-1).any()
    for pictures, captions in (([], []), ([picture(4, 4)], ["a", "b"])):
        with pytest.raises(ValueError, match="one caption for each picture"):
            contact_sheet(pictures, captions)


def test_a_caption_of_any_length_takes_no_time_and_ends_in_an_ellipsis(monkeypatch):
    """A word of 20,000 letters took 9 s, and one twice as long four times that."""
    measured = []
    getlength = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda font, text: measured.append(len(text)) or getlength(font, text)
    )
    font = ImageFont.load_default(sheets.FONT_SIZE)
    for caption in ("x" * 20_000, "word " * 20_000, "i" * 100_000):
        lines = sheets._caption_lines(sheets._shortened(caption, 140), font, 140)
        assert len(lines) == sheets.CAPTION_LINES
        assert lines[-1].endswith("...")
    assert contact_sheet([picture(8, 8)], ["x" * 10**6]).shape[0] < 400
    assert sum(measured) < 100_000
