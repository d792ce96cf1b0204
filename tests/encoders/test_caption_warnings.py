"""Warnings about captions that are truncated, or whose pitch is not recognised."""

from pathlib import Path

import pytest

from lumina_jax.encoders.caption_warnings import MAX_CHECKED, caption_warnings
from lumina_jax.encoders.phonemes import PhonemeEncoder
from lumina_jax.encoders.text import SerialTextEncoder, text_encoder
from lumina_jax.encoders.tokenizer import CaptionTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path for path in GOLDEN.glob("*_tiny") if (path / "tokenizer.json").is_file())


class FiveLetters:
    """An encoder that reads five letters of a caption."""

    width = 4

    def is_truncated(self, caption):
        return len(caption) > 5


def test_truncated_captions_are_counted_with_an_example():
    assert caption_warnings(FiveLetters(), ["cat", "elephant", "rhinoceros"], 5) == [
        "2 of 3 captions are longer than text.max_tokens=5 and will be truncated, such as 'elephant'"
    ]
    assert caption_warnings(FiveLetters(), ["elephant"], 5)[0].startswith("1 of 1 captions is longer")
    assert caption_warnings(FiveLetters(), ["cat"], 5) == []
    assert caption_warnings(object(), ["elephant"], 5) == []


def test_at_most_a_fixed_number_of_captions_is_checked():
    checked = []

    class Counting(FiveLetters):
        def is_truncated(self, caption):
            checked.append(caption)
            return super().is_truncated(caption)

    [warning] = caption_warnings(Counting(), ["elephant"] * (10 * MAX_CHECKED), 5)
    assert len(checked) == MAX_CHECKED
    assert f"of {MAX_CHECKED} captions checked" in warning


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_tokenizer_detects_truncation(folder):
    """A caption with exactly max_tokens tokens is not truncated."""
    long = "a cat and a dog and a bird"
    tokenizer = CaptionTokenizer(folder, 64, None)
    length = int(tokenizer([long])[1].sum())
    assert not tokenizer.is_truncated(long)
    assert not CaptionTokenizer(folder, length, None).is_truncated(long)
    assert CaptionTokenizer(folder, length - 1, None).is_truncated(long)


def test_single_and_joined_encoders_detect_truncation():
    encoder = text_encoder("minilm", 6)
    assert encoder.is_truncated("a cat and a dog and a bird")
    assert not encoder.is_truncated("a cat")
    both = SerialTextEncoder([encoder, encoder])
    assert both.is_truncated("a cat <a cat and a dog and a bird>")
    assert not both.is_truncated("a cat <dog>")


def test_the_phoneme_encoder_warns_of_truncation_and_of_unrecognised_pitches():
    encoder = PhonemeEncoder(8)
    found = caption_warnings(encoder, ["seven", "seven seven", "[180Hz] ox"], 8)
    assert found[0].endswith("and will be truncated, such as 'seven seven'")
    assert found[1].startswith("1 of 3 captions would be spoken with the pitch read out as text, such as '[180Hz] ox'")
