"""Somebody else's weights: converted, drawn from, trained further, and converted back."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumina_jax.commands import convert, sample, train
from lumina_jax.config import ModelConfig, VaeConfig
from lumina_jax.parity.golden import Golden
from tests.training.processes import ROOT, here, training_command
from tests.training.tiny import label_config

GOLDEN = ROOT / "tests" / "golden"
WEIGHTS = "consolidated.00-of-01.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A label-conditional Next-DiT as its authors publish it (lumina/), and converted (ours/)."""
    folder = tmp_path_factory.mktemp("finetuning")
    golden = Golden(GOLDEN / "nextdit_imagenet.safetensors")
    (folder / "lumina").mkdir()
    save_file(golden.parameters, folder / "lumina" / WEIGHTS)
    (folder / "lumina" / "config.json").write_text(json.dumps(golden.config))
    done = here(convert.main, folder / "lumina", folder / "ours", "--from", "lumina", "--to", "jax")
    assert done.returncode == 0, done.stderr
    return folder


def settings_for(folder, **run):
    """Training on the latents of ten labels; the model is not the converted one, which replaces it."""
    model = ModelConfig(layers=5, heads=2, width=32, conditioning="label", compute_dtype="float32", remat="none")
    settings = label_config(folder, run={"init_from": str(folder / "ours"), "steps": 2, "checkpoint_every": 1, **run})
    data = settings.data.replace(emoji_names=5, batch_rows=4)
    vae = VaeConfig(path=str(GOLDEN / "vae_tiny"), cache=str(folder / "latents"))
    return dataclasses.replace(settings, model=model, data=data, vae=vae)


@pytest.mark.slow
def test_a_fine_tune_starts_from_converted_weights_resumes_and_exports_again(folder):
    start = shutil.copytree(folder / "ours", folder / "start")
    settings = settings_for(folder, name="tuned", init_from=str(start))
    done = here(train.main, *training_command(settings)[2:])
    assert done.returncode == 0, done.stderr
    assert "starting from the parameters in" in done.stdout
    assert f"the model is the one in {start}, not that of the configuration: " in done.stdout
    shutil.rmtree(start)  # which is needed no more
    flags = ["--run.steps", "3", "--optimizer.learning-rate", "0.002", "--data.prefetch", "2"]
    done = here(train.main, *training_command(settings)[2:], *flags)
    assert done.returncode == 0, done.stderr
    assert "optimizer.learning_rate was 0.01 and is 0.002" in done.stdout
    assert "prefetch" not in done.stdout
    assert "continuing from step 2 of 3" in done.stdout
    assert "starting from" not in done.stdout

    original = load_file(folder / "lumina" / WEIGHTS)
    for weights in ("params", "ema"):
        exported = folder / weights
        words = [folder / "tuned", exported, "--from", "jax", "--to", "lumina", "--weights", weights]
        done = here(convert.main, *words)
        assert done.returncode == 0, done.stderr
        tuned = load_file(exported / WEIGHTS)
        assert tuned.keys() == original.keys()
        changed = [name for name in original if np.any(tuned[name] != original[name])]
        assert len(changed) > len(original) / 2
        # Adam moves each value by its learning rate at most, about: these are the weights we started from.
        assert all(np.abs(tuned[name] - original[name]).max() < 0.05 for name in original)


def test_converted_weights_draw_with_a_configuration(folder):
    settings = settings_for(folder)
    file = folder / "drawing.json"
    file.write_text(settings.replace(model={"layers": 7}).to_json())  # the model is the one of the weights
    words = ["--config", file, "--steps", "2", "--solver", "euler", "--out", folder / "out"]
    done = here(sample.main, folder / "ours", "3", *words)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "000-3.png").is_file()
    done = here(sample.main, folder / "ours", "3")
    assert done.returncode == 1
    assert "name its configuration with --config FILE" in done.stderr


@pytest.mark.parametrize(
    ("start", "flags", "message"),
    [
        ("ours", ["--model.width", "48"], "--model.width 48 but the folder has 64"),
        ("nothing", [], "nothing does not exist; name the folder of a run"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_computed(folder, start, flags, message):
    settings = settings_for(folder, name="refused", init_from=str(folder / start))
    done = here(train.main, *training_command(settings)[2:], *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (Path(settings.run.root) / "refused").exists()
    assert "encoding" not in done.stdout
