"""Sources that change: while they are read, between two starts, and from host to host."""

import errno
import json
import logging
import os
import resource

import pytest
from PIL import Image

from lumina_jax.config import DataConfig, EmojiConfig, ModelConfig
from lumina_jax.data import annotations
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import BadSample, ChangedSourceError, contents
from lumina_jax.data.file_sources import FolderSource, LuminaSource
from lumina_jax.data.prepared import Card, PreparedSample, PreparedSource, write_prepared
from lumina_jax.data.sources import FirstSamples, MixedSource, PitchedSource, open_source
from tests.data.numbered import LABEL, Numbered, labels_of, small, take

MODEL = ModelConfig(layers=1, heads=2, width=8, channels=3)


def lines_of(count, word="picture"):
    """Lines of one length, each of a picture whose number is its label."""
    return [
        json.dumps({"image": f"{index:02}.png", "caption": f"{word} {index:02}", "label": index})
        for index in range(count)
    ]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")


def replace(path, lines):
    """As editors save: a new file that takes the name."""
    write(path.with_suffix(".new"), lines)
    os.replace(path.with_suffix(".new"), path)


def pairs(source):
    return [(record.name, record.caption) for record in map(source.__getitem__, range(len(source)))]


@pytest.fixture
def folder(tmp_path):
    """Ten gray pictures, each of a gray that its label says."""
    for index in range(10):
        Image.new("RGB", (8, 8), (index,) * 3).save(tmp_path / f"{index:02}.png")
    write(tmp_path / "captions.jsonl", lines_of(10))
    return tmp_path


# while they are read


@pytest.fixture
def large(monkeypatch):
    """Every file counts as a large one, which is not copied."""
    monkeypatch.setattr(annotations, "COPIED_BYTES", 0)


def test_captions_that_are_edited_stay_as_they_were_opened(folder, caplog, monkeypatch):
    monkeypatch.setattr(annotations, "SECONDS_BETWEEN_LOOKS", 0.0)
    for change in (replace, write):
        write(folder / "captions.jsonl", lines_of(10))
        source = FolderSource(folder)
        expected = pairs(source)
        caplog.clear()
        change(folder / "captions.jsonl", lines_of(10)[::-1])
        assert pairs(source) == expected
        assert caplog.text.count("captions.jsonl was changed") == 1
        assert pairs(FolderSource(folder)) == expected[::-1]
        (folder / "captions.jsonl").unlink()
        assert pairs(source) == expected


def test_a_large_file_that_is_replaced_is_read_as_it_was_opened(folder, caplog, monkeypatch, large):
    monkeypatch.setattr(annotations, "SECONDS_BETWEEN_LOOKS", 0.0)
    source = FolderSource(folder)
    expected = pairs(source)
    replace(folder / "captions.jsonl", lines_of(10)[::-1])
    assert pairs(source) == expected
    assert caplog.text.count("captions.jsonl was changed") == 1
    assert pairs(FolderSource(folder)) == expected[::-1]


@pytest.mark.parametrize("lines", [lines_of(10)[::-1], lines_of(10, "drawing"), lines_of(3), []])
def test_a_large_file_that_is_overwritten_never_gives_a_caption_to_another_picture(folder, lines, large):
    source = FolderSource(folder)
    expected = pairs(source)
    write(folder / "captions.jsonl", lines)
    for index in range(10):
        try:
            record = source[index]
        except ChangedSourceError:
            continue
        assert (record.name, record.caption) == expected[index]
    with pytest.raises(ChangedSourceError, match=r"captions\.jsonl was overwritten.*start the same command again"):
        pairs(source)


