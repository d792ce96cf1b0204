"""Folders without a captions file: captions beside pictures, folders of classes, and what Hugging Face writes."""

import contextlib
import csv
import json
import os
import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumina_jax.config import DataConfig, FolderConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.example import BadSample, Record, contents
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.sources import open_source
from lumina_jax.modalities.decoding.media import Clip, Sound
from tests.data.numbered import LABEL, TEXT, labels_of, small, take


def put(folder, *names, content=b""):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def samples(folder):
    source = FolderSource(folder)
    return [source[index] for index in range(len(source))]


def told(folder):
    """Name, caption and label of each sample."""
    return [(record.name, record.caption, record.label) for record in samples(folder)]


# captions beside pictures


def test_a_text_beside_a_picture_is_its_caption(tmp_path):
    put(tmp_path, "cat.png", "dog.JPG", "more/bird.webp", "fish.png")
    (tmp_path / "cat.txt").write_text("a sleeping cat\n", encoding="utf-8-sig")
    (tmp_path / "dog.txt").write_text("ein Hund, groß", encoding="utf-16")
    (tmp_path / "more" / "bird.caption").write_text("a bird\r\n")
    (tmp_path / "fish.png.txt").write_text("a fish")
    assert told(tmp_path) == [
        ("cat.png", "a sleeping cat", None),
        ("dog.JPG", "ein Hund, groß", None),
        ("fish.png", "a fish", None),
        ("more/bird.webp", "a bird", 0),
    ]
    assert samples(tmp_path)[0].media == tmp_path / "cat.png"


def test_a_picture_without_a_text_is_named_and_no_class_is_made_up(tmp_path):
    put(tmp_path, "10_dogs/a.png", "10_dogs/b.png", "10_dogs/c.png", "10_dogs/notes.txt")
    put(tmp_path, "10_dogs/a.txt", content=b"a dog")
    put(tmp_path, "10_dogs/c.txt", content=b"caf\xe9")
    first, second, third = samples(tmp_path)
    assert (first.caption, second.caption) == ("a dog", None)
    assert isinstance(third, BadSample)
    assert "10_dogs/c.txt cannot be read" in third.reason


def test_texts_that_change_while_they_are_used_stay_as_they_were_opened(tmp_path):
    put(tmp_path, "cat.png")
    put(tmp_path, "cat.txt", content=b"a cat")
    source = FolderSource(tmp_path)
    put(tmp_path, "cat.txt", content=b"a dog")
    put(tmp_path, "bird.png")
    assert [source[index].caption for index in range(len(source))] == ["a cat"]
    assert pickle.loads(pickle.dumps(source))[0].caption == "a cat"
    assert contents(FolderSource(tmp_path)) != contents(source)


# one setting for all captions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("{name}, sketch style", ["red heart, sketch style", "more", "pizza slice 2, sketch style"]),
        ("a photo of zbx dog", ["a photo of zbx dog", "more", "a photo of zbx dog"]),
        ("{caption}, by {name} {", ["a big heart, by red heart {", "more", None]),
    ],
)
def test_a_caption_for_all_has_the_name_of_the_file_or_its_own_caption(tmp_path, caption, expected):
    put(tmp_path, "red_heart.png", "more/b.gif", "more/pizza-slice_2.jpg")
    (tmp_path / "captions.jsonl").write_text(
        '{"image": "red_heart.png", "caption": "a big heart"}\n'
        '{"video": "more/b.gif", "caption": ["two"]}\n{"image": "more/pizza-slice_2.jpg"}\n'
    )
    found = [FolderSource(tmp_path, caption=caption)[index] for index in (0, 2)]
    assert [getattr(sample, "caption", None) for sample in found] == [expected[0], expected[2]]
    if expected[2] is None:
        assert "has no caption for data.caption='{caption}, by {name} {'" in found[1].reason
    assert contents(FolderSource(tmp_path, caption=caption)) != contents(FolderSource(tmp_path))


def test_pictures_without_captions_need_only_the_setting(tmp_path):
    put(tmp_path, "red-heart.png", "sun.png")
    with pytest.raises(ValueError, match=r"or set data.caption, such as .{name}. for"):
        FolderSource(tmp_path)
    data = DataConfig(source=FolderConfig(path=str(tmp_path), caption="{name}"))
    source = open_source(data, TEXT)
    assert [source[index].caption for index in range(len(source))] == ["red heart", "sun"]
    with pytest.raises(ValueError, match=r"data.caption='{file}' may contain {name} and {caption}, but not {file}"):
        FolderConfig(path="pictures", caption="{file}")


# folders of classes


def test_folders_name_captions_and_number_labels(tmp_path):
    put(tmp_path, "tabby_cat/1.PNG", "tabby_cat/deeper/2.jpeg", "dog/1.png", "README.md", "no pictures/notes.md")
    assert told(tmp_path) == [
        ("dog/1.png", "dog", 0),
        ("tabby_cat/1.PNG", "tabby cat", 1),
        ("tabby_cat/deeper/2.jpeg", "tabby cat", 1),
    ]
    assert FolderSource(tmp_path).classes == ("dog", "tabby_cat")


