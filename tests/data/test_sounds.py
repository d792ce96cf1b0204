"""Sounds: the numbers of their spectrograms, the way back, and which recordings are refused."""

import math
from fractions import Fraction

import av
import librosa
import numpy as np
import pytest
import soundfile
from transformers.audio_utils import mel_filter_bank

from lumina_jax.config import Config, DataConfig, FolderConfig, ModelConfig, PictureConfig, SoundConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import BadSample, Example, Record
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.prepared import Card, PreparedSample, PreparedSource, write_prepared
from lumina_jax.data.sources import open_source
from lumina_jax.mel import frames_of, griffin_lim, log_mel, mel_to_unit, seconds_of, unit_to_mel
from lumina_jax.modalities import modality_of_source
from lumina_jax.modalities.decoding.media import Sound
from lumina_jax.modalities.decoding.sounds import read_sound
from tests.data.numbered import Lookup, take

RATE = 22_050
MODEL = ModelConfig(layers=1, heads=2, width=8, channels=80, patch_size=1, modality="speech")
DATA = DataConfig(media=SoundConfig(seconds=1.0), batch_rows=1, row_tokens=200, samples_per_row=2, caption_dropout=0.0)


def tone(seconds, hertz=440.0, rate=RATE, loud=0.5):
    return (loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds, rate=RATE):
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))).astype(np.float32)


def prepared(media, data=DATA):
    prepare = Preparation(modality_of_source(data, MODEL), MODEL, 0)
    return prepare((0, Record("it", media, "a word", None)))[1]


# spectrograms


def test_the_spectrogram_has_the_numbers_of_librosa_and_of_the_definition():
    samples = noise(0.5)[:5120] + tone(0.5)[:5120]
    margin = np.pad(samples, 384, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(margin, 1024)[::256]
    amplitudes = np.abs(np.fft.rfft(windows * 0.5 * (1 - np.cos(2 * np.pi * np.arange(1024) / 1024))))
    ours = log_mel(samples, RATE)
    assert ours.shape == (20, 80)
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    np.testing.assert_allclose(np.exp(ours), np.maximum(amplitudes @ filters.T, 1e-5), rtol=1e-4)
    others = mel_filter_bank(513, 80, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(np.exp(ours), np.maximum(amplitudes @ others, 1e-5), rtol=1e-4)


def test_a_sound_is_filled_up_to_whole_frames():
    assert [len(log_mel(noise(1.0)[:count], RATE)) for count in (255, 256, 257, 2560)] == [1, 1, 2, 10]
    assert [frames_of(count / RATE, RATE) for count in (1, 256, 257, 2560)] == [1, 1, 2, 10]
    assert seconds_of(10, RATE) == 2560 / RATE


def test_the_range_of_a_spectrogram_becomes_minus_one_to_one_and_back():
    assert mel_to_unit(np.array([math.log(1e-5), 2.0])).tolist() == pytest.approx([-1, 1])
    values = log_mel(noise(0.2), RATE)
    np.testing.assert_allclose(unit_to_mel(mel_to_unit(values)), values, atol=1e-5)
    assert unit_to_mel(np.array([-1.5]))[0] == pytest.approx(math.log(1e-5))


def test_griffin_lim_gives_back_a_sound_of_the_same_spectrogram_in_the_same_place():
    samples = np.concatenate([np.zeros(5120, np.float32), tone(0.3, 600.0), np.zeros(5120, np.float32)])
    spectrogram = log_mel(samples, RATE)
    again = griffin_lim(spectrogram, RATE)
    assert len(again) == 256 * len(spectrogram)
    loud = np.flatnonzero(np.abs(again) > 0.1)
    assert abs(loud[0] - 5120) < 256
    assert abs(loud[-1] - (len(samples) - 5120)) < 256
    inside = slice(25, -25)
    peak = log_mel(again, RATE)[inside].argmax(axis=1)
    np.testing.assert_array_equal(peak, spectrogram[inside].argmax(axis=1))
    assert np.abs(log_mel(again, RATE)[inside].max(axis=1) - spectrogram[inside].max(axis=1)).max() < 0.3
    np.testing.assert_array_equal(again, griffin_lim(spectrogram, RATE))


# recordings


def test_a_stereo_file_of_another_rate_becomes_one_channel_of_ours(tmp_path):
    left, right = tone(0.5, 440.0, 44_100), tone(0.5, 880.0, 44_100, loud=0.25)
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    samples = read_sound(Sound(tmp_path / "both.wav"), DATA.media)
    assert len(samples) == RATE // 2
    wanted = (tone(0.5, 440.0) + tone(0.5, 880.0, loud=0.25)) / 2
    assert np.abs(samples - wanted)[500:-500].max() < 5e-3


def test_only_the_part_between_start_and_end_counts(tmp_path):
    parts = [tone(0.4, hertz) for hertz in (300.0, 600.0, 900.0)]
    soundfile.write(tmp_path / "three.flac", np.concatenate(parts), RATE)
    samples = read_sound(Sound(tmp_path / "three.flac", start=0.4, end=0.8), DATA.media)
    np.testing.assert_allclose(samples, parts[1], atol=1e-3)


def test_samples_in_memory_count_as_a_file_does(tmp_path):
    steps = (noise(0.3, 16_000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", steps, 16_000)
    ours = read_sound(Sound(steps, 16_000, 0.1, 0.2), DATA.media)
    np.testing.assert_array_equal(ours, read_sound(Sound(tmp_path / "a.wav", start=0.1, end=0.2), DATA.media))


def write(path, samples, rate=RATE):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return Sound(path)


def broken_off(path):
    soundfile.write(path, noise(0.5), RATE, subtype="PCM_16", format="FLAC")
    path.write_bytes(path.read_bytes()[:4000])
    return Sound(path)


def empty(path):
    path.write_bytes(b"no sound at all")
    return Sound(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: write(path, np.zeros(9000, np.float32)), "silent"),
        (lambda path: write(path, tone(600.0, rate=8000), 8000), r"600.00 s is longer than data.seconds=1.0; give"),
        (lambda path: write(path, np.full(9000, np.nan, np.float32)), "not finite"),
        (lambda path: write(path, noise(0.01)), r"0.010 s, but must have 0.02 s"),
        (lambda path: write(path, noise(0.5))._replace(start=0.4, end=0.3), "start before it ends"),
        (lambda path: write(path, noise(0.5))._replace(start=0.7), r"start=0.7 and it ends at 0.50"),
        (lambda path: Sound(path.with_name("missing.wav")), "there is no file"),
        (empty, "cannot be read"),
        (broken_off, "cannot be read|breaks off"),
    ],
)
def test_a_recording_that_cannot_be_used_is_a_bad_sample_with_its_reason(tmp_path, make, reason):
    found = prepared(make(tmp_path / "it.wav"))
    assert isinstance(found, BadSample)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)


def sweep(seconds=2.0, rate=44_100):
    """A tone that rises, so that each moment of it is another."""
    moments = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 400 * moments) * moments)).astype(np.float32)


