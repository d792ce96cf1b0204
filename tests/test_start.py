"""A run that starts from trained weights has their model."""

import dataclasses
import json
import shutil

import pytest

from lumina_jax.config import Config, DataConfig, ModelConfig, PictureConfig
from lumina_jax.run import read_model, run_folder
from lumina_jax.start import with_started_model

FILE_MODEL = ModelConfig(layers=8, heads=4, width=256, patch_size=4, channels=3, compute_dtype="float32", remat="none")
TRAINED = ModelConfig(layers=2, heads=2, width=48, patch_size=2, pad_token=True, kv_heads=1)


def configured(folder, **run):
    settings = {"root": str(folder / "runs"), "init_from": str(folder / "start"), **run}
    return Config(model=FILE_MODEL, data=DataConfig(media=PictureConfig(image_size=32))).replace(run=settings)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "start").mkdir()
    (tmp_path / "start/config.json").write_text(json.dumps({"model": dataclasses.asdict(TRAINED)}))
    return tmp_path


def test_the_model_of_the_start_is_taken_and_said(folder, capsys):
    started = with_started_model(configured(folder), ["configs/folder.py", "--run.init-from", "start"])
    assert started.model == dataclasses.replace(TRAINED, compute_dtype="float32", remat="none")
    said = capsys.readouterr().out
    assert "not that of the configuration: " in said
    for words in ("model.layers=2", "model.patch_size=2", "model.kv_heads=1", "model.pad_token=True"):
        assert words in said
    assert started == dataclasses.replace(configured(folder), model=started.model)


def test_a_start_with_the_model_of_the_configuration_needs_no_words(folder, capsys):
    same = dataclasses.replace(configured(folder), model=TRAINED)
    assert with_started_model(same, []) == same
    assert (
        with_started_model(dataclasses.replace(same, run=dataclasses.replace(same.run, init_from="")), []).model
        == TRAINED
    )
    assert capsys.readouterr().out == ""


def test_what_the_weights_are_used_to_is_said_where_this_run_differs(folder, capsys):
    before = configured(folder, init_from="").replace(text={"encoder": "google/gemma-2b"}, flow={"prediction": "noise"})
    (folder / "start/config.json").write_text(before.to_json())
    config = configured(folder)
    assert with_started_model(config, ["--flow.prediction=velocity"]).flow == config.flow
    said = capsys.readouterr().out
    assert "start was trained with text.encoder='google/gemma-2b'; this run has 'minilm'" in said
    assert "start was trained with flow.prediction='noise'; this run has 'velocity'" in said
    assert "vae.path" not in said


def test_outputs_mean_what_they_do_where_the_weights_are_from(folder, capsys):
    learned = {"path": "gvp", "prediction": "data", "loss_weight": "velocity"}
    before = configured(folder, init_from="").replace(flow={**learned, "time_shift": 2.0})
    (folder / "start/config.json").write_text(before.to_json())
    started = with_started_model(configured(folder), ["--model.remat", "none"])
    assert started.flow == configured(folder).replace(flow=learned).flow  # times are the new run's
    said = capsys.readouterr().out
    assert "start: flow.path='gvp', flow.prediction='data', flow.loss_weight='velocity'\n" in said
    assert "was trained with" not in said
    begin(started)
    shutil.rmtree(folder / "start")
    assert with_started_model(configured(folder), []) == started  # resumed


@pytest.mark.parametrize(
    ("words", "model", "named"),
    [
        (["--model.layers", "8"], {}, "--model.layers 8 but the folder has 2"),
        (["--model.layers=8", "--model.kv_heads", "None"], {}, "--model.kv-heads None but the folder has 1"),
        (["--model.no_pad_token"], {"pad_token": False}, "--model.pad-token False but the folder has True"),
        (["--model.no-pad-token"], {"pad_token": False}, "--model.pad-token False but the folder has True"),
    ],
)
def test_flags_that_ask_for_another_model_are_named(folder, words, model, named):
    config = configured(folder)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    with pytest.raises(ValueError, match=f"flags cannot change it: .*{named}") as error:
        with_started_model(config, ["configs/folder.py", *words])
    assert "width" not in str(error.value)  # which differs in the file, and no flag asks for it


def test_flags_that_agree_or_say_how_to_compute_are_kept(folder):
    config = configured(folder)
    config = config.replace(model={"layers": 2, "remat": "full", "unroll": 2})
    started = with_started_model(config, ["--model.layers", "2", "--model.remat", "full", "--model.unroll", "2"])
    assert (started.model.layers, started.model.remat, started.model.unroll) == (2, "full", 2)


def begin(config):
    """What a run leaves as soon as it has started."""
    run_folder(config).mkdir(parents=True)
    (run_folder(config) / "config.json").write_text(config.to_json())


def test_a_run_that_resumes_has_its_model_though_the_start_is_gone(folder):
    begin(with_started_model(configured(folder), []))
    shutil.rmtree(folder / "start")
    assert with_started_model(configured(folder), []).model.layers == 2
    with pytest.raises(ValueError, match=r"run\.init_from=.*--model.layers 8"):
        with_started_model(configured(folder), ["--model.layers", "8"])


def test_a_run_that_began_elsewhere_tells_nothing_about_the_start(folder):
    begin(configured(folder, init_from=""))
    assert with_started_model(configured(folder), []).model.layers == 2


def test_checkpoints_tell_where_both_folders_are_gone(folder):
    shutil.rmtree(folder / "start")
    config = configured(folder, checkpoints="gs://bucket/run")
    assert with_started_model(config, []) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (shutil.rmtree, r"start does not exist; name the folder of a run, such as runs/emoji, or one"),
        (
            lambda start: (start / "config.json").unlink(),
            r"start has no config\.json of a model of ours; name the folder of a run",
        ),
        (
            lambda start: (start / "config.json").rename(start / "model_index.json"),
            r"start holds weights of the diffusers layout; convert them first: lumina convert \S+ NEW",
        ),
        (
            lambda start: (start / "config.json").rename(start / "consolidated.00-of-01.pth"),
            r"start holds weights of the lumina layout; convert them first: .* --from lumina --to jax",
        ),
    ],
)
def test_a_folder_without_a_model_is_answered_with_what_it_must_be(folder, make, message):
    make(folder / "start")
    with pytest.raises(ValueError, match=message):
        with_started_model(configured(folder), [])
    with pytest.raises(ValueError, match=message):
        read_model(folder / "start")


def test_weights_of_another_layout_with_their_own_configuration_are_to_be_converted(folder):
    (folder / "start/config.json").write_text('{"n_heads": 4}')
    with pytest.raises(ValueError, match=r"start has no config\.json of a model of ours"):
        read_model(folder / "start")
    (folder / "start/consolidated.00-of-01.safetensors").write_text("")
    with pytest.raises(ValueError, match="holds weights of the lumina layout; convert them first"):
        read_model(folder / "start")


def test_a_file_is_no_folder_of_a_model(folder):
    (folder / "start/model.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"model\.safetensors is a file; name the folder"):
        read_model(folder / "start/model.safetensors")