def test_clips_and_sounds_are_told_by_their_endings(tmp_path):
    put(tmp_path, "a/1.mp4", "a/2.gif", "b/1.wav")
    assert [type(sample.media) for sample in samples(tmp_path)] == [Clip, Clip, Sound]


def test_hidden_files_and_those_of_a_mac_are_left_out(tmp_path):
    put(tmp_path, "a/1.png", "a/._1.png", "a/.DS_Store", ".cache/2.png", "__MACOSX/3.png", "._captions.jsonl")
    assert told(tmp_path) == [("a/1.png", "a", 0)]


def test_a_folder_called_like_a_picture_is_a_folder(tmp_path):
    put(tmp_path, "dogs.png/1.png", "captions.jsonl/2.png")
    assert told(tmp_path) == [("captions.jsonl/2.png", "captions.jsonl", 0), ("dogs.png/1.png", "dogs.png", 1)]


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path):
    put(tmp_path, "data/a/1.png", "elsewhere/2.png")
    data = tmp_path / "data"
    (data / "b").symlink_to(tmp_path / "elsewhere")
    (data / "b" / "again").symlink_to(data)
    (data / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (data / "a" / "self.png").symlink_to(data / "a" / "self.png")
    assert [name for name, *_ in told(data)] == ["a/1.png", "a/gone.png", "a/self.png", "b/2.png"]


def test_a_name_that_is_not_utf_8_is_a_bad_sample_with_a_name_that_prints(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).touch()
    good, bad = samples(tmp_path)
    assert isinstance(good, Record)
    assert isinstance(bad, BadSample)
    assert "caf\\udce9.png" in bad.reason.encode().decode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    put(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b").chmod(0)
    with pytest.raises(ValueError, match=r"b cannot be listed"):
        FolderSource(tmp_path)
    (tmp_path / "b").chmod(0o700)


@pytest.mark.parametrize(("model", "workers"), [(LABEL, 0), (LABEL, 1), (TEXT, 0)])
def test_training_reads_folders_of_classes(tmp_path, model, workers):
    for index in range(4):
        (tmp_path / f"class {index}").mkdir()
        Image.new("RGB", (8, 8), (index,) * 3).save(tmp_path / f"class {index}" / "picture.png")
    source = open_source(DataConfig(source=FolderConfig(path=str(tmp_path))), model)
    with Stream(source, small(workers=workers), model, seed=0) as stream:
        (batch,) = take(stream, 1)
    grays = ((batch.tokens.patches[:, 0, 0] + 1) * 127.5).round().tolist()
    assert sorted(grays) == list(range(4))
    if model is LABEL:
        assert labels_of([batch]) == grays


def test_more_folders_than_the_model_has_classes_are_refused(tmp_path):
    put(tmp_path, *(f"{index:02}/1.png" for index in range(41)))
    data = DataConfig(source=FolderConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"has 41 classes, but model\.classes=40"):
        open_source(data, LABEL)
    assert len(open_source(data, TEXT)) == 41


# Hugging Face


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_metadata_of_hugging_face_are_read(tmp_path, ending):
    rows = [
        {"file_name": "0001.png", "text": "a cat, or\ntwo", "label": 3},
        {"file_name": "more/0002.png", "text": "猫", "label": 0},
    ]
    with open(
        tmp_path / f"metadata.{ending}", "w", newline="", encoding="utf-8-sig" if ending == "csv" else None
    ) as file:
        if ending == "csv":
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    expected = [("0001.png", "a cat, or\ntwo", 3), ("more/0002.png", "猫", 0)]
    assert told(tmp_path) == told(tmp_path / f"metadata.{ending}") == expected
    assert samples(tmp_path)[1].media == tmp_path / "more" / "0002.png"


@pytest.mark.parametrize(
    "content",
    [b"name,text\na.png,x\n", b"", b"\xff\xfe", b"file_name,text\n\xe9.png,x\n", b"file_name,text\n", b"a\0,b"],
)
def test_a_csv_of_another_kind_is_refused(tmp_path, content):
    put(tmp_path, "metadata.csv", content=content)
    with pytest.raises(ValueError, match=r"metadata\.csv (must have a column|cannot be read|lists no sample)"):
        FolderSource(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "names.csv")
    with pytest.raises(ValueError, match=r"without a column file_name|cannot be read|lists no sample"):
        FolderSource(tmp_path)


def test_a_table_of_something_else_does_not_hide_folders(tmp_path):
    put(tmp_path, "dogs/1.png")
    put(tmp_path, "classes.csv", content=b"class,count\ndogs,1\n")
    assert told(tmp_path) == [("dogs/1.png", "dogs", 0)]


def test_numbers_of_a_csv_are_numbers_or_bad_samples(tmp_path):
    put(tmp_path, "captions.csv", content=b"audio,text,label,pitch\na.wav,x,2,181.5,more\nb.wav,y,two,\nc.wav\n")
    first, second, third = samples(tmp_path)
    assert (first.label, first.pitch) == (2, 181.5)
    assert second.reason == "the label is 'two', which is not a whole number"
    assert (third.name, third.caption) == ("c.wav", None)


# which file, and what is refused


def of_one_split(folder, split):
    source = open_source(DataConfig(source=FolderConfig(path=str(folder), split=split)), TEXT)
    return [(record.name, record.caption) for record in map(source.__getitem__, range(len(source)))]


def test_the_parts_of_a_data_set_are_chosen_by_split(tmp_path):
    put(tmp_path, "README.md", "classes/train/dog/1.png", "classes/test/cat/2.png")
    put(tmp_path / "lines", "train/metadata.jsonl", content=b'{"file_name": "a.png", "text": "x"}')
    put(tmp_path / "lines", "validation/metadata.jsonl", content=b'{"file_name": "b.png", "text": "y"}')
    assert of_one_split(tmp_path / "classes", "train") == [("dog/1.png", "dog")]
    assert of_one_split(tmp_path / "lines", "validation") == [("b.png", "y")]
    assert told(tmp_path / "lines") == [("a.png", "x", None)]
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "train").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="found none"):
        FolderSource(tmp_path / "loop")
    assert repr(FolderSource(tmp_path / "lines")) == f"FolderSource('{tmp_path}/lines/train/metadata.jsonl')"


