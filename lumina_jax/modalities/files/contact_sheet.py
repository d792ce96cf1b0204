"""Sheets of captioned pictures.

In: pictures as bytes 0..255, [h w 3], and a caption for each. Out: one picture of all of them, in lines, each above its
caption.
"""

import contextlib
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

PICTURE_SIDE = 128
"""Small pictures are enlarged to about this many pixels on a sheet."""
MARGIN, GAP, CAPTION_GAP = 32, 24, 10
FONT_SIZE, LINE_HEIGHT, CAPTION_LINES = 15, 19, 4
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
NARROWEST = 3
"""Pixels that all but a few characters are wider than."""
NOT_A_CHARACTER = "\uffff"
WHITE, INK = (255, 255, 255), (48, 48, 52)


def contact_sheet(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """All pictures on one white sheet, each above its caption.

    Args:
      pictures: of any sizes, which may differ.
      captions: one for each; wrapped to the width of a cell, and cut with an ellipsis after four lines.
      columns: None: about as many as make the sheet half wider than high, with a full last row if one is near.
      scale: how many times pictures are enlarged; None: the largest to about 128 pixels, never less than once.

    Raises:
      ValueError: there are no pictures, or not one caption for each.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"a sheet needs one caption for each picture, but got {len(pictures)=} and {len(captions)=}")
    largest = max(max(picture.shape[:2]) for picture in pictures)
    scale = scale or max(1, round(PICTURE_SIDE / largest))
    columns = min(columns or _columns(len(pictures)), len(pictures))
    images = [_enlarged(picture, scale) for picture in pictures]
    cell = max(PICTURE_SIDE, *(image.width for image in images))
    captions = [_shortened(caption, cell + GAP // 2) for caption in captions]
    font = _font_for(captions)
    texts = [_caption_lines(_readable(caption, font), font, cell + GAP // 2) for caption in captions]

    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    picture_heights = [max(images[index].height for index in row) for row in rows]
    text_heights = [max(len(texts[index]) for index in row) * LINE_HEIGHT for row in rows]
    width = 2 * MARGIN + columns * cell + (columns - 1) * GAP
    content = sum(picture_heights) + sum(text_heights) + len(rows) * CAPTION_GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + content + (len(rows) - 1) * GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, picture_height, text_height in zip(rows, picture_heights, text_heights):
        for column, index in enumerate(row):
            left, image = MARGIN + column * (cell + GAP), images[index]
            sheet.paste(image, (left + (cell - image.width) // 2, top + picture_height - image.height))
            for line, text in enumerate(texts[index]):
                middle = left + cell / 2, top + picture_height + CAPTION_GAP + line * LINE_HEIGHT
                draw.text(middle, text, fill=INK, font=font, anchor="ma")
        top += picture_height + CAPTION_GAP + text_height + GAP
    return np.asarray(sheet)


def _columns(count: int) -> int:
    ideal = max(1, round(math.sqrt(1.5 * count)))
    return min(
        range(max(1, ideal - 1), ideal + 2), key=lambda columns: (-count % columns, abs(columns - ideal), -columns)
    )


def _enlarged(picture: UInt8[np.ndarray, "h w 3"], scale: int) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def _shortened(caption: str, width: int) -> str:
    """The beginning of a caption, longer than what can be shown, so that a long one takes no time to lay out."""
    most = CAPTION_LINES * max(1, width // NARROWEST)
    return caption if len(caption) <= most else f"{caption[:most]}..."


def _caption_lines(caption: str, font: FreeTypeFont, width: int) -> list[str]:
    """The lines of a caption, of about equal length, none wider than `width` pixels."""
    lines = _wrapped(caption, font, width)
    if len(lines) > CAPTION_LINES:
        last = lines[CAPTION_LINES - 1]
        while font.getlength(f"{last}...") > width:
            last = last[:-1]
        return [*lines[: CAPTION_LINES - 1], f"{last.rstrip()}..."]
    longest_word = math.ceil(max((font.getlength(word) for word in caption.split()), default=0))
    for narrower in range(width, max(width // 3, longest_word), -4):
        balanced = _wrapped(caption, font, narrower)
        if len(balanced) > len(lines):
            break
        lines = balanced
    return lines


def _wrapped(caption: str, font: FreeTypeFont, width: int) -> list[str]:
    """As many words on a line as fit; a word wider than a line is broken."""
    lines: list[str] = []
    for word in caption.split():
        if len(lines) > CAPTION_LINES:  # the rest is not shown
            break
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append(word)
        while len(lines) <= CAPTION_LINES and font.getlength(word) > width:
            end = max(1, next(end for end in range(len(word)) if font.getlength(word[: end + 1]) > width))
            lines[-1:] = [word[:end], word[end:]]
            word = word[end:]
    return lines


def _font_for(captions: Sequence[str]) -> FreeTypeFont:
    """Pillow's font, unless captions need characters which only a font of the system has."""
    text = "".join(captions)
    pillow = ImageFont.load_default(FONT_SIZE)
    assert isinstance(pillow, FreeTypeFont)  # every wheel of Pillow brings FreeType
    fonts = [pillow]
    for name in SYSTEM_FONTS if _lacking(pillow, text) else ():
        with contextlib.suppress(OSError):  # not installed
            fonts.append(ImageFont.truetype(name, FONT_SIZE))
    return min(fonts, key=lambda font: len(_lacking(font, text)))


def _readable(caption: str, font: FreeTypeFont) -> str:
    """The caption with each character that the font lacks replaced: without its accent, or by a question mark."""
    return "".join(_substitute(character, font) for character in caption)


def _substitute(character: str, font: FreeTypeFont) -> str:
    if not _lacking(font, character):
        return character
    if unicodedata.category(character)[0] in "CM":  # joiners, selectors, marks: nothing to see by themselves
        return ""
    plain = unicodedata.normalize("NFKD", character)[0]
    return "?" if _lacking(font, plain) else plain


def _lacking(font: FreeTypeFont, text: str) -> set[str]:
    missing = bytes(font.getmask(NOT_A_CHARACTER))
    return {
        character for character in set(text) if not character.isspace() and bytes(font.getmask(character)) == missing
    }
