"""The words of flite-speech, and those that are held out."""

import numpy as np
import pytest

from lumina_jax.commands import data
from lumina_jax.data.datasets import flite_speech
from lumina_jax.data.datasets.flite_speech import WORDS, is_held_out, vocabulary
from lumina_jax.data.prepared import PreparedSource
from lumina_jax.encoders.phonemes import STRESSES, phonemes
from lumina_jax.evaluation.speech import Recogniser

ALL = 1318


def test_a_recogniser_knows_every_word_and_no_two_sound_alike():
    words = vocabulary(ALL)
    assert all(word.isalpha() and word.islower() for word in words)
    Recogniser(words)  # or it would say which words it does not know
    sounds = [tuple(symbol for symbol in phonemes(word) if symbol not in STRESSES) for word in words]
    assert len(set(words)) == len(set(sounds)) == ALL


def test_one_word_in_twelve_after_the_first_48_is_held_out():
    assert vocabulary(48) == [*WORDS]
    assert not any(map(is_held_out, WORDS))
    share = np.mean([is_held_out(word) for word in vocabulary(ALL)[48:]])
    assert abs(share - 1 / 12) < 0.02
    assert is_held_out("violin")
    assert not is_held_out("heart")


@pytest.mark.parametrize("words", [0, ALL + 1])
def test_a_number_of_words_that_there_are_not_is_refused_before_anything_is_fetched(
    tmp_path, monkeypatch, capsys, words
):
    monkeypatch.setattr(flite_speech, "fetch_debian", lambda *_: pytest.fail("fetched"))
    with pytest.raises(SystemExit, match="1"):
        data.main(["prepare", "flite-speech", "--out", f"{tmp_path}", "--words", f"{words}"])
    assert f"words={words} must be between 1 and {ALL}" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_word_that_is_held_out_is_so_in_every_manner(tmp_path, monkeypatch):
    tone = (8000 * np.sin(np.arange(4000) / 10)).astype(np.int16)
    monkeypatch.setattr(flite_speech, "_flite", lambda folder: lambda word, stretch, pitch: tone)
    data.main(["prepare", "flite-speech", "--out", f"{tmp_path}", "--words", "70"])
    splits = {name: PreparedSource(tmp_path / "flite-speech", name) for name in ("train", "held_out")}
    spoken = {name: [source[index].caption for index in range(len(source))] for name, source in splits.items()}
    assert spoken["held_out"] == ["fish"] * 9
    assert len(spoken["train"]) == 69 * 9
    assert "fish" not in spoken["train"]
    assert "The split held_out has 1 word that train" in (tmp_path / "flite-speech" / "README.md").read_text()
