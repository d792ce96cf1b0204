"""Sounds drawn: their lengths, their files, and a whole run on speech."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lumina_jax.commands import evaluate, sample, train
from lumina_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    PreparedConfig,
    RunConfig,
    SampleConfig,
    SoundConfig,
    TextConfig,
)
from lumina_jax.data.prepared import Card, PreparedSample, write_prepared
from lumina_jax.evaluation.speech import Recogniser, spoken_text
from lumina_jax.generation.gallery import Gallery
from lumina_jax.mel import LOUD, QUIET, griffin_lim, log_mel
from lumina_jax.modalities import Shape, modality_of
from lumina_jax.modalities.decoding.media import Sound
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.modalities.files.sounds import SoundFiles, save_wav, spectrogram_picture
from tests.generation.test_pipeline import Words, new_pipeline

RATE = 22_050
WORDS = Path(__file__).parents[1] / "golden" / "speech" / "words.npz"
"""Said by flite's voice slt: see the README beside it."""


def recordings():
    with np.load(WORDS) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "rate"}, int(arrays["rate"])


def speech_config(root, **sections):
    settings = Config(
        model=ModelConfig(
            layers=1, heads=2, width=16, patch_size=1, channels=80, modality="speech", text_width=50, text_layers=1,
            mlp_multiple_of=8, compute_dtype="float32", remat="none",
        ),
        text=TextConfig(encoder="phonemes", max_tokens=12),
        data=DataConfig(
            source=PreparedConfig(path=f"{root}/words"),
            media=SoundConfig(seconds=1.0, seconds_per_phoneme=0.05, pause=0.3, pitch=True),
            batch_rows=2, row_tokens=160, samples_per_row=2, prefetch=2,
        ),
        sample=SampleConfig(solver="euler", steps=2, proportional_attention=False),
        run=RunConfig(
            name="tiny", root=str(root), steps=2, log_every=1, checkpoint_every=2, sample_every=2,
            sample_prompts=("[170 Hz] seven",),
        ),
    )  # fmt: skip
    return settings.replace(**sections)


# lengths


@pytest.mark.slow
def test_a_sound_is_as_long_as_asked_for_and_each_may_differ(tmp_path):
    settings = speech_config(tmp_path, model={"text_width": 6, "text_layers": 0})
    pipeline = new_pipeline(settings, Words())
    shapes = [Shape(1, 12), Shape(1, 20), Shape(1, 12)]

    def drawn(shapes):
        return pipeline(["a", "b", "c"], settings.sample, seed=0, shape=shapes, batch=2)

    sounds = drawn(shapes)
    assert [sound.shape for sound in sounds] == [(12, 80), (20, 80), (12, 80)]
    assert all(sound.min() >= QUIET - 1e-4 and sound.std() > 0 for sound in sounds)
    assert np.abs(sounds[0] - sounds[2]).max() > 0
    with pytest.raises(ValueError, match="height must be a positive multiple of the 1 pixels"):
        drawn([Shape(0, 12)] * 3)


def test_a_text_says_how_long_its_sound_is(tmp_path):
    settings = speech_config(tmp_path)

    def shape_for(settings, prompt):
        return modality_of(settings).shape_for(prompt, settings.text)

    # 0.3 s and 5 phonemes of 0.05 s are 47.4 frames of 256 samples, of which fours are taken
    assert shape_for(settings, "[130 Hz] seven") == Shape(1, 48)
    assert shape_for(settings, "seven seven") == Shape(1, 68)
    assert shape_for(settings, "seven seven seven seven") == Shape(1, 68)  # of what text.max_tokens leaves
    assert modality_of(settings).trained_shape == Shape(1, 87)
    assert shape_for(settings.replace(data={"seconds_per_phoneme": None}), "seven") == Shape(1, 87)


# files


def test_a_spectrogram_is_drawn_with_low_sounds_at_the_bottom_and_time_to_the_right():
    spectrogram = np.full((30, 80), QUIET, np.float32)
    spectrogram[:10, :5] = LOUD
    picture = spectrogram_picture(spectrogram)
    assert picture.shape == (160, 60, 3)
    bright = picture.sum(axis=-1) > 500
    assert bright[150:, :20].all()
    assert bright.sum() == 10 * 20


def test_a_wav_has_its_samples_and_a_loud_one_is_turned_down_whole(tmp_path):
    samples = 0.5 * np.sin(np.arange(4000) / 20).astype(np.float32)
    save_wav(tmp_path / "a.wav", samples, RATE)
    read, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == RATE
    np.testing.assert_allclose(read, samples, atol=1e-4)
    save_wav(tmp_path / "a.wav", 10 * samples, RATE)
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav")[0], 1.8 * samples, atol=1e-3)


