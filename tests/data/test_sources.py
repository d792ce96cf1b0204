"""Records of every source, and pictures of every kind made RGB or refused."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lumina_jax.config import (
    DataConfig,
    EmojiConfig,
    FolderConfig,
    LuminaYamlConfig,
    ModelConfig,
    PictureConfig,
    TfdsConfig,
)
from lumina_jax.data.emoji_source import EmojiSource
from lumina_jax.data.example import BadSample, Record, captions
from lumina_jax.data.file_sources import FolderSource, LuminaSource
from lumina_jax.data.sources import open_source
from lumina_jax.modalities.decoding.pictures import check_resizable, open_picture

MODEL = ModelConfig(layers=1, heads=2, width=8, channels=3)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def corner(image):
    return np.asarray(image)[0, 0].tolist()


def write_lines(path, items):
    path.write_text("\n".join(json.dumps(item) if isinstance(item, dict) else item for item in items))


# pictures


def test_transparency_is_laid_on_white():
    assert corner(open_picture(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))) == [255, 255, 255]
    assert corner(open_picture(encoded(Image.new("LA", (4, 4), (0, 255))))) == [0, 0, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert corner(open_picture(encoded(palette))) == [10, 20, 30]
    assert corner(open_picture(encoded(palette, transparency=1))) == [255, 255, 255]


def test_gray_cmyk_and_sixteen_bit_pictures_become_rgb():
    assert corner(open_picture(encoded(Image.new("L", (4, 4), 7)))) == [7, 7, 7]
    assert corner(open_picture(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF"))) == [0, 0, 0]
    deep = Image.fromarray(np.full((4, 4), 0x8034, np.uint16))
    assert corner(open_picture(encoded(deep))) == [0x80] * 3


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corner(open_picture(data)) == [255, 0, 0]


def test_pictures_are_turned_upright():
    image = Image.new("RGB", (6, 3), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(image, "JPEG", exif=exif)).size == (3, 6)


def test_broken_missing_and_enormous_pictures_are_value_errors(monkeypatch):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)))
    for broken in (whole[: len(whole) // 2], b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        with pytest.raises(ValueError, match="picture"):
            open_picture(broken)
    with pytest.raises(ValueError, match="there is no file"):
        open_picture(Path("nowhere.png"))
    with pytest.raises(ValueError, match="picture"):
        open_picture(np.zeros((3, 3, 3), np.complex64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="1000"):
        open_picture(whole)


def test_pictures_smaller_than_a_patch_or_endlessly_long_are_refused():
    with pytest.raises(ValueError, match="smaller than a patch"):
        check_resizable(Image.new("RGB", (40, 3)), least=4, side=32)
    with pytest.raises(ValueError, match="limit"):
        check_resizable(Image.new("L", (40_000, 4)), least=4, side=256)
    check_resizable(Image.new("RGB", (40, 4)), least=4, side=32)


# emoji


def test_held_out_pairs_are_one_in_eight_and_seen_in_the_other_style():
    train, held_out, everything = (captions(EmojiSource(48, split))[1:] for split in ("train", "held_out", "all"))
    assert (len(train), len(held_out), len(everything)) == (84, 12, 96)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(everything)
    other = {"fluent style": "noto style", "noto style": "fluent style"}
    for caption in held_out:
        name, style = caption.split(", ")
        assert f"{name}, {other[style]}" in train
    assert {caption.split(", ")[1] for caption in held_out} == set(other)
    assert set(held_out) < set(captions(EmojiSource(100, "held_out")))


def test_emoji_carry_captions_labels_and_distinct_pictures():
    source = EmojiSource(48, "all")
    records = [source[index] for index in range(len(source))]
    assert records[0].caption == "red heart, fluent style"
    assert records[1].caption == "red heart, noto style"
    assert [record.label for record in records] == [index for index in range(48) for _ in range(2)]
    flat = np.stack([record.media for record in records]).reshape(96, -1) / 127.5
    distances = [np.sqrt(((flat - one) ** 2).mean(axis=1)) for one in flat]
    assert min(np.sort(row)[1] for row in distances) > 0.35
    assert np.stack([record.media for record in records]).mean() > 128


def test_a_thousand_names_have_no_skin_tones_and_too_many_are_refused():
    source = EmojiSource(1000, "all")
    assert len({source[index].caption for index in range(len(source))}) == 2000
    assert not any("skin tone" in source[index].caption for index in range(len(source)))
    with pytest.raises(ValueError, match="1561"):
        EmojiSource(5000, "all")
    with pytest.raises(ValueError, match="held_out"):
        EmojiSource(8, "validation")
    with pytest.raises(ValueError, match="raise"):
        EmojiSource(3, "held_out")


def test_emoji_of_another_resolution_come_from_a_folder(tmp_path):
    for style in ("fluent", "noto"):
        arrays = {"X": np.zeros((2, 64, 64, 3), np.uint8), "names": np.array(["sun", "red heart"])}
        np.savez(tmp_path / f"emoji_{style}_64.npz", **arrays)
    config = DataConfig(
        source=EmojiConfig(path=str(tmp_path), emoji_names=2, split="all"), media=PictureConfig(image_size=64)
    )
    assert open_source(config, MODEL)[0].media.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="build_emoji"):
        EmojiSource(2, "all", folder=tmp_path / "none")


@pytest.mark.parametrize(
    "arrays",
    [
        {"X": np.zeros((2, 64, 64, 3), np.uint8)},
        {"X": np.zeros((3, 64, 64, 3), np.uint8), "names": np.array(["sun", "red heart"])},
        {"X": np.zeros((2, 64, 64, 3)), "names": np.array(["sun", "red heart"])},
        None,
    ],
)
def test_arrays_of_emoji_that_are_damaged_are_named_with_the_remedy(tmp_path, arrays):
    for style in ("fluent", "noto"):
        if arrays is None:
            (tmp_path / f"emoji_{style}_64.npz").write_bytes(b"PK nothing")
        else:
            np.savez(tmp_path / f"emoji_{style}_64.npz", **arrays)
    with pytest.raises(ValueError, match=r"emoji_fluent_64\.npz is not what tools/build_emoji\.py makes"):
        EmojiSource(2, "all", 64, folder=tmp_path)


# folder


def test_a_folder_gives_names_captions_and_labels_and_reports_wrong_lines(tmp_path):
    lines = [
        {"image": "a.png", "caption": " a dog\n", "label": 3},
        "",
        "{not json",
        {"caption": "no picture"},
        {"image": "b.png", "caption": 5},
        {"image": "c.png", "caption": "x", "label": "three"},
        "[1, 2]",
        {"image": "d.png"},
    ]
    write_lines(tmp_path / "captions.jsonl", lines)
    source = open_source(DataConfig(source=FolderConfig(path=str(tmp_path))), MODEL)
    assert len(source) == 7
    assert source[0] == Record("a.png", tmp_path / "a.png", "a dog", 3, None)
    bad = [source[index] for index in range(1, 6)]
    assert all(isinstance(sample, BadSample) for sample in bad)
    assert [sample.name for sample in bad] == [
        "captions.jsonl, line 3",
        "captions.jsonl, line 4",
        "b.png",
        "c.png",
        "captions.jsonl, line 7",
    ]
    assert source[6].caption is None
    assert captions(source) == ["", "a dog"]


def test_a_folder_without_exactly_one_jsonl_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        FolderSource(tmp_path)
    write_lines(tmp_path / "a.jsonl", [{"image": "x", "caption": "x"}])
    write_lines(tmp_path / "b.jsonl", [])
    with pytest.raises(ValueError, match=r"a\.jsonl, b\.jsonl"):
        FolderSource(tmp_path)
    assert len(FolderSource(tmp_path / "a.jsonl")) == 1
    with pytest.raises(ValueError, match="lists no sample"):
        FolderSource(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="no file"):
        FolderSource(tmp_path / "c.jsonl")


# the released format


def test_the_released_yaml_is_read_with_roots_ratios_and_types(tmp_path):
    chats = [{"image": f"{i}.png", "conversations": [{"value": "?"}, {"value": f"chat {i}"}]} for i in range(20)]
    prompts = [{"path": f"{i}.png", "prompt": f"prompt {i}"} for i in range(3)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    write_lines(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "data.yaml").write_text(
        "META:\n"
        "  - {path: prompts.jsonl, root: pictures, type: one}\n"
        f"  - {{path: {tmp_path}/chats.json, ratio: 0.5, type: two}}\n"
        "  - {path: prompts.jsonl, root: /elsewhere, type: one}\n"
    )
    source = open_source(DataConfig(source=LuminaYamlConfig(path=str(tmp_path / "data.yaml"))), MODEL)
    found = [source[index] for index in range(len(source))]
    assert [record.caption for record in found[:6]] == ["prompt 0", "prompt 1", "prompt 2"] * 2
    assert found[0].media == tmp_path / "pictures" / "0.png"
    assert found[3].media == Path("/elsewhere/0.png")
    random.seed(0)
    assert [record.caption for record in found[6:]] == [
        item["conversations"][1]["value"] for item in random.sample(chats, 10)
    ]


def test_items_of_neither_shape_are_bad_samples(tmp_path):
    items = [{"image": "a.png", "conversations": ["?"]}, {"path": "a.png"}, {"prompt": "x"}, {"path": 3, "prompt": "x"}]
    write_lines(tmp_path / "items.jsonl", items)
    (tmp_path / "data.yaml").write_text("META: [{path: items.jsonl}]")
    source = LuminaSource(tmp_path / "data.yaml")
    assert all(isinstance(source[index], BadSample) for index in range(4))


@pytest.mark.parametrize(
    "content", ["META: 3", "- 1", "META: [{root: x}]", "{", "META: [{path: no.json}]", "META: [{path: a.txt}]"]
)
def test_a_wrong_yaml_is_refused(tmp_path, content):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"META|YAML|no file|must end in"):
        LuminaSource(tmp_path / "data.yaml")


# tensorflow-datasets


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Four plain pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["red_square", "blue_square"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(4):
            picture = Image.new("RGB", (20, 16), "red" if index % 2 == 0 else "blue")
            yield index, {"image": io.BytesIO(encoded(picture)), "caption": f"picture {index}", "label": index % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.builder("tiny_pictures", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_a_prepared_builder_gives_captions_or_class_names_or_labels(prepared):
    config = DataConfig(source=TfdsConfig(path="tiny_pictures", data_dir=prepared))
    source = open_source(config, MODEL)
    assert sorted(captions(source)) == ["", "picture 0", "picture 1", "picture 2", "picture 3"]
    assert source[0].label is None
    color = {"picture 0": [255, 0, 0], "picture 1": [0, 0, 255]}
    for index in range(4):
        if source[index].caption in color:
            assert corner(open_picture(source[index].media)) == color[source[index].caption]
    by_class = open_source(
        DataConfig(source=TfdsConfig(path="tiny_pictures", data_dir=prepared, caption_key="label")), MODEL
    )
    assert set(captions(by_class)) == {"", "red square", "blue square"}
    labelled = open_source(config, ModelConfig(layers=1, heads=2, width=8, channels=3, conditioning="label"))
    assert {labelled[index].label for index in range(4)} == {0, 1}
    assert labelled[0].caption is None


def test_a_builder_that_is_unknown_unprepared_or_lacks_a_feature_is_refused(prepared, tmp_path):
    def opened(path="tiny_pictures", **settings):
        return open_source(DataConfig(source=TfdsConfig(path=path, **settings)), MODEL)

    with pytest.raises(ValueError, match="no builder"):
        opened("no_such_builder", data_dir=prepared)
    with pytest.raises(ValueError, match="no builder"):
        opened("tiny_pictures/a=b", data_dir=prepared)
    with pytest.raises(ValueError, match="download_and_prepare"):
        opened(data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"text.*caption"):
        opened(data_dir=prepared, caption_key="text")
    with pytest.raises(ValueError, match="validation"):
        opened(data_dir=prepared, split="validation")
