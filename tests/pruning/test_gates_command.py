"""lumina gates: what it prints and writes, what its models can do, and what it refuses before anything is written."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import lumina_jax.pruning.figure
import lumina_jax.trained
import lumina_jax.trainer
from lumina_jax.commands import convert, gates, sample
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import check_heads
from lumina_jax.run import read_run, write_config
from lumina_jax.trained import open_run, save
from lumina_jax.trainer import Trainer
from tests.generation.test_pipeline import SETTINGS as DRAWN
from tests.generation.test_pipeline import Words
from tests.models.random_models import random_parameters
from tests.training.processes import here
from tests.training.tiny import MODEL, config

SETTINGS = config()
SETTINGS = SETTINGS.replace(model=SETTINGS.model.replace(heads=4, width=32))
GATES = np.float32([[0.5, 0.0, -0.25, 0.0], [0.0, 1.0, 0.03, 0.0]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of which two heads in each layer are closed, with captions that no trained encoder needs to read."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (lumina_jax.trained, lumina_jax.trainer):
            patch.setattr(module, "encoder_of", lambda config: Words())
        parameters = random_parameters(SETTINGS.model)
        parameters["blocks"]["text"]["gate"] = jnp.asarray(GATES)
        pipeline = Pipeline(SETTINGS, abstract_model(SETTINGS.model)[0], parameters, Words())
        pipeline.step = 7
        yield save(pipeline, tmp_path_factory.mktemp("runs") / "tiny")


def show(*words):
    done = here(gates.main, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gates_are_printed_by_layer_and_head_without_reading_anything_else(run, monkeypatch):
    monkeypatch.setattr(lumina_jax.trained, "open_run", None)
    said = show(run)
    assert "tiny at step 7, a run of lumina_jax" in said
    rows = [re.findall(r"[+-][0-9.]+", line) for line in said.splitlines()[2:4]]
    assert rows == [["+0.462", "+0.000", "-0.245", "+0.000"], ["+0.000", "+0.762", "+0.030", "+0.000"]]
    assert "|tanh(gate)| is 0.0000 to 0.7616, with a median of 0.0150; below 0.01: 50%, 0.02: 50%, 0.05: 62%" in said


def test_converted_weights_show_the_same_gates_and_are_pruned_with_a_configuration_alone(run, tmp_path, monkeypatch):
    converted, file = tmp_path / "converted", tmp_path / "config.json"
    done = here(convert.main, run, converted, "--from", "jax", "--to", "jax")
    assert done.returncode == 0, done.stderr
    assert gates_in(show(converted)) == gates_in(show(run))
    done = here(gates.main, converted, "--keep", 0.5, "--out", tmp_path / "half")
    assert done.returncode == 1
    assert "name its configuration with --config FILE" in done.stderr
    file.write_bytes((run / "config.json").read_bytes())
    monkeypatch.setattr(gates, "prune", lambda pipeline, count, arguments: (pipeline.config.model.heads, count))
    show(converted, "--config", file, "--keep", 0.5, "--json", tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert (numbers["run"], numbers["before"], numbers["after"]) == ("converted", 4, 2)


def gates_in(said):
    return [line for line in said.splitlines() if "+" in line]


@pytest.fixture(scope="module")
def half(run, tmp_path_factory):
    """What is said of a run with half the heads, and its folder."""
    folder = tmp_path_factory.mktemp("pruned")
    said = show(run, "--keep", 0.5, "--batch", 2, "--out", folder / "half", "--json", folder / "numbers.json")
    return said, folder


@pytest.mark.slow
def test_a_pruned_model_costs_less_and_draws_the_same(run, half):
    said, folder = half
    assert "2 of 4 heads in each layer are kept" in said
    assert "+0.462  (+0.000)  -0.245  (+0.000)" in said
    assert f"the pruned model is in {folder / 'half'}" in said
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["text_heads"] == 2
    before, after = numbers["before"], numbers["after"]
    for name in ("flops", "xla_flops", "text_flops", "parameters"):
        assert after[name] < before[name]
    whole, small = open_run(run), open_run(folder / "half")
    assert (small.step, small.config.model.text_heads) == (7, 2)
    assert small.config.data == whole.config.data
    drawn = [np.asarray(one.latents(np.ones((1, 1, 32, 32, 3), np.float32), ["ab"], DRAWN)) for one in (whole, small)]
    np.testing.assert_allclose(*drawn, atol=1e-4 * np.abs(drawn[0]).max())


@pytest.mark.slow
def test_flops_that_are_saved_are_those_of_half_the_text_attention_and_values(half):
    """By hand: 2 pictures of 4 x 4 patches with a token at the end of each line, 32 tokens of text, 2 layers."""
    numbers = json.loads((half[1] / "numbers.json").read_text())
    attention, values = 2 * 2 * (2 * 20 * 32 * 16), 2 * (2 * 32 * 6 * 16)
    saved = numbers["before"]["flops"] - numbers["after"]["flops"]
    assert saved == 2 * (attention + values)
    assert numbers["before"]["xla_flops"] - numbers["after"]["xla_flops"] == pytest.approx(saved, rel=0.25)


@pytest.mark.slow
def test_a_pruned_run_is_drawn_from_trained_on_and_converted(half, tmp_path):
    folder = half[1] / "half"
    done = here(sample.main, folder, "ab", "c", "--out", tmp_path / "samples")
    assert done.returncode == 0, done.stderr
    opened = open_run(folder)
    trainer = Trainer(opened.config, opened.parameters)
    loss = trainer.step(np.zeros((4, 32, 32, 3), np.float32), ["a", "b", "c", "d"])
    assert np.isfinite(loss)
    done = here(convert.main, folder, tmp_path / "lumina", "--from", "jax", "--to", "lumina")
    assert done.returncode == 0, done.stderr
    done = here(convert.main, tmp_path / "lumina", tmp_path / "back", "--from", "lumina", "--to", "jax")
    assert done.returncode == 0, done.stderr
    back = open_run(tmp_path / "back", config=opened.config)
    assert back.config.model.text_heads == 2
    jax.tree.map(np.testing.assert_array_equal, back.parameters, without_nextframe(opened.parameters))
    assert np.isfinite(back.latents(np.ones((1, 1, 32, 32, 3), np.float32), ["ab"], DRAWN)).all()


def without_nextframe(parameters):
    """What a PyTorch layout keeps of a model of pictures, with the embedding of padding that it adds."""
    kept = {name: value for name, value in parameters.items() if name != "nextframe_token"}
    return kept | {"pad_token": np.zeros_like(parameters["nextframe_token"])}


@pytest.mark.slow
def test_the_curve_says_what_the_text_of_each_number_of_heads_is_worth(run):
    said = show(run, "--curve", "--loss-samples", 4).splitlines()
    losses = [float(re.split(r"% +", line)[1].split()[0]) for line in said[-5:]]
    assert [line.split()[0] for line in said[-5:]] == ["4", "3", "2", "1", "0"]
    assert losses[0] == losses[1] == losses[2]  # the others were closed before
    assert len({*losses[2:]}) == 3


def test_the_figure_is_a_png_and_is_refused_without_matplotlib(run, tmp_path, monkeypatch):
    assert lumina_jax.pruning.figure.gates_figure(GATES, np.array([[0, 2], [1, 2]])).startswith(b"\x89PNG")
    monkeypatch.setattr(lumina_jax.pruning.figure.importlib.util, "find_spec", lambda name: None)
    done = here(gates.main, run, "--plot", tmp_path / "gates.png")
    assert done.returncode == 1
    assert "--plot needs matplotlib; pip install 'lumina_jax[scaling]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--keep", "0"], "must be above 0 and at most 1, but is 0"),
        (["--keep", "1.5"], "must be above 0 and at most 1, but is 1.5"),
        (["--threshold", "nan"], "must be above 0 and at most 1, but is nan"),
        (["--keep", "0.5", "--threshold", "0.1"], "leave out one of them"),
        (["--out", "somewhere"], "--out needs the heads to keep: --keep 0.5, or --threshold 0.02"),
        (["--batch", "0"], "batch=0 must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_one_error(run, words, reason):
    done = here(gates.main, run, *words)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.startswith("error: ")


def test_a_folder_that_exists_and_models_without_gates_are_refused(run, tmp_path):
    done = here(gates.main, run, "--keep", 0.5, "--out", tmp_path)
    assert f"--out {tmp_path} exists; name a new folder" in done.stderr
    for name, changes in (("label", {"conditioning": "label"}), ("dit", {"block": "dit"})):
        write_config(config(tmp_path, model=MODEL.replace(**changes), run={"name": name}))
        done = here(gates.main, tmp_path / name, "--keep", 0.5)
        assert done.returncode == 1
        assert "name a text-conditional Flag-DiT or Next-DiT" in done.stderr


@pytest.mark.slow
def test_heads_that_all_devices_divide_are_refused_in_a_pruned_model(half):
    model, mesh = read_run(half[1] / "half").model, AbstractMesh((1, 2), ("fsdp", "tensor"))
    with pytest.raises(ValueError, match=r"mesh.tensor=2 divides the heads.*model.text_heads=2.*set mesh.tensor to 1"):
        check_heads(model, mesh)
    check_heads(model.replace(text_heads=None), mesh)
