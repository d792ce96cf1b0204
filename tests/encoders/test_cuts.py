"""What an encoder does not read of captions is said, with how many there are and one of them."""

from pathlib import Path

import pytest

from lumina_jax.encoders.cuts import MOST, notices
from lumina_jax.encoders.phonemes import PhonemeEncoder
from lumina_jax.encoders.text import SerialTextEncoder, text_encoder
from lumina_jax.encoders.tokenizer import CaptionTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path for path in GOLDEN.glob("*_tiny") if (path / "tokenizer.json").is_file())


class Short:
    """An encoder of letters."""

    width = 4

    def is_cut(self, caption):
        return len(caption) > 5


def test_captions_that_are_cut_are_counted_with_an_example():
    assert notices(Short(), ["cat", "elephant", "rhinoceros"], 5) == [
        "2 of 3 captions are longer than text.max_tokens=5, and the rest is cut, such as 'elephant'"
    ]
    assert notices(Short(), ["elephant"], 5)[0].startswith("1 of 1 captions is longer")
    assert notices(Short(), ["cat"], 5) == []
    assert notices(object(), ["elephant"], 5) == []


def test_of_very_many_captions_some_are_looked_at():
    looked = []

    class Counting(Short):
        def is_cut(self, caption):
            looked.append(caption)
            return super().is_cut(caption)

    [said] = notices(Counting(), ["elephant"] * (10 * MOST), 5)
    assert len(looked) == MOST
    assert f"of {MOST} captions looked at" in said


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_tokenizer_knows_what_it_cuts(folder):
    """Without marks of ours it cuts by itself; what is exactly as long as allowed is not cut."""
    long = "a cat and a dog and a bird"
    whole = CaptionTokenizer(folder, 64, None)
    length = int(whole([long])[1].sum())
    assert not whole.is_cut(long)
    assert not CaptionTokenizer(folder, length, None).is_cut(long)
    assert CaptionTokenizer(folder, length - 1, None).is_cut(long)


def test_an_encoder_knows_what_it_cuts_and_several_together_do():
    name = "minilm"
    encoder = text_encoder(name, 6)
    assert encoder.is_cut("a cat and a dog and a bird")
    assert not encoder.is_cut("a cat")
    both = SerialTextEncoder([encoder, encoder])
    assert both.is_cut("a cat <a cat and a dog and a bird>")
    assert not both.is_cut("a cat <dog>")


def test_speech_says_what_it_does_not_speak_and_tags_that_it_would():
    encoder = PhonemeEncoder(8)
    found = notices(encoder, ["seven", "seven seven", "[180Hz] ox"], 8)
    assert found[0].endswith("and the rest is cut, such as 'seven seven'")
    assert found[1].startswith("1 of 3 captions would be spoken as it stands, tag and all, such as '[180Hz] ox'")
