"""Whole runs through train.py: killed and continued bit for bit, stopped politely, stopped by a loss that diverges."""

import functools
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands import evaluate, sample
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.run import read_run, run_folder
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import abstract_state
from tests.training.processes import ENVIRONMENT, ROOT, here, sampling, training, training_command, training_here
from tests.training.tiny import config, label_config


def final_state(settings):
    """The newest step, and its state but for the random key, which numpy cannot compare."""
    checkpoints = Checkpoints(Path(settings.run.root) / settings.run.name / "checkpoints", read_only=True)
    step = checkpoints.latest()
    state = checkpoints.restore(step, abstract_state(settings, make_mesh(devices=jax.devices()[:1])))
    return step, jax.device_get(state._replace(key=None))


def kill_and_continue(tmp_path, kills, seed):
    """A run killed at random moments, each time after it has saved, and the same run undisturbed."""
    length = 32 + 8 * kills
    whole, broken = (
        label_config(tmp_path / name, run={"steps": length, "log_every": 1, "checkpoint_every": 3})
        for name in ("whole", "broken")
    )
    done = training(whole)
    assert done.returncode == 0, done.stderr
    moments = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            training_command(broken),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        steps, wanted = 0, moments.randint(7, 10)  # the save of three steps before has then ended
        for line in process.stdout:
            steps += "loss" in line
            if steps == wanted:
                break
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
    done = training(broken)
    assert done.returncode == 0, done.stderr
    assert re.search(r"continuing from step [1-9]", done.stdout)
    (last, ours), (_, theirs) = final_state(broken), final_state(whole)
    assert last == length
    chex.assert_trees_all_equal(ours, theirs)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken/tiny/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    kill_and_continue(tmp_path, kills=1, seed=0)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path):
    kill_and_continue(tmp_path, kills=10, seed=1)