@pytest.mark.parametrize("scenes", ["scenes.jsonl", "captions.scenes.jsonl"])
def test_scenes_are_taken_where_they_lie_beside_the_captions_they_come_from(tmp_path, scenes):
    put(tmp_path, "captions.jsonl", content=b'{"video": "a.mp4", "caption": "x"}')
    put(tmp_path, scenes, content=b'{"video": "a.mp4", "caption": "x", "start": 1, "end": 2}')
    assert samples(tmp_path)[0].media == Clip(tmp_path / "a.mp4", 1, 2)
    assert scenes in repr(FolderSource(tmp_path))
    put(tmp_path, "third.jsonl")
    with pytest.raises(ValueError, match=r"exactly one file of captions; found captions\.jsonl.*--data\.path"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1.png", "2.png", "settings.json"], ["2 files but no captions", "captions.jsonl", "1.txt"]),
        (
            ["Val/cat/1.png", "test/cat/2.png"],
            ["splits of a data set (Val, test)", "data.split='train'", "--data.path"],
        ),
        (["train/1.png"], ["1 files but no captions"]),
        (["inner/metadata.jsonl", "1.png"], ["name the file", "inner/metadata.jsonl"]),
        (["data/train-00000.parquet"], ["parquet"]),
        (["a/data-00000.arrow"], ["arrow"]),
        (["00000.tar"], ["unpack"]),
        (["samples.array_record", "sheet.png"], ["--data.source prepared"]),
        (["captions.json"], ["name it"]),
        (["notes.md"], ["found none among 1 files"]),
        ([], ["found none among 0 files"]),
    ],
)
def test_other_folders_are_refused_with_the_remedy(tmp_path, names, words):
    put(tmp_path, *names)
    with pytest.raises(ValueError, match="the folder") as error:
        FolderSource(tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_path_to_nothing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing of that name"):
        FolderSource(tmp_path / "nowhere")
    put(tmp_path, "captions.txt")
    with pytest.raises(ValueError, match=r"must be a folder, or a \.jsonl"):
        FolderSource(tmp_path / "captions.txt")


def test_a_list_of_samples_in_one_json_file_can_be_named(tmp_path):
    put(tmp_path, "captions.json", content=b'\xef\xbb\xbf[{"image": "a.png", "caption": "x"}]')
    assert told(tmp_path / "captions.json") == [("a.png", "x", None)]
    put(tmp_path, "captions.json", content=b"[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        FolderSource(tmp_path / "captions.json")


ENDINGS = st.sampled_from([b".png", b".PNG", b".txt", b".png.txt", b".jsonl", b".csv", b".mp4", b""])
STEMS = st.binary(min_size=1, max_size=8).map(lambda name: name.translate(None, b"/.\0") or b"x")
NAMES = st.tuples(STEMS, ENDINGS).map(b"".join)
TREES = st.dictionaries(st.tuples(NAMES) | st.tuples(NAMES, NAMES), st.binary(max_size=20), max_size=6)


@given(TREES)
@settings(max_examples=100, deadline=None)
def test_any_folder_opens_or_is_refused_and_none_of_its_files_raises(tree):
    with tempfile.TemporaryDirectory() as name:
        for path, content in tree.items():
            with contextlib.suppress(OSError):  # a file and a folder of one name
                file = Path(os.fsdecode(os.path.join(os.fsencode(name), *path)))
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
        found: list = []
        with contextlib.suppress(ValueError):
            found = samples(Path(name))
        for sample in found:
            assert isinstance(sample, Record | BadSample)
            assert "".join(str(part) for part in sample[:2] if isinstance(part, str)).encode() is not None
