"""The model in the package: drawn by its name from any folder, it knows pairs of name and style that it never saw."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands import convert, sample
from lumina_jax.data.emoji_source import EmojiSource
from lumina_jax.evaluation.retrieval import nearest
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.run import SHIPPED, found_model, read_model, read_run, shipped_models
from lumina_jax.start import with_started_model
from lumina_jax.trained import open_run
from tests.training.tiny import label_config

DRAWN, STEPS = 16, 8
NAMES = 200
"""Of the embedded emoji; one pair in eight is held out."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder in which commands run."""
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pipeline():
    return open_run("emoji")


def test_a_command_draws_with_it_from_any_folder_and_writes_nothing_into_the_package(here, capsys):
    before = {file: file.stat().st_mtime_ns for file in SHIPPED.rglob("*")}
    prompts = ["red heart, noto style", "a slice of pizza, noto style"]
    assert sample.main(["emoji", *prompts, "--steps", "1", "--solver", "euler"]) == 0
    assert "sheet.png" in capsys.readouterr().out
    [first, second] = sorted((here / "samples" / "emoji" / "seed-0").glob("00*.png"))
    assert [read_png_metadata(file)["prompt"] for file in (first, second)] == prompts
    with Image.open(first) as picture:
        assert picture.size == (64, 64)
    assert {file: file.stat().st_mtime_ns for file in SHIPPED.rglob("*")} == before


def test_pairs_that_it_never_saw_come_out_nearest_to_their_own_among_fifty(pipeline):
    """Those that EmojiSource holds out, at their size of 32 pixels."""
    source = EmojiSource(NAMES, "held_out")
    records = [source[index] for index in range(len(source))]
    drawn = pipeline([record.caption for record in records[:DRAWN]], pipeline.config.sample.replace(steps=STEPS))
    small = [np.asarray(Image.fromarray(picture[0]).resize((32, 32), Image.Resampling.BOX)) for picture in drawn]
    true = np.stack([record.media for record in records])
    assert len(true) >= 50
    matches = nearest(np.stack(small), true) == np.arange(DRAWN)
    assert matches.mean() >= 0.3  # by chance 0.02


def test_a_folder_that_holds_a_model_goes_before_the_model_of_its_name(here):
    assert found_model("emoji") == SHIPPED / "emoji"
    (here / "emoji").mkdir()
    assert found_model("emoji") == SHIPPED / "emoji"
    (here / "emoji" / "config.json").write_text(label_config(here).to_json())
    assert read_model("emoji") == label_config(here).model


def test_training_and_converting_start_from_it_by_its_name(here, capsys):
    config = read_run("emoji").replace(run={"root": f"{here}", "name": "tuned", "init_from": "emoji"})
    assert with_started_model(config.replace(model={"layers": 1}), []).model.layers == config.model.layers
    assert convert.main(["emoji", "copy", "--from", "jax", "--to", "jax"]) == 0
    assert read_model(here / "copy") == config.model


def test_a_name_that_is_no_folder_is_refused_with_the_names_there_are(here):
    with pytest.raises(ValueError, match=r"emojy is not the folder of a run.*the models in the package: emoji"):
        read_run("emojy")


LICENCES = {"emoji": ("MIT", "Apache-2.0", "CC BY 4.0"), "speech": ("CMU Flite",)}


@pytest.mark.parametrize("name", shipped_models())
def test_what_the_package_carries_is_small_and_has_a_card_with_licences(name):
    folder = SHIPPED / name
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    card = (folder / "README.md").read_text()
    for word in (*LICENCES[name], "lumina evaluate"):
        assert word in card