def test_sigterm_saves_and_ends_well(tmp_path):
    settings = label_config(tmp_path, run={"steps": 100_000, "log_every": 1, "checkpoint_every": 50_000})
    process = subprocess.Popen(
        training_command(settings), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "loss" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(timeout=60) == 0
    saved = Checkpoints(tmp_path / "tiny/checkpoints", read_only=True).latest()
    assert saved is not None
    assert saved < 50_000


def test_a_diverging_loss_stops_with_its_step_and_keeps_good_checkpoints(tmp_path):
    settings = label_config(
        tmp_path, optimizer={"learning_rate": 1e38, "clip_norm": None}, run={"steps": 50, "checkpoint_every": 1}
    )
    done = training_here(settings)
    assert done.returncode == 1
    assert "must be finite, but at step" in done.stderr
    checkpoints = Checkpoints(tmp_path / "tiny/checkpoints", read_only=True)
    for step in checkpoints.steps():
        state = checkpoints.restore(step, abstract_state(settings, make_mesh(devices=jax.devices()[:1])))
        chex.assert_tree_all_finite((state.optimizer, state.parameters))


@pytest.mark.slow
def test_a_folder_with_broken_pictures_trains_and_names_them(tmp_path):
    """50 pictures in a folder: 3 of them corrupt, 2 without a caption."""
    random_pixels = np.random.default_rng(0)
    captions = []
    for index in range(50):
        name = f"picture{index:02}.png"
        pixels = random_pixels.integers(0, 255, (20 + index % 7, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        captions.append({"image": name, "caption": "" if index in (7, 31) else f"noise number {index}"})
    for index in (3, 19, 42):
        (tmp_path / f"picture{index:02}.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    settings = config(
        tmp_path / "runs",
        model={"text_width": 384},
        data={"source": "folder", "path": str(tmp_path), "image_size": 16, "batch_rows": 8},
        text={"max_tokens": 8, "cache": str(tmp_path / "cache")},
        run={"steps": 14},
    )
    done = training(settings)
    assert done.returncode == 0, done.stderr
    for index in (3, 19, 42, 7, 31):
        assert done.stderr.count(f"picture{index:02}.png") >= 1
    skipped = [line for line in done.stderr.splitlines() if "skipped" in line]
    assert len(skipped) == 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps."""
    settings = label_config(tmp_path_factory.mktemp("trained"), run={"steps": 2})
    done = training_here(settings)
    assert done.returncode == 0, done.stderr
    return settings


def test_a_run_without_metrics_jsonl_draws_and_resumes_with_the_same_bits(trained, tmp_path):
    run = trained.run.replace(root=str(tmp_path), jsonl=False, sample_every=2, sample_prompts=("1",))
    silent = trained.replace(run=run)
    for settings in (silent.replace(run={"steps": 1}), silent):
        done = training_here(settings)
        assert done.returncode == 0, done.stderr
    assert "continuing from step 1" in done.stdout
    (last, ours), (_, theirs) = final_state(silent), final_state(trained)
    assert last == 2
    chex.assert_trees_all_equal(ours, theirs)
    written, unwritten = ({file.name for file in run_folder(one).iterdir()} for one in (trained, silent))
    assert (written - unwritten, unwritten - written) == ({"metrics.jsonl"}, {"samples"})


def test_another_model_in_the_same_folder_is_refused(trained):
    done = training_here(trained.replace(model={"width": 32}, run={"steps": 4}))
    assert done.returncode == 1
    assert "model.width was 16 and is 32" in done.stderr
    assert read_run(Path(trained.run.root) / "tiny").model.width == 16


def test_rows_of_tokens_that_devices_cannot_share_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count=3"
    monkeypatch.setitem(ENVIRONMENT, "XLA_FLAGS", flags)
    done = training(label_config(tmp_path, mesh={"sequence": 3, "ring": 3}))
    assert done.returncode == 1
    assert "multiple of mesh.sequence=3, but there are 16; set data.row_tokens=18" in done.stderr
    assert not (tmp_path / "tiny" / "config.json").exists()


def test_help_needs_no_configuration_and_no_jax(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        env=ENVIRONMENT | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--optimizer.learning-rate" in done.stdout
    assert "| jax\n" not in done.stderr


def test_the_sample_command_draws_the_same_pictures_again_and_says_how(trained, tmp_path):
    folder = Path(trained.run.root) / "tiny"
    for out, start in (("a", sampling), ("b", functools.partial(here, sample.main))):
        done = start(folder, "3", "5", "--seed", "7", "--out", tmp_path / out, "--guidance", "2.5")
        assert done.returncode == 0, done.stderr
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["000-3.png", "001-5.png", "sheet.png"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    settings_of_picture = read_png_metadata(tmp_path / "a" / "001-5.png")
    assert settings_of_picture["prompt"] == "5"
    assert (settings_of_picture["seed"], settings_of_picture["guidance"], settings_of_picture["step"]) == (7, 2.5, 2)


def test_the_evaluate_command_counts_matches_of_trained_and_held_out_pictures(trained, tmp_path):
    folder, file = Path(trained.run.root) / "tiny", tmp_path / "inner" / "numbers.json"
    done = here(evaluate.main, folder, "--likelihood", "2", "--network", "none", "--json", file)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(file.read_text())
    assert {name: numbers[name] for name in ("run", "step", "modality")} == {
        "run": "tiny",
        "step": 2,
        "modality": "image",
    }
    assert numbers["samples"].keys() == {
        "drawn", "prompts", "seed", "nearest_trained_on", "nearest_held_out", "nearest_all"
    }  # fmt: skip
    assert f"{numbers['likelihood']['bits']:.3f} bits a value" in done.stdout
    assert numbers["losses"]["image"].keys() == {"held_out", "trained_on"}
    assert "of   14 nearest" in done.stdout
    assert "of    2 nearest" in done.stdout
    assert re.search(r"2 pictures have \d+\.\d+ bits a value", done.stdout)
    assert (folder / "samples/2/evaluated-seed-1/sheet.png").exists()
    assert len(list((folder / "samples/2/evaluated-seed-1").glob("0*.png"))) == 16