@pytest.mark.parametrize("copied", [0, 10**9])
def test_captions_that_are_touched_are_the_same(folder, caplog, monkeypatch, copied):
    monkeypatch.setattr(annotations, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(annotations, "COPIED_BYTES", copied)
    source = FolderSource(folder)
    expected = pairs(source)
    os.utime(folder / "captions.jsonl", (0, 0))
    assert pairs(source) == expected
    assert caplog.text == ""
    with open(folder / "captions.jsonl", "a") as file:
        file.write(lines_of(11)[10])
    assert pairs(source) == expected
    assert caplog.text.count("captions.jsonl was changed") == 1
    assert len(FolderSource(folder)) == 11


def test_captions_are_read_where_there_is_no_room_for_a_copy(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(annotations.shutil, "copyfileobj", full)
    assert pairs(FolderSource(folder)) == [(f"{index:02}.png", f"picture {index:02}") for index in range(10)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_reads_what_was_opened(folder, workers, caplog, capfd):
    """Worker processes begin to read when the first batch is made."""
    source = FolderSource(folder)
    write(folder / "captions.jsonl", lines_of(10)[::-1])
    with Stream(source, small(workers=workers, batch_rows=5), LABEL, seed=0) as stream:
        batches = take(stream, 2)
        assert sorted(labels_of(batches)) == list(range(10))
        for batch in batches:
            grays = (batch.tokens.patches[:, 0, 0] + 1) * 127.5
            assert grays.round().tolist() == batch.labels[:, 0].tolist()
        assert source[0].name == "00.png"
    assert (caplog.text + capfd.readouterr().err).count("captions.jsonl was changed") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_stops_when_what_was_opened_is_lost(folder, workers, large):
    data = small(workers=workers, prefetch=1, batch_rows=5)
    with Stream(FolderSource(folder), data, LABEL, seed=0) as stream:
        next(stream)
        write(folder / "captions.jsonl", lines_of(10)[::-1])
        with pytest.raises(ValueError, match="was overwritten"):
            take(stream, 4)


def test_blank_lines_count_in_the_numbers_of_lines_alone(tmp_path):
    write(tmp_path / "captions.jsonl", ["", "{", " ", "\r", "[]", '{"image": "a.png", "caption": "x"}\r', "", "3"])
    source = FolderSource(tmp_path)
    assert [source[index].name for index in range(4)] == [
        *(f"captions.jsonl, line {number}" for number in (2, 5)),
        "a.png",
        "captions.jsonl, line 8",
    ]


def test_a_list_may_name_more_files_than_a_process_may_usually_open(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    write(tmp_path / "items.jsonl", ['{"path": "a.png", "prompt": "x"}'])
    (tmp_path / "data.yaml").write_text("META:\n" + "  - {path: items.jsonl}\n" * 200)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, limits[1]))
        assert len(LuminaSource(tmp_path / "data.yaml")) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# between starts, and from host to host


def test_contents_say_whether_two_sources_hold_the_same(folder, tmp_path_factory):
    def of(lines, name="captions.jsonl"):
        path = tmp_path_factory.mktemp("copy") / name
        write(path, lines)
        return contents(FolderSource(path))

    known = contents(FolderSource(folder))
    assert of(lines_of(10), "other.jsonl") == known
    assert of([line + "\r" for line in lines_of(10)]) == known
    turned = of(lines_of(10)[::-1])
    assert turned.ordered != known.ordered
    assert turned.unordered == known.unordered
    for other in (lines_of(9), lines_of(11), lines_of(10, "Picture"), lines_of(9) + lines_of(1)):
        assert of(other).ordered != known.ordered
        assert of(other).unordered != known.unordered


def test_contents_follow_from_parts_and_settings(folder, tmp_path):
    (tmp_path / "data.yaml").write_text("META: [{path: captions.jsonl, ratio: 0.5}]")
    (tmp_path / "other.yaml").write_text("META: [{path: captions.jsonl, ratio: 0.6}]")
    source = FolderSource(folder)
    found = [
        contents(one)
        for one in (
            source,
            FirstSamples(source, 4),
            FirstSamples(source, 5),
            PitchedSource(source),
            MixedSource([source, FirstSamples(source, 4)]),
            MixedSource([FirstSamples(source, 4), source]),
            LuminaSource(tmp_path / "data.yaml"),
            LuminaSource(tmp_path / "other.yaml"),
            open_source(DataConfig(source=EmojiConfig(emoji_names=8)), MODEL),
            open_source(DataConfig(source=EmojiConfig(emoji_names=9)), MODEL),
            Numbered(3),
        )
    ]
    assert [one.samples for one in found] == [10, 4, 5, 10, 14, 14, 5, 6, 14, 16, 3]
    assert len({one.ordered for one in found}) == len(found)
    assert contents(FirstSamples(FolderSource(folder), 4)) == found[1]


def test_contents_of_a_json_list_and_of_a_prepared_folder_change_with_them(tmp_path):
    def of_list(items):
        (tmp_path / "items.json").write_text(json.dumps(items))
        (tmp_path / "data.yaml").write_text("META: [{path: items.json}]")
        return contents(LuminaSource(tmp_path / "data.yaml"))

    items = [{"path": "a.png", "prompt": "x"}, {"path": "b.png", "prompt": "\ud83d"}]
    assert of_list(items) == of_list(items)
    assert of_list(items).ordered != of_list(items[::-1]).ordered
    card = Card(name="noise", about="", origin="", licence="", attribution="", settings={})
    pixels = Numbered(3)[0].media[None]
    for name, samples in (("one", 1), ("two", 2), ("again", 2)):
        write_prepared(tmp_path / name, [PreparedSample(f"{index}", "x", pixels) for index in range(samples)], card)
    one, two, again = (contents(PreparedSource(tmp_path / name)) for name in ("one", "two", "again"))
    assert one.ordered != two.ordered
    assert two == again


def resumed(folder, lines, caplog, before=2):
    """A stream that has read `before` batches of ten lines, and one that goes on with others; and what it says."""
    write(folder / "captions.jsonl", lines_of(10))
    with Stream(FolderSource(folder), small(batch_rows=2), LABEL, seed=0) as stream:
        labels = labels_of(take(stream, before))
        state = json.loads(json.dumps(stream.state()))
    replace(folder / "captions.jsonl", lines)
    stream = Stream(FolderSource(folder), small(batch_rows=2), LABEL, seed=0)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        stream.restore(state)
    return labels, stream, caplog.text


def test_captions_that_were_corrected_are_said_and_the_epoch_goes_on(folder, caplog):
    labels, stream, said = resumed(folder, lines_of(10, "drawing"), caplog)
    with stream:
        assert sorted(labels + labels_of(take(stream, 3))) == list(range(10))
    assert "has 10 samples as before, but not all of them say the same" in said
    assert "captions.jsonl" in said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (lines_of(10)[::-1], "the same 10 samples in another order"),
        (lines_of(8), "has 8 samples, but had 10"),
        (lines_of(10) + lines_of(10)[:2], "has 12 samples, but had 10"),
    ],
)
def test_a_new_epoch_begins_with_samples_of_another_order_or_number(folder, caplog, lines, words):
    _, stream, said = resumed(folder, lines, caplog)
    with stream:
        count = len(lines)
        read = labels_of(take(stream, count))  # two epochs of it
    assert sorted(read[:count]) == sorted(read[count:]) == sorted(json.loads(line)["label"] for line in lines)
    assert words in said
    assert "a new epoch begins" in said


