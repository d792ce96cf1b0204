"""Lines of captions files that hold anything at all."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.data.example import BadSample, Record, captions
from lumina_jax.data.file_sources import FolderSource, LuminaSource
from lumina_jax.data.sources import PitchedSource
from lumina_jax.modalities.decoding.media import Clip, Sound


def lines(path, items):
    """A .jsonl of JSON values, or of text as it is."""
    path.write_bytes(b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items))
    return path


def only(tmp_path, item):
    return FolderSource(lines(tmp_path / "captions.jsonl", [item]))[0]


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**40, -(10**300), 2**31, 1e308, math.nan, math.inf, -0.0, True])
)
NAMES = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cs"])),
    st.sampled_from(
        ["a.png", "a" * 300, "a/" * 3000, "a\0b", "\ud83d.png", "\udc80.png", "..", "/", "a\\b.png", "gs://a"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, NAMES), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=4
)
KEYS = ("image", "video", "audio", "views", "file_name", "path", "caption", "text", "prompt", "conversations", "label",
        "pitch", "start", "end")  # fmt: skip
ITEMS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.fixed_dictionaries({"image": NAMES}, optional={"caption": NAMES, "label": NUMBERS}),
    st.fixed_dictionaries({"audio": st.just("a.wav")}, optional={"pitch": NUMBERS, "start": NUMBERS, "end": NUMBERS}),
    st.fixed_dictionaries({"conversations": st.lists(VALUES | st.fixed_dictionaries({"value": NAMES}), max_size=2)}),
    st.binary().map(lambda text: text.replace(b"\n", b"") or b"{"),
    st.just(b"[" * 5000),
    st.just(b'{"image": "a.png", "label": ' + b"1" * 5000 + b"}"),
)


@given(st.lists(ITEMS, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_line_of_anything_is_a_record_that_can_be_used_or_a_bad_sample(items):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines(folder / "captions.jsonl", [{"image": "first.png", "caption": "first"}, *items])
        (folder / "data.yaml").write_text("META: [{path: captions.jsonl, root: here}]")
        for source in (PitchedSource(FolderSource(folder)), LuminaSource(folder / "data.yaml")):
            assert len(source) >= 1 + sum(not isinstance(item, bytes) for item in items)
            for index in range(len(source)):
                check(source[index])
            assert all(text.encode() is not None for text in captions(source))


def check(sample):
    """A sample of which nothing later can fail but the reading of its file."""
    assert isinstance(sample, Record | BadSample)
    assert sample.name.encode()
    if isinstance(sample, BadSample):
        assert sample.reason.encode()
        assert len(sample.reason) < 1000
        return
    assert sample.caption is None or sample.caption.encode() is not None
    assert sample.label is None or abs(sample.label) < 2**31
    assert sample.pitch is None or math.isfinite(math.log2(sample.pitch))
    if isinstance(sample.media, Clip | Sound):
        assert 0 <= sample.media.start < math.inf
        assert sample.media.end is None or sample.media.start < sample.media.end < math.inf
    elif isinstance(sample.media, Path):
        assert not sample.media.is_file()  # which raises nothing, however long the name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"caption": "cat \ud83d"}, "half of a letter"),
        ({"caption": ["a cat", "a pet"]}, "one line for each caption"),
        ({"caption": 7}, "the caption is 7, which is not text"),
        ({"label": 3.5}, "the label is 3.5, which is not a whole number"),
        ({"label": 10**30}, "more than there can be classes"),
        ({"pitch": math.nan}, "must be from 20 to 2000 Hz"),
        ({"pitch": math.inf}, "must be from 20 to 2000 Hz"),
        ({"image": "a" * 300}, "longer than the name of a file"),
        ({"image": "a\0"}, "null character"),
        ({"image": "\ud83d.png"}, "not UTF-8"),
        ({"image": "https://x.org/a.png"}, "download it first"),
        ({"video": "a.mp4", "start": math.nan}, "not negative"),
        ({"video": "a.mp4", "start": -1}, "not negative"),
        ({"video": "a.mp4", "end": 10**400}, "not negative"),
        ({"audio": "a.wav", "start": 2, "end": 1.5}, "'end' must come after 'start'"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, fields, reason):
    assert reason in only(tmp_path, {"image": "a.png", "caption": "a cat"} | fields).reason


def test_captions_and_names_of_all_letters_are_kept(tmp_path):
    text = "a cat \U0001f600 \u2028 \x85 猫"
    record = only(tmp_path, {"image": "猫 \u2028.png", "caption": text})
    assert (record.name, record.caption) == ("猫 \u2028.png", text)


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_marks_of_utf_8_and_line_ends_of_windows_change_nothing(tmp_path, start, end):
    line = json.dumps({"image": "a.png", "caption": "猫\u2028"}, ensure_ascii=False).encode()
    (tmp_path / "captions.jsonl").write_bytes(start + line + end + end + line + end)
    source = FolderSource(tmp_path)
    assert [record.caption for record in (source[0], source[1])] == ["猫"] * 2
    assert len(source) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_captions_in_utf_16_are_refused_with_the_remedy(tmp_path, encoding):
    for name in ("captions.jsonl", "captions.json"):
        (tmp_path / name).write_bytes('[{"image": "a.png"}]'.encode(encoding))
        with pytest.raises(ValueError, match="save it as UTF-8"):
            FolderSource(tmp_path / name)


def test_names_with_the_backslashes_of_windows_are_found(tmp_path):
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "rex.png").touch()
    (tmp_path / "a\\b.png").touch()
    assert only(tmp_path, {"image": "dogs\\rex.png"}).media == tmp_path / "dogs" / "rex.png"
    assert only(tmp_path, {"image": "a\\b.png"}).media == tmp_path / "a\\b.png"
    assert only(tmp_path, {"image": "/elsewhere/rex.png"}).media == Path("/elsewhere/rex.png")


def test_hugging_face_s_keys_are_understood(tmp_path):
    assert only(tmp_path, {"file_name": "a.png", "text": "a cat"})[1:3] == (tmp_path / "a.png", "a cat")
    assert only(tmp_path, {"file_name": "a.mp4", "text": "x"}).media == Clip(tmp_path / "a.mp4")
    assert only(tmp_path, {"file_name": "a.WAV", "text": "x"}).media == Sound(tmp_path / "a.WAV")
    assert only(tmp_path, {"file_name": "a", "caption": "x", "text": "y"})[1:3] == (tmp_path / "a", "x")
    assert only(tmp_path, {"file_name": 3}).reason == "'file_name' must name a file, but is 3"


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("{path: items.jsonl, root: 2024}", "root"),
        ("{path: items.jsonl, type: [a]}", "type"),
        ("{path: items.jsonl, ratio: half}", "ratio"),
        ("{path: items.jsonl, ratio: .nan}", "ratio=nan"),
        ("{path: items.jsonl, ratio: true}", "ratio"),
        ("{path: [items.jsonl]}", "path"),
        ("{path: null}", "path"),
        ("{path: ''}", "path"),
        ('{path: "a\\0b.jsonl"}', "path"),
        (f"{{path: {'a' * 300}.jsonl}}", "path"),
        ("items.jsonl", "META"),
    ],
)
def test_a_wrong_value_of_the_released_yaml_is_named(tmp_path, entry, word):
    lines(tmp_path / "items.jsonl", [{"path": "a.png", "prompt": "x"}])
    (tmp_path / "data.yaml").write_text(f"META:\n  - {entry}\n")
    with pytest.raises(ValueError, match=word) as error:
        LuminaSource(tmp_path / "data.yaml")
    assert "data.yaml" in str(error.value)


def test_keys_of_the_released_yaml_may_be_empty(tmp_path):
    lines(tmp_path / "items.jsonl", [{"path": "a.png", "prompt": "x"}])
    (tmp_path / "data.yaml").write_text("META: [{path: items.jsonl, root: , ratio: 1, type: , author: me}]")
    assert LuminaSource(tmp_path / "data.yaml")[0].caption == "x"
