"""The configuration that starts a run: short trials, and files with settings for either device."""

import dataclasses
import json
from pathlib import Path

import pytest

import lumina_jax.config_files
import lumina_jax.flags
from lumina_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from lumina_jax.config_files import config_file, config_names, depends_on_device, load_config
from lumina_jax.flags import parse_config
from lumina_jax.run import write_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FOLDER = str(ROOT / "configs" / "folder.py")
DECAYING = [str(ROOT / "configs" / "emoji.py"), "--optimizer.schedule", "cosine"]


@pytest.fixture
def device(monkeypatch):
    """A function that says which device this machine has."""

    def choose(name):
        for module in (lumina_jax.config_files, lumina_jax.flags):
            monkeypatch.setattr(module, "runs_on_cpu", lambda: name == "cpu")

    return choose


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("steps", [1, 10])
def test_every_configuration_can_be_tried_for_a_few_steps(path, steps, capsys):
    config = parse_config([str(path), "--run.steps", str(steps)], "")
    given = load_config(path).optimizer
    is_short = given.schedule != "constant" and given.warmup_steps >= steps
    assert config.optimizer.warmup_steps == (steps // 10 if is_short else given.warmup_steps)
    assert ("optimizer.warmup_steps is" in capsys.readouterr().out) == is_short


def test_a_configuration_is_found_by_name_from_any_folder_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_names() == [path.stem for path in CONFIGS]
    assert load_config("emoji") == load_config(ROOT / "configs" / "emoji.py") == parse_config(["emoji"], "")
    (tmp_path / "mine.py").write_text("from lumina_jax.config_files import load_config\n\n")
    with (tmp_path / "mine.py").open("a") as file:
        file.write("def get_config():\n    return load_config('emoji').replace(run={'steps': 3})\n")
    assert load_config("mine.py").run.steps == 3
    (tmp_path / "emoji.json").write_text(load_config("mine.py").to_json())
    assert load_config(tmp_path / "emoji.json").run.steps == 3
    assert load_config("emoji").run.steps == 1100


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("configs/emoji.py", r"no configuration file configs/emoji\.py; did you mean emoji\? name a file"),
        (
            "emojis",
            r"no configuration 'emojis'; name a file that ends in \.py or \.json, or .*: any_modality, emoji",
        ),
        ("../emoji", r"no configuration '\.\./emoji'; did you mean emoji\?"),
        ("mine.txt", r"no configuration 'mine\.txt'"),
    ],
)
def test_a_configuration_that_is_not_there_is_refused_with_those_that_are(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=reason):
        config_file(name)


def test_a_warmup_that_is_shortened_is_said_with_its_reason_and_saved(tmp_path, capsys):
    words = [*DECAYING, "--run.steps", "20", "--run.root", str(tmp_path)]
    write_config(parse_config(words, ""))
    assert capsys.readouterr().out == "optimizer.warmup_steps is 2 instead of 50, because run.steps is 20\n"
    saved = json.loads((tmp_path / "emoji" / "config.json").read_text())
    assert saved["optimizer"]["warmup_steps"] == 2


@pytest.mark.parametrize("flag", ["--optimizer.warmup-steps=50", "--optimizer.warmup_steps 50"])
def test_a_warmup_that_a_flag_asks_for_is_refused_where_it_leaves_no_step(flag):
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps=50 must be less than run.steps=20"):
        parse_config([*DECAYING, "--run.steps", "20", *flag.split()], "")


def test_a_long_run_keeps_its_warmup(capsys):
    assert parse_config([str(ROOT / "configs" / "emoji.py")], "").optimizer.warmup_steps == 50
    assert capsys.readouterr().out == ""


def test_a_folder_is_learned_by_a_small_model_on_cpus_and_a_larger_one_elsewhere(device, capsys):
    found = {}
    for name, words in (("cpu", "CPUs"), ("gpu", "GPUs and TPUs")):
        device(name)
        found[name] = parse_config([FOLDER, "--data.path", "mine"], "")
        assert capsys.readouterr().out == f"{FOLDER}: the settings for {words}\n"
    assert found["cpu"].model.width < found["gpu"].model.width
    assert all(config.data.media.image_size == 64 and config.run.sample_every for config in found.values())
    assert load_config(FOLDER, on_cpu=False).model == found["gpu"].model


@pytest.mark.parametrize(("begun_on", "goes_on_on"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_a_run_keeps_the_settings_of_the_device_it_was_begun_on(device, capsys, tmp_path, begun_on, goes_on_on):
    words = [FOLDER, "--run.root", str(tmp_path), "--model.heads", "2"]
    device(begun_on)
    begun = parse_config(words, "")
    write_config(begun)
    capsys.readouterr()
    device(goes_on_on)
    config = parse_config([*words, "--run.log-every", "7"], "")
    assert config == begun.replace(run={"log_every": 7})
    assert f"with which {tmp_path / 'folder'} was begun" in capsys.readouterr().out


def test_another_run_in_the_same_folder_does_not_change_the_choice(device, tmp_path):
    device("cpu")
    config = parse_config([FOLDER, "--run.root", str(tmp_path)], "")
    write_config(dataclasses.replace(config, model=ModelConfig(layers=1, heads=1, width=8)))
    assert parse_config([FOLDER, "--run.root", str(tmp_path)], "") == config


def test_only_files_that_ask_for_the_device_have_settings_for_either():
    found = [name for name in config_names() if depends_on_device(name)]
    assert found == ["finetune_style", "finetune_subject", "folder"]


@pytest.mark.parametrize("profile", ["10:15", "1:2", "99:100"])
def test_steps_to_profile_are_two_numbers(profile):
    first, last = map(int, profile.split(":"))
    assert RunConfig(steps=100, profile=profile).profiled == (first, last)
    assert RunConfig().profiled == (0, 0)


@pytest.mark.parametrize("profile", ["0:5", "5:5", "6:5", "90:101", "5", "5:", "a:b", "-1:5", "1:5:9", "5.0:6", " 1:2"])
def test_steps_that_cannot_be_profiled_are_refused_with_the_rule(profile):
    with pytest.raises(ValueError, match=r"must be two steps FIRST:LAST with 1 <= FIRST < LAST <= run.steps=100"):
        RunConfig(steps=100, profile=profile)


def test_a_decaying_schedule_without_a_step_is_refused_before_training():
    from lumina_jax.training.optimizer import learning_rate

    config = Config(
        model=ModelConfig(layers=1, heads=1, width=8),
        data=DataConfig(),
        optimizer=OptimizerConfig(schedule="cosine", warmup_steps=5),
    )
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps=5 must be less than run.steps=5"):
        learning_rate(config.optimizer, 5)