def test_a_source_that_is_the_same_resumes_without_a_word(folder, caplog):
    labels, stream, said = resumed(folder, lines_of(10), caplog)
    with stream:
        assert sorted(labels + labels_of(take(stream, 3))) == list(range(10))
    assert said == ""


def test_a_state_of_an_earlier_version_resumes(folder):
    with Stream(FolderSource(folder), small(batch_rows=2), LABEL, seed=0) as stream:
        labels = labels_of(take(stream, 2))
        state = {name: value for name, value in stream.state().items() if "ordered" not in name}
    with Stream(FolderSource(folder), small(batch_rows=2), LABEL, seed=0) as stream:
        stream.restore(state | {"bad": {"00.png": "it was broken"}})
        assert sorted(labels + labels_of(take(stream, 3))) == list(range(10))
        assert stream.bad == {}


def test_samples_that_were_repaired_count_no_more_after_a_restart(folder):
    for name in ("03.png", "05.png"):
        (folder / name).rename(folder / f"{name}.away")
    with Stream(FolderSource(folder), small(batch_rows=2, bad_samples=2), LABEL, seed=0) as stream:
        take(stream, 4)
        assert sorted(stream.bad) == ["03.png", "05.png"]
        state = json.loads(json.dumps(stream.state()))
    (folder / "03.png.away").rename(folder / "03.png")
    (folder / "07.png").unlink()
    with Stream(FolderSource(folder), small(batch_rows=2, bad_samples=2), LABEL, seed=0) as stream:
        stream.restore(state)
        assert 3 in labels_of(take(stream, 10))
        assert sorted(stream.bad) == ["05.png", "07.png"]


def test_what_cannot_be_a_sample_stays_a_bad_sample(tmp_path):
    write(tmp_path / "captions.jsonl", ["[" * 5000, "1" * 5000, '{"image": 1' + "0" * 4999 + "}"])
    source = FolderSource(tmp_path)
    assert all(isinstance(source[index], BadSample) for index in range(3))
