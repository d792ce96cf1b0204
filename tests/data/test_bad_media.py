"""Whatever a sample does when it is read: it is skipped, with its name and a reason that helps, and the run goes on."""

import io
import json
import os
import threading
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from lumina_jax.config import ClipConfig, DataConfig, ModelConfig, SoundConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import BadSample, Example, Record, reason_of
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.preparation import Preparation
from lumina_jax.modalities import modality_of_source, picture
from lumina_jax.modalities.decoding.kinds import file_kind, mistaken
from lumina_jax.modalities.decoding.media import Clip, Sound, Views
from tests.data.numbered import Lookup, take

MODEL = ModelConfig(layers=1, heads=2, width=16, patch_size=4, channels=3)
DATA = DataConfig(media=ClipConfig(image_size=16, frames=2), batch_rows=2, prefetch=4)
SPEECH = ModelConfig(layers=1, heads=2, width=8, channels=80, patch_size=1, modality="speech")
SOUNDS = DataConfig(media=SoundConfig(seconds=1.0))


def prepared(media, data=DATA, model=MODEL):
    """What becomes of a sample, within a minute."""
    found = []
    prepare = Preparation(modality_of_source(data, model), model, 0)
    record = Record("it", media, "a caption", None)
    thread = threading.Thread(target=lambda: found.append(prepare((0, record))[1]), daemon=True)
    thread.start()
    thread.join(60)
    assert found, "reading the sample hangs"
    return found[0]


def reason(media, data=DATA, model=MODEL):
    found = prepared(media, data, model)
    assert isinstance(found, BadSample)
    assert found.name == "it"
    assert "\n" not in found.reason
    return found.reason


def every_medium(file):
    """The reasons why a file can be no picture, no clip, no view of an object and no sound."""
    return [reason(file), reason(Clip(file)), reason(Views((file, file))), reason(Sound(file), SOUNDS, SPEECH)]


def encoded(picture, kind="PNG"):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


# one door


