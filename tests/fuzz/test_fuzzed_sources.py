"""Sources of data, given anything, hand out examples and name what they skip, or say what is wrong when they open."""

import io
import json
import wave

import av
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lumina_jax.config import ClipConfig, DataConfig, ModelConfig, SoundConfig
from lumina_jax.data.example import BadSample, Example
from lumina_jax.data.preparation import Preparation
from lumina_jax.data.sources import open_source
from lumina_jax.modalities import modality_of_source
from tests.fuzz.mutations import bytes_of, documents, fuzzed, texts_of, values

pytestmark = pytest.mark.slow
MODEL = ModelConfig(layers=1, heads=2, width=16, patch_size=8, channels=3)
LINES = [
    {"image": "picture.png", "caption": "a cat", "label": 1},
    {"video": "clip.gif", "caption": "moving", "start": 0.0, "end": 1.0},
    {"views": ["picture.png", "picture.png"], "caption": "a chair"},
    {"audio": "sound.wav", "caption": "seven", "pitch": 180.0, "start": 0.0, "end": 0.5},
]
META = {"META": [{"path": "items.json", "root": "", "ratio": 0.5, "type": "a"}]}
ITEMS = [
    {"image": "picture.png", "conversations": [{"value": ""}, {"value": "a cat"}]},
    {"path": "picture.png", "prompt": "a dog"},
]


def picture(kind, **options):
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.full((24, 16, 3), 40 * index, np.uint8)) for index in range(4)]
    frames[0].save(buffer, kind, **options | ({"save_all": True, "append_images": frames[1:]} if kind == "GIF" else {}))
    return buffer.getvalue()


def sound():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(8000, np.int16).tobytes())
    return buffer.getvalue()


def film(kind, codec="libx264"):
    """Moving pictures and a sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        pictures, track = container.add_stream(codec, rate=10), container.add_stream("aac", rate=16_000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 32, 24, "yuv420p"
        for index in range(8):
            shown = np.full((24, 32, 3), 30 * index, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        heard = av.AudioFrame.from_ndarray(np.ones((1, 8000), np.float32) / 2, format="fltp", layout="mono")
        heard.sample_rate = 16_000
        for stream, last in ((track, heard), (track, None), (pictures, None)):
            container.mux(stream.encode(last))
    return buffer.getvalue()


FILES = {
    "picture.png": picture("PNG"),
    "picture.jpg": picture("JPEG"),
    "picture.webp": picture("WEBP"),
    "clip.gif": picture("GIF"),
    "sound.wav": sound(),
    "film.mp4": film("mp4"),
    "film.mkv": film("matroska"),
    "film.ts": film("mpegts", "mpeg2video"),
    "film.avi": film("avi", "mpeg4"),
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def read(folder, *, source="folder", path=None, sounds=False):
    """Open a source, and prepare all of its samples."""
    media = SoundConfig(seconds=0.5, sample_rate=16_000) if sounds else ClipConfig(image_size=16, frames=2)
    model = ModelConfig(layers=1, heads=2, width=16, patch_size=1, channels=80) if sounds else MODEL
    data = DataConfig(media=media).replace(source=source, path=str(path or folder))
    try:
        opened = open_source(data, model)
    except ValueError:
        return
    prepare = Preparation(modality_of_source(data, model), model, 0)
    for index in range(len(opened)):
        _, sample = prepare((index, opened[index]))
        assert isinstance(sample, Example | BadSample)
        if isinstance(sample, Example):
            assert np.isfinite(sample.latents).all()
            sample.caption.encode()
        else:
            assert sample.name
            assert sample.reason


@fuzzed(0.1)
@given(lines=st.lists(st.sampled_from(LINES).flatmap(texts_of), min_size=1, max_size=3), sounds=st.booleans())
def test_any_line_of_captions(folder, lines, sounds):
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    read(folder, sounds=sounds)


@fuzzed(0.05)
@given(meta=documents(META) | values, items=texts_of(ITEMS))
def test_any_list_in_the_released_format(folder, meta, items):
    (folder / "items.json").write_bytes(items)
    try:
        text = yaml.safe_dump(meta, allow_unicode=True)
        (folder / "list.yaml").write_text(text)
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    read(folder, source="lumina", path=folder / "list.yaml")


@fuzzed(0.15)
@given(data=st.data())
def test_any_bytes_of_a_picture_clip_or_sound(folder, data):
    name = data.draw(st.sampled_from([*FILES]))
    kind = data.draw(st.sampled_from(["image", "video", "audio"]))
    (folder / name).write_bytes(data.draw(bytes_of(FILES[name], header=64)))
    (folder / "captions.jsonl").write_text(json.dumps({kind: name, "caption": "x"}))
    read(folder, sounds=kind == "audio")