def write_by_av(path, codec, samples, rate, *, format=None, layout="mono"):
    with av.open(str(path), "w", format=format) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        channels = np.stack([samples] * (2 if layout == "stereo" else 1))
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "format", "rate"),
    [("it.m4a", "aac", "ipod", 44_100), ("it.webm", "libopus", None, 48_000), ("it.mp4", "aac", None, 44_100)],
)
def test_what_libsndfile_does_not_know_is_read_by_pyav(tmp_path, name, codec, format, rate):
    samples = sweep(rate=rate)
    file = write_by_av(tmp_path / name, codec, samples, rate, format=format, layout="stereo")
    expected = librosa.resample(samples, orig_sr=rate, target_sr=RATE)
    wanted = SoundConfig(seconds=3.0)
    whole, part = read_sound(Sound(file), wanted), read_sound(Sound(file, start=0.5, end=1.2), wanted)
    assert abs(len(whole) - 2 * RATE) < 0.03 * RATE  # the encoder fills its last frame up
    assert len(part) == pytest.approx(0.7 * RATE, abs=1)
    assert np.sqrt(np.mean((whole[: 2 * RATE] - expected[: len(whole)]) ** 2)) < 0.02
    assert np.sqrt(np.mean((part - expected[RATE // 2 : RATE // 2 + len(part)]) ** 2)) < 0.02
    with pytest.raises(ValueError, match=r"a recording of 2\.0. s is longer than data.seconds=1.0"):
        read_sound(Sound(file), DATA.media)


def test_a_part_of_an_mp3_is_what_is_heard_then(tmp_path):
    """What libsndfile reads of an mp3 right after seeking is not."""
    samples = sweep()
    soundfile.write(tmp_path / "it.mp3", samples, 44_100)
    part = read_sound(Sound(tmp_path / "it.mp3", start=0.5, end=1.2), DATA.media)
    expected = librosa.resample(samples, orig_sr=44_100, target_sr=RATE)[RATE // 2 :][: len(part)]
    assert np.sqrt(np.mean((part - expected) ** 2)) < 0.02


def test_a_cut_recording_that_pyav_reads_breaks_off(tmp_path):
    content = write_by_av(tmp_path / "it.mka", "aac", sweep(), 44_100).read_bytes()
    (tmp_path / "it.mka").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"breaks off after 0\.9. s, but says that it has 2\.0"):
        read_sound(Sound(tmp_path / "it.mka"), SoundConfig(seconds=3.0))
    assert len(read_sound(Sound(tmp_path / "it.mka", start=0.2, end=0.7), DATA.media)) == pytest.approx(RATE / 2, abs=1)


def test_pictures_and_sounds_are_not_mistaken_for_each_other():
    picture, sound = np.zeros((8, 8, 3), np.uint8), Sound((noise(0.3) * 32767).astype(np.int16), RATE)
    assert "data.media is 'sounds'" in prepared(picture).reason
    assert "set it to 'sounds'" in prepared(sound, DataConfig(media=PictureConfig(image_size=8))).reason


def test_patches_of_a_sound_are_its_frames():
    with pytest.raises(ValueError, match="patch_size must be 1, but that of 'speech' is 2"):
        Config(model=ModelConfig(layers=1, heads=2, width=8, channels=80, patch_size=2, modality="speech"), data=DATA)
    with pytest.raises(ValueError, match=r"data\.seconds=-1\.0 must be positive"):
        DataConfig(media=SoundConfig(seconds=-1.0))


# sources


def folder_of_sounds(path):
    for name, seconds in (("a", 0.3), ("b", 0.2)):
        write(path / f"{name}.wav", tone(seconds))
    lines = [
        '{"audio": "a.wav", "caption": "hello", "pitch": 178.4}',
        '{"audio": "b.wav", "caption": "bye", "start": 0.05, "end": 0.15}',
        '{"audio": "b.wav", "caption": "low", "pitch": -3}',
    ]
    (path / "captions.jsonl").write_text("\n".join(lines))
    return path


def test_lines_of_a_folder_name_sounds_parts_of_them_and_pitches(tmp_path):
    source = FolderSource(folder_of_sounds(tmp_path))
    assert source[0] == Record("a.wav", Sound(tmp_path / "a.wav"), "hello", None, 178.4)
    assert source[1].media == Sound(tmp_path / "b.wav", start=0.05, end=0.15)
    assert source[2].reason == "the pitch is -3, but must be from 20 to 2000 Hz"


def test_the_pitch_stands_before_the_caption_in_tens_of_hertz(tmp_path):
    data = DataConfig(
        source=FolderConfig(path=str(folder_of_sounds(tmp_path))), media=SoundConfig(seconds=1.0, pitch=True)
    )
    source = open_source(data, MODEL)
    assert [source[index].caption for index in (0, 1)] == ["[180 Hz] hello", "bye"]


def test_a_prepared_set_gives_back_samples_rate_and_pitch(tmp_path):
    steps = (noise(0.3) * 32767).astype(np.int16)
    card = Card(name="noise", about="Noise.", origin="nowhere", licence="CC0", attribution="nobody", settings={})
    write_prepared(tmp_path / "noise", [PreparedSample("one", "a word", Sound(steps, RATE), 170.0)], card)
    record = PreparedSource(tmp_path / "noise")[0]
    np.testing.assert_array_equal(record.media.recording, steps)
    assert (record.media.rate, record.pitch, record.caption) == (RATE, 170.0, "a word")


def test_sounds_of_different_lengths_share_a_row(tmp_path):
    source = FolderSource(folder_of_sounds(tmp_path))
    with Stream(source, DATA, MODEL, seed=0, features=Lookup()) as stream:
        (batch,) = take(stream, 1)
    lengths = [26, 9]  # of 0.3 and 0.1 s, with the marker after the only row
    found = [(batch.tokens.segment_ids[0] == segment).sum() for segment in (1, 2)]
    assert sorted(found, reverse=True) == [length + 1 for length in lengths]
    example = prepared(source[0].media)
    assert isinstance(example, Example)
    segment = 1 + found.index(27)
    first = batch.tokens.patches[0, batch.tokens.segment_ids[0] == segment][:26]
    np.testing.assert_allclose(first, example.latents[0, 0], atol=1e-6)