@pytest.mark.parametrize(
    "error",
    [
        *(KeyError("size"), MemoryError(), RecursionError("too deep"), RuntimeError("x"), OverflowError("y")),
        *(TypeError("z"), AttributeError("w"), ZeroDivisionError("v"), OSError(5, "Input/output error")),
        *(StopIteration(), EOFError(), AssertionError("u"), zlib.error("t"), ImportError("needs it")),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_whatever_decoding_raises_makes_the_sample_a_bad_one(monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(picture, "read_pictures", failing)
    assert str(error.args[0] if error.args else "").strip("'") in reason(b"anything")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_no_fault_of_the_sample(monkeypatch, error):
    def stopping(*_):
        raise error

    monkeypatch.setattr(picture, "read_pictures", stopping)
    prepare = Preparation(modality_of_source(DATA, MODEL), MODEL, 0)
    with pytest.raises(error):
        prepare((0, Record("it", b"anything", "a caption", None)))


class Failing:
    """A source of which one record cannot even be read."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise OverflowError("beyond all bounds")
        return Record(f"sample {index}", np.zeros((16, 16, 3), np.uint8), "black", None)


def test_a_record_that_cannot_be_read_is_a_bad_sample_too():
    with Stream(Failing(), DATA, MODEL, seed=0, features=Lookup()) as stream:
        take(stream, 8)
        assert list(stream.bad) == ["sample 5"]
        assert "beyond all bounds" in stream.bad["sample 5"]


def test_reasons_are_one_short_line():
    assert reason_of(ValueError("one\n  two\tthree")) == "one two three"
    assert reason_of(KeyError("size")) == "it cannot be read (KeyError: 'size')"
    assert "memory" in reason_of(MemoryError())
    assert len(reason_of(ValueError("x" * 10_000))) < 600


# what a name may stand for


def test_folders_pipes_devices_and_impossible_names_are_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name, said in {
        "": "is a folder",
        "pipe.png": "is a pipe, a socket or a device",
        "link.mp4": "is a pipe, a socket or a device",
        "zero.wav": "is a pipe, a socket or a device",
        "circle.png": "there is no file",
        "missing.png": "there is no file",
        "x" * 300 + ".png": "there is no file",
        "nul\0.png": "there is no file",
        "half\ud83d.png": "there is no file",
    }.items():
        for found in every_medium(tmp_path / name):
            assert said in found


@pytest.mark.parametrize("name", ["it.png", "it.jpg", "it.gif", "it.mp4", "it.wav", "it.raw", "it"])
@pytest.mark.parametrize("content", [b"", bytes(5000), b"\xff" * 5000, b"nothing of the kind"])
def test_empty_files_and_files_of_nothing_are_refused_under_every_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for found in every_medium(tmp_path / name):
        assert "empty" not in found or not content
        assert content or "it is empty" in found
        assert content != bytes(5000) or "begins with zeros" in found


# what a file really is


def test_memory_that_does_not_suffice_is_said_as_such(monkeypatch):
    def full(*_):
        raise MemoryError

    content = encoded(Image.new("RGBA", (20, 20)))
    monkeypatch.setattr("lumina_jax.modalities.decoding.pictures.rgb_on_white", full)
    assert "memory does not suffice to read it" in reason(content)
    monkeypatch.setattr("lumina_jax.modalities.decoding.clips.rgb_on_white", full)
    assert "memory does not suffice to read it" in reason(Clip(content))


def test_a_picture_is_read_whatever_its_name_says(tmp_path):
    (tmp_path / "it.mp4").write_bytes(encoded(Image.new("RGB", (20, 20), "red"), "JPEG"))
    assert isinstance(prepared(tmp_path / "it.mp4"), Example)
    assert isinstance(prepared(Clip(tmp_path / "it.mp4")), Example)


def test_a_sound_is_read_whatever_its_name_says(tmp_path):
    noise = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    soundfile.write(tmp_path / "it.wav", noise, 16_000)
    (tmp_path / "it.wav").rename(tmp_path / "it.raw")
    assert isinstance(prepared(Sound(tmp_path / "it.raw"), SOUNDS, SPEECH), Example)


def test_samples_without_a_header_are_told_to_get_one(tmp_path):
    (tmp_path / "x.raw").write_bytes(np.random.default_rng(0).bytes(10_000))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"audio": "x.raw", "caption": "noise"}))
    found = reason(FolderSource(tmp_path)[0].media, SOUNDS, SPEECH)
    assert "ffmpeg -f s16le -ar RATE" in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(90), "a HEIC picture; pip install pillow-heif, or save it as JPEG"),
        (b"\0\0\0\x18ftypmif1" + bytes(90), "a HEIC picture; pip install pillow-heif"),
        (b"\0\0\0\x18ftypisom" + bytes(90), 'an MPEG-4 video; name it as {"video": file}'),
        (b"\x1a\x45\xdf\xa3" + bytes(90), 'a Matroska or WebM video; name it as {"video": file}'),
        (b"RIFF\0\0\0\0WAVEfmt " + bytes(90), 'a WAV sound; name it as {"audio": file}'),
        (b"fLaC" + bytes(90), 'a FLAC sound; name it as {"audio": file}'),
        (b"\xff\x0a" + bytes(90), "a JPEG XL picture; save it as PNG or JPEG"),
        (b'\xef\xbb\xbf <svg xmlns="x"/>', "an SVG drawing; save it as PNG or JPEG"),
        (b"\n<!DOCTYPE HTML><html>", "a web page, as a failed download leaves it; download it again"),
        (b"%PDF-1.7 ", "a PDF document; save it as PNG or JPEG"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n",
            "a PostScript drawing; save it as",
        ),
        (b"PK\x03\x04" + bytes(90), "an archive; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; fetch the file itself"),
    ],
)
def test_what_is_no_picture_is_said_with_what_helps(content, said, monkeypatch):
    monkeypatch.setattr("lumina_jax.modalities.decoding.pictures._reads_heic", lambda: False)
    assert said in reason(content)


def test_heic_pictures_are_read_where_the_package_is_installed(monkeypatch):
    """With a reader instead of that of pillow-heif, which makes the file a red picture."""
    import sys
    from types import ModuleType

    def opener(file, _name):
        red = Image.new("RGB", (20, 20), "red")
        red.fp = file
        return red

    fake = ModuleType("pillow_heif")
    fake.register_heif_opener = lambda: Image.register_open("HEIF", opener, lambda start: start[4:12] == b"ftypheic")
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    found = prepared(b"\0\0\0\x18ftypheic" + bytes(90))
    assert isinstance(found, Example)
    np.testing.assert_allclose(found.latents[0, 0, 0], [1, -1, -1])


def test_avif_pictures_are_read():
    assert isinstance(prepared(encoded(Image.new("RGB", (20, 20), "red"), "AVIF")), Example)


def test_m4a_and_aac_say_what_helps_where_pyav_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    for name, content in {"it.m4a": b"\0\0\0\x18ftypM4A " + bytes(90), "it.aac": b"\xff\xf1" + bytes(90)}.items():
        (tmp_path / name).write_bytes(content)
        found = reason(Sound(tmp_path / name), SOUNDS, SPEECH)
        assert "pip install 'lumina_jax[media]', or convert it: `ffmpeg -i IN OUT.flac`" in found
    (tmp_path / "it.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(90))
    assert "reading videos needs PyAV: pip install 'lumina_jax[media]'" in reason(Clip(tmp_path / "it.mkv"))


def test_every_kind_that_is_known_is_found_in_a_path_and_in_bytes(tmp_path):
    for content in (b"GIF89a" + bytes(20), b"\x89PNG\r\n\x1a\n" + bytes(20), b"RIFF\0\0\0\0AVI LIST", b"Rar!\x1a"):
        (tmp_path / "it").write_bytes(content)
        assert file_kind(tmp_path / "it") == file_kind(content) is not None
    assert file_kind(b"nothing") is None
    assert mistaken(b"\x89PNG\r\n\x1a\n", "image") is None  # it is what it should be, and broken


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_enormous_pictures_are_refused_before_they_are_decoded():
    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    def png(width, height):
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x06\0\0\0"
        return (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
        )

    for content in (png(10_000, 10_000), png(100_000, 100_000)):
        assert "safe limit of 89478485; make it smaller" in reason(content)
        assert "safe limit of 89478485; make it smaller" in reason(Clip(content))