def test_sounds_are_saved_with_spectrograms_that_say_how_they_were_made(tmp_path):
    spectrograms = [np.full((frames, 80), -5.0, np.float32) for frames in (8, 12)]

    def voice(spectrogram, rate):
        return np.full(len(spectrogram) * 256, 0.1, np.float32)

    gallery = Gallery(tmp_path, ["one", "two"], {"seed": 4}, SoundFiles(voice, RATE))
    for index, spectrogram in enumerate(spectrograms):
        gallery.add(index, spectrogram)
    gallery.sheet()
    assert {file.name for file in tmp_path.iterdir()} == {
        "000-one.wav", "000-one.png", "001-two.wav", "001-two.png", "sheet.png"
    }  # fmt: skip
    assert soundfile.info(tmp_path / "001-two.wav").frames == 12 * 256
    assert read_png_metadata(tmp_path / "001-two.png") == {"prompt": "two", "index": 1, "seed": 4}


# listening


def test_a_recogniser_hears_words_through_the_spectrogram_and_griffin_lim():
    sounds, rate = recordings()
    recogniser = Recogniser([*sounds, "elephant", "green", "seventeen"])
    import librosa

    for word, samples in sounds.items():
        plain = librosa.resample(samples / np.float32(32768), orig_sr=rate, target_sr=RATE)
        assert recogniser(griffin_lim(log_mel(plain, RATE), RATE), RATE) == word
    assert recogniser(np.zeros(RATE, np.float32), RATE) == ""
    with pytest.raises(ValueError, match="its dictionary lacks xqzzt"):
        Recogniser(["seven", "xqzzt"])


def test_what_is_said_for_a_caption_has_no_marks_and_no_pitch():
    assert spoken_text("[150 Hz] Don't stop, please!") == "don't stop please"


# a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    sounds, rate = recordings()
    card = Card(name="words", about="", origin="", licence="", attribution="", settings={})
    samples = [PreparedSample(word, word, Sound(samples, rate), 170.0) for word, samples in sounds.items()]
    write_prepared(root / "words", samples, card)
    assert train.run(speech_config(root))
    return root / "tiny"


def arguments(run, *prompts, **asked):
    return sample.Arguments(run=run, prompts=prompts, sample=speech_config(run.parent).sample, **asked)


def test_training_draws_spectrograms_as_it_goes(run):
    with Image.open(run / "samples" / "step_0000002.png") as sheet:
        assert np.asarray(sheet).std() > 1


def test_a_run_on_speech_draws_sounds_of_the_length_asked_for(run, capsys):
    assert sample.draw_samples(arguments(run, "[130 Hz] seven", "river", seconds=0.5)) == 0
    folder = run / "samples" / "2" / "seed-0"
    assert f"2 sounds and {folder / 'sheet.png'}" in capsys.readouterr().out
    assert soundfile.info(folder / "001-river.wav").frames == 44 * 256  # the frames that 0.5 s touch
    about = read_png_metadata(folder / "000-130-hz-seven.png")
    assert (about["modality"], about["seconds"]) == ("speech", 0.5)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"video_frames": 3}, "--video-frames say how large a picture is, but this draws sounds; use --seconds"),
        ({"seconds": -1.0}, "seconds=-1.0 must be positive"),
    ],
)
def test_what_does_not_fit_a_sound_is_refused(run, asked, reason):
    with pytest.raises(ValueError, match=reason):
        sample.draw_samples(arguments(run, "seven", **asked))


@pytest.mark.slow
def test_a_run_on_speech_is_evaluated_by_a_recogniser(run, capsys):
    assert evaluate.evaluate(evaluate.Arguments(run, limit=2)) == 0
    said = capsys.readouterr().out
    assert "recorded     2 of    2 heard: 100.0%" in said
    assert "drawn" in said
    assert len(list((run / "samples" / "2" / "evaluated-seed-1").glob("*.wav"))) == 2
    with pytest.raises(ValueError, match="--likelihood needs a model of pixels, but this one draws sounds"):
        evaluate.evaluate(evaluate.Arguments(run, limit=2, likelihood=1))


def test_data_of_another_width_is_refused_before_training(run):
    with pytest.raises(ValueError, match=r"mel spectrograms have 80 channels, but model\.channels=3; set it to 80"):
        train.run(speech_config(run.parent, model={"channels": 3}, run={"name": "narrow"}))
