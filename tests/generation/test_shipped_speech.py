"""The speech model in the package: a recogniser hears words that it was never trained on, at the pitch asked for."""

import librosa
import numpy as np
import pytest
import soundfile

from lumina_jax.commands import sample
from lumina_jax.data.datasets.flite_speech import is_held_out, vocabulary
from lumina_jax.evaluation.speech import Recogniser

HELD_OUT = [word for word in vocabulary(1318) if is_held_out(word)]
SPOKEN = HELD_OUT[::10]
PITCHES = (130, 210)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """What `lumina sample speech` says for each word, at each pitch in turn."""
    folder = tmp_path_factory.mktemp("speech")
    prompts = [f"[{PITCHES[index % 2]} Hz] {word}" for index, word in enumerate(SPOKEN)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUMINA_ALLOCATOR", "system")
        patch.chdir(folder)
        assert sample.main(["speech", *prompts]) == 0
    files = sorted((folder / "samples" / "speech" / "seed-0").glob("*.wav"))
    assert len(files) == len(SPOKEN)
    return [soundfile.read(file, dtype="float32") for file in files]


def test_a_recogniser_hears_words_that_it_was_never_trained_on(spoken):
    recogniser = Recogniser(HELD_OUT)
    heard = [recogniser(samples, rate) for samples, rate in spoken]
    assert np.mean([word == wanted for word, wanted in zip(heard, SPOKEN, strict=True)]) >= 0.8  # by chance 0.01


def test_its_voice_has_the_pitch_that_is_asked_for(spoken):
    for index, (samples, rate) in enumerate(spoken):
        found, voiced, _ = librosa.pyin(samples, fmin=80, fmax=400, sr=rate, frame_length=1024)
        assert np.median(found[voiced]) == pytest.approx(PITCHES[index % 2], rel=0.15)
