"""Sources and media have the settings of their kind alone; flags and copies name them like those beside them."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import pytest

from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    EmojiConfig,
    FolderConfig,
    LuminaYamlConfig,
    MediaConfig,
    ModelConfig,
    Part,
    PictureConfig,
    PreparedConfig,
    SoundConfig,
    SourceConfig,
    TfdsConfig,
    ViewGridConfig,
    ViewsConfig,
)
from lumina_jax.config.data import CHOICES, Origin
from lumina_jax.flags import flat_settings, parse_config

CONFIGURATION = Config(
    model=ModelConfig(layers=2, heads=4, width=48),
    data=DataConfig(source=EmojiConfig(emoji_names=40), batch_rows=8),
)


@pytest.fixture
def parsed(tmp_path):
    """A function that parses flags on top of a configuration."""

    def with_flags(*words, configuration=CONFIGURATION):
        file = tmp_path / "config.json"
        file.write_text(configuration.to_json())
        return parse_config([str(file), *words], "")

    return with_flags


def test_no_setting_of_a_source_or_of_media_has_the_name_of_another():
    of_source = {name for kind in SourceConfig.kinds.values() for name in kind.setting_names()}
    of_media = {name for kind in MediaConfig.kinds.values() for name in kind.setting_names()}
    beside = {field.name for section in (DataConfig, Part) for field in dataclasses.fields(section)}
    assert not of_source & of_media
    assert not (of_source | of_media) & beside


def test_flags_set_what_the_source_and_the_media_of_the_file_have(parsed):
    data = parsed("--data.emoji-names", "7", "--data.image-size=64", "--data.limit", "3", "--data.batch_rows", "2").data
    assert data == DataConfig(
        source=EmojiConfig(emoji_names=7, limit=3), media=PictureConfig(image_size=64), batch_rows=2
    )
    assert parsed("--data.path", "emoji64").data.source.path == "emoji64"


def test_a_flag_chooses_another_kind_which_keeps_what_both_have(parsed):
    before = CONFIGURATION.replace(data={"limit": 9, "image_size": 64})
    words = ("--data.source", "folder", "--data.path", "pictures", "--data.media=clips", "--data.frames", "8")
    data = parsed(*words, configuration=before).data
    assert data.source == FolderConfig(path="pictures", limit=9)
    assert data.media == ClipConfig(image_size=64, frames=8)
    assert data.batch_rows == 8
    assert before.data.replace(source="folder", path="pictures", media="clips", frames=8) == data


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.seconds", "3"), "data.seconds is a setting of data.media='sounds', but data.media is 'pictures'"),
        (("--data.no-pitch",), "choose the kind with it, as in --data.media sounds"),
        (("--data.frames=8",), "data.media='clips' or 'views' or 'view-grid'"),
        (("--data.image-key", "x"), "data.image_key is a setting of data.source='tfds', but data.source is 'emoji'"),
        (("--data.media", "sounds", "--data.image-size", "8"), "whose settings are seconds, sample_rate"),
        (("--data.source", "files"), "data.source='files' must be one of 'emoji', 'folder'"),
    ],
)
def test_a_flag_of_another_kind_is_an_error_that_says_which(parsed, words, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parsed(*words)


def test_each_part_of_a_mixture_has_the_flags_of_its_kinds(parsed):
    parts = (Part(), Part(source=FolderConfig(path="sounds"), media=SoundConfig(seconds=1.0), modality="speech"))
    model = {"others": Config.from_json(ANY_MODALITY.read_bytes()).model.others}
    mixed = CONFIGURATION.replace(model=model, data={"mixture": parts})
    words = ("--data.mixture.0.emoji-names", "9", "--data.mixture.1.seconds", "2", "--data.mixture.1.weight", "3")
    first, second = parsed(*words, configuration=mixed).data.mixture
    assert first.source == EmojiConfig(emoji_names=9)
    assert (second.media, second.weight) == (SoundConfig(seconds=2.0), 3.0)
    with pytest.raises(
        ValueError, match=r"data\.mixture\.0\.seconds is a setting of .* --data\.mixture\.0\.media sounds"
    ):
        parsed("--data.mixture.0.seconds", "2", configuration=mixed)
    with pytest.raises(ValueError, match=r"data\.image_size says nothing .* --data\.mixture\.0\.image-size"):
        parsed("--data.image-size", "64", configuration=mixed)
    assert parsed("--data.batch-rows", "4", configuration=mixed).data.batch_rows == 4


def test_help_lists_the_flags_of_the_chosen_kinds_with_their_explanations(parsed, capsys):
    with pytest.raises(SystemExit):
        parsed("--data.source", "tfds", "--help")
    shown = " ".join(re.sub("[│─╭╰╮╯]", " ", capsys.readouterr().out).split())
    assert "--data.source {emoji,folder,lumina,tfds,prepared}" in shown
    assert "The builder, such as cifar10:3.*.*." in shown
    assert "--data.emoji-names" not in shown
    assert "Rows of tokens in a batch" in shown


def test_a_copy_refuses_settings_that_no_kind_has_or_another_one():
    with pytest.raises(ValueError, match="data has no setting 'depth'"):
        DataConfig().replace(depth=1)
    with pytest.raises(ValueError, match=r"data\.crop is a setting of"):
        DataConfig(media=SoundConfig()).replace(crop="square")
    with pytest.raises(ValueError, match=r"data\.source='folder' needs data\.path"):
        DataConfig().replace(source="folder")


@pytest.mark.parametrize(
    ("section", "settings", "code"),
    [
        (DataConfig, {"source": "emoji", "emoji_names": 40, "image_size": 32, "batch_rows": 4},
         "DataConfig(source=EmojiConfig(emoji_names=40), media=PictureConfig(image_size=32), batch_rows=4)"),
        (DataConfig, {"seconds": 1.0}, "media=SoundConfig(seconds=1.0))"),
        (DataConfig, {"frames": 12, "grid_columns": 4}, "media=ViewGridConfig(frames=12, grid_columns=4))"),
        (Part, {"source": "prepared", "path": "x", "frames": 8, "weight": 0.5},
         "Part(source=PreparedConfig(path='x'), media=ClipConfig(frames=8), weight=0.5)"),
        (DataConfig, {"source": "prepared", "path": "x", "modality": "views", "frames": 8},
         "media=ViewsConfig(frames=8)"),
    ],
)  # fmt: skip
def test_settings_of_older_files_of_code_are_shown_as_they_are_written_now(section, settings, code):
    with pytest.raises(ValueError, match=re.escape(code)):
        section(**settings)


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"SourceConfig is not a kind; choose one of 'emoji' \(EmojiConfig\)"):
        SourceConfig(path="x")


def test_settings_are_listed_under_the_names_of_their_flags():
    data = DataConfig(source=TfdsConfig(path="x"), media=ViewsConfig(frames=6))
    found = data.settings()
    assert (found["source"], found["path"], found["media"], found["frames"]) == ("tfds", "x", "views", 6)
    config = CONFIGURATION.replace(data={"mixture": (Part(),)})
    assert json.loads(json.dumps(flat_settings(config)))["data.emoji_names"] == 40
    assert flat_settings(config)["data.mixture"][0]["media"]["kind"] == "pictures"


def test_worker_processes_receive_the_same_settings():
    data = DataConfig(mixture=(Part(source=TfdsConfig(path="x")), Part(media=SoundConfig())))
    assert pickle.loads(pickle.dumps(data)) == data
    assert isinstance(data, Origin)
    assert set(CHOICES) == {"source", "media"}


# older files

GOLDEN = Path(__file__).parents[1] / "golden" / "configurations"
ANY_MODALITY = GOLDEN / "any_modality.json"
OLDER = sorted(GOLDEN.glob("*.json"))
SPEECH = SoundConfig(seconds=0.9, pitch=True, seconds_per_phoneme=0.046, pause=0.35)
DATA = {
    "any_modality": [
        (EmojiConfig(), PictureConfig()),
        (EmojiConfig(emoji_names=24), PictureConfig(image_size=32)),
        (PreparedConfig(path="data/fluent-animated", limit=16), ClipConfig(frames=8, image_size=32)),
        (PreparedConfig(path="data/furniture", limit=16), ViewsConfig(frames=6, image_size=32)),
        (PreparedConfig(path="data/flite-speech"), SPEECH),
    ],
    "emoji": [(EmojiConfig(emoji_names=40), PictureConfig(image_size=32))],
    "emoji_video": [(PreparedConfig(path="data/fluent-animated", limit=24), ClipConfig(frames=8, image_size=32))],
    "folder": [(FolderConfig(path="pictures"), PictureConfig(image_size=64, crop="buckets"))],
    "furniture": [(PreparedConfig(path="data/furniture", limit=16), ViewsConfig(frames=12, image_size=32))],
    "furniture_grid": [
        (PreparedConfig(path="data/furniture", limit=16), ViewGridConfig(frames=12, image_size=32, grid_columns=4))
    ],
    "imagenet_600m": [
        (TfdsConfig(path="imagenet2012:5.*.*", caption_key="label"), PictureConfig(image_size=256)),
    ],
    "next_dit_2b": [(LuminaYamlConfig(path="pictures.yaml"), PictureConfig(image_size=1024, crop="buckets"))],
    "speech": [(PreparedConfig(path="data/flite-speech"), SPEECH)],
    "t2audio": [(FolderConfig(path="sounds"), SoundConfig(seconds=9.984, sample_rate=16_000))],
    "t2v_2b_stage2": [
        (FolderConfig(path="clips"), ClipConfig(image_size=512, frames=120, frame_rate=8.0, crop="buckets")),
    ],
}
"""Source and media of each section of data, and of each part of its mixture."""


@pytest.mark.parametrize("file", OLDER, ids=lambda file: file.stem)
def test_a_config_json_of_an_older_run_opens_with_all_that_it_said(file):
    config, older = Config.from_json(file.read_bytes(), str(file)), json.loads(file.read_text())
    sections = (config.data, *config.data.mixture)
    assert [(section.source, section.media) for section in sections] == DATA[file.stem]
    for section, before in zip(sections, (older["data"], *older["data"]["mixture"])):
        now = section.settings()
        common = before.keys() & now.keys() - {"media", "mixture"}
        assert {name: now[name] for name in common} == {name: before[name] for name in common}
        assert common >= {"source", "modality"} | ({"weight"} if "weight" in before else {"batch_rows", "row_tokens"})
    again = json.loads(config.to_json())
    for name in older.keys() - {"data"}:
        assert {field: again[name][field] for field in older[name]} == older[name]
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"crop": "circle"}, "data.media.pictures.crop"),
        ({"source": "files"}, "data.source"),
        ({"limit": "all"}, "data.source.emoji.limit"),
        ({"mixture": [{"image_size": "large"}]}, "data.mixture.0.media.pictures.image_size"),
        ({"image_sise": 3}, "data.image_sise"),
        ({"mixture": 3}, "data.mixture"),
    ],
)
def test_a_wrong_field_of_an_older_file_is_named(change, key):
    older = json.loads((GOLDEN / "emoji.json").read_text())
    older["data"] |= change
    with pytest.raises(ValueError, match=re.escape(f"{key}: ")):
        Config.from_json(json.dumps(older))


def test_an_older_file_that_leaves_fields_out_opens_with_their_defaults():
    text = json.dumps({"model": {"layers": 2, "heads": 4, "width": 48}, "data": {"frames": 4}})
    assert Config.from_json(text).data == DataConfig(media=ClipConfig(frames=4))
