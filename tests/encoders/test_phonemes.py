"""Text as phonemes: which symbols, how they are stressed, how long they take, and which pitch is asked for."""

import numpy as np
import pytest

from lumina_jax.encoders import phonemes as module
from lumina_jax.encoders.phonemes import (
    STRESSES,
    SYMBOLS,
    WIDTH,
    phonemes,
    split_pitch,
    spoken_seconds,
)
from lumina_jax.encoders.text import text_encoder


def read(features):
    """The symbols with marks that rows of features say."""
    found = []
    for row in features:
        (symbol,) = np.flatnonzero(row[: len(SYMBOLS)])
        stress = "".join(mark for index, mark in enumerate(STRESSES) if row[len(SYMBOLS) + index])
        found.append(stress + SYMBOLS[symbol])
    return found


def test_words_are_cut_into_the_phonemes_of_a_dictionary():
    assert phonemes("seven") == ("s", "ˈɛ", "v", "ə", "n")
    assert phonemes("cheese") == ("t͡ʃ", "ˈi", "z")
    assert phonemes("good morning") == ("ɡ", "ˈʊ", "d", " ", "m", "ˈɔ", "ɹ", "n", "ɪ", "ŋ")
    assert phonemes("'good' (sure), (morning)!") == (
        "ɡ", "ˈʊ", "d", " ", "ʃ", "ˈʊ", "ɹ", "|", "m", "ˈɔ", "ɹ", "n", "ɪ", "ŋ", "‖"
    )  # fmt: skip
    assert phonemes("7") == phonemes("seven")
    assert phonemes("") == ()


def test_features_say_symbol_and_stress_of_each_token_between_a_first_and_a_last_one():
    encoder = text_encoder("phonemes", 10)
    features, segment_ids = encoder.encode(["seven", ""])
    assert features.shape == (2, 10, WIDTH)
    assert encoder.width == WIDTH
    assert segment_ids.tolist() == [[1] * 7 + [0] * 3, [1] * 2 + [0] * 8]
    assert read(features[0, :7]) == ["^", "s", "ˈɛ", "v", "ə", "n", "$"]
    assert read(features[1, :2]) == ["^", "$"]
    assert not features[0, 7:].any()
    assert not features[0, :, -2:].any()


def test_a_pitch_is_said_to_each_symbol_in_octaves_and_not_pronounced():
    encoder = text_encoder("phonemes", 10)
    plain, high, low = encoder.encode(["seven", "[320 Hz] seven", "[80 Hz] seven"]).features
    np.testing.assert_array_equal(high[:, :-2], plain[:, :-2])
    assert high[:7, -2:].tolist() == [[1, 1]] * 7
    assert low[:7, -2:].tolist() == [[1, -1]] * 7
    assert not high[7:].any()
    assert split_pitch("[182.5 Hz] one two") == (182.5, "one two")
    assert split_pitch("one [180 Hz] two") == (None, "one [180 Hz] two")


def test_longer_texts_are_cut():
    features, segment_ids = text_encoder("phonemes", 4).encode(["seven"])
    assert read(features[0]) == ["^", "s", "ˈɛ", "v"]
    assert segment_ids.all()
    with pytest.raises(ValueError, match="max_tokens=1 must be at least 2"):
        text_encoder("phonemes", 1)


def test_all_phonemes_of_a_long_text_are_known():
    text = (
        "The quick brown fox jumps over the lazy dog. Joy, measure, vision, thirty three thousand thieves, a church "
        "and the boys' loud house: sure, Zhivago; young hooting owls yawned."
    )
    features = text_encoder("phonemes", 300).encode([text]).features[0]
    assert not features[:, SYMBOLS.index("?")].any()
    assert features[:, len(SYMBOLS)].sum() > 15


def test_the_length_of_a_sound_grows_with_its_phonemes():
    assert spoken_seconds("seven", per_phoneme=0.1, pause=0.3) == pytest.approx(0.8)
    assert spoken_seconds("[90 Hz] seven", per_phoneme=0.1, pause=0.3) == pytest.approx(0.8)
    assert spoken_seconds("seven seven", per_phoneme=0.1, pause=0.3) == pytest.approx(1.3)


def test_the_fingerprint_tells_lengths_apart():
    assert text_encoder("phonemes", 8).fingerprint != text_encoder("phonemes", 9).fingerprint


def test_without_gruut_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lumina_jax\[sound\]'"):
        text_encoder("phonemes", 8)


def test_numbers_beyond_all_words_are_read_digit_by_digit():
    nines = (*phonemes("nine"), " ") * 30
    assert (*phonemes("9" * 30), " ") == nines
    assert (*phonemes("$" + "9" * 30), " ") == nines
    assert phonemes("9" * 30 + " dogs") == (*nines, *phonemes("dogs"))
    assert phonemes("1e400") == phonemes("1 e 4 0 0")
    assert phonemes("\ud83d") == ("?",)
    assert phonemes("one \ud83d two") == (*phonemes("one"), " ", "?", " ", *phonemes("two"))


@pytest.mark.parametrize("tag", ["[0 Hz]", "[5 Hz]", f"[{'9' * 400} Hz]", "[0.0 Hz]"])
def test_a_pitch_that_nobody_hears_is_text(tag):
    features, segment_ids = text_encoder("phonemes", 500).encode([f"{tag} seven"])
    assert np.isfinite(features).all()
    assert features[..., -2].max() == 0
    assert segment_ids.sum() > 6
