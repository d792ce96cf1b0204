"""The held-out loss while a run trains: beside the loss, and without changing it."""

import json
import re
import shutil

import chex
import pytest

from lumina_jax.commands import evaluate
from lumina_jax.config import RunConfig
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.held_out import held_out_loss
from lumina_jax.models.precision import matrix_type
from lumina_jax.run import run_folder, write_config
from lumina_jax.trained import open_run
from lumina_jax.training.loop import due_after
from tests.training.processes import here, training_here
from tests.training.test_metrics import events
from tests.training.test_run import final_state
from tests.training.tiny import label_config


def lines_of(settings):
    text = (run_folder(settings) / "metrics.jsonl").read_text()
    return {line.pop("step"): line for line in map(json.loads, text.splitlines())}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run of six steps that is evaluated every third, and what it printed."""
    settings = label_config(tmp_path_factory.mktemp("evaluated"), run={"evaluate_every": 3, "keep_checkpoints": 3})
    done = training_here(settings)
    assert done.returncode == 0, done.stderr
    return settings, done.stdout


@pytest.fixture(scope="module")
def recorded(evaluated):
    return lines_of(evaluated[0])


def test_the_held_out_loss_is_beside_the_loss_of_its_step(evaluated, recorded):
    settings, printed = evaluated
    assert [*recorded] == [2, 3, 4, 6]
    assert ["held_out_loss" in line for line in recorded.values()] == [False, True, False, True]
    assert recorded[3].keys() == recorded[6].keys() >= {"loss", "held_out_loss", "held_out_loss_error"}
    assert "every 3 steps 2 held-out samples are measured" in printed
    assert re.search(rf"tiny 3/6  loss [\d.]+ .* held out {recorded[3]['held_out_loss']:.4g}", printed)
    shown = {
        (event.step, value.tag): value.simple_value
        for event in events(run_folder(settings))
        for value in event.summary.value
    }
    assert shown[3, "held_out_loss"] == pytest.approx(recorded[3]["held_out_loss"])
    assert (4, "held_out_loss") not in shown


def test_the_held_out_loss_is_that_of_the_averaged_weights(evaluated, recorded):
    found = held_out_loss(open_run(run_folder(evaluated[0])))
    assert recorded[6]["held_out_loss"] == pytest.approx(found.loss, rel=1e-9)
    assert recorded[6]["held_out_loss_error"] == pytest.approx(found.standard_error, rel=1e-9)


def test_training_is_the_same_bit_for_bit_without_it(evaluated, recorded, tmp_path):
    plain = label_config(tmp_path)
    assert training_here(plain).returncode == 0
    chex.assert_trees_all_equal(final_state(plain), final_state(evaluated[0]))
    for step, line in lines_of(plain).items():
        assert line["loss"] == recorded[step]["loss"]
        assert line["gradient_norm"] == recorded[step]["gradient_norm"]


@pytest.mark.parametrize("samples", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_the_loss_is_that_of_float32_weights_whatever_the_type_that_draws(evaluated, tmp_path, monkeypatch, samples):
    settings = evaluated[0].replace(run={"root": str(tmp_path)}, sample={"weights": "bfloat16"})
    shutil.copytree(run_folder(evaluated[0]), run_folder(settings))
    write_config(settings)
    types = []

    def act(drawing_or_pipeline, pipeline_or_arguments):
        found = [one for one in (drawing_or_pipeline, pipeline_or_arguments) if isinstance(one, Pipeline)]
        types.append(matrix_type(found[0].parameters))
        return {}

    monkeypatch.setattr(evaluate, "losses", act)
    monkeypatch.setattr(evaluate.Drawing, "__call__", act)
    evaluate.evaluate(evaluate.Arguments(run_folder(settings), limit=1, loss_samples=samples))
    assert types == ["float32"] * bool(samples) + ["bfloat16"]


@pytest.mark.slow
def test_a_run_that_continues_measures_the_same(evaluated, recorded, tmp_path):
    settings = evaluated[0].replace(run={"root": str(tmp_path)})
    shutil.copytree(run_folder(evaluated[0]), run_folder(settings))
    for step in (4, 6):
        shutil.rmtree(run_folder(settings) / "checkpoints" / f"{step}")
    done = training_here(settings)
    assert "continuing from step 2" in done.stdout
    again = lines_of(settings)
    assert {step: line.get("held_out_loss") for step, line in again.items()} == {
        step: line.get("held_out_loss") for step, line in recorded.items()
    }


@pytest.mark.slow
def test_samples_of_training_are_measured_and_called_that_where_none_is_held_out(tmp_path):
    settings = label_config(
        tmp_path, data={"split": "all"}, run={"evaluate_every": 9, "steps": 2, "evaluate_samples": 5}
    )
    done = training_here(settings)
    assert "every 9 steps 5 samples of training, because none is held out, are measured" in done.stdout
    line = lines_of(settings)[2]  # the last step
    assert "held_out_loss" not in line
    assert re.search(rf"trained on {line['trained_on_loss']:.4g}", done.stdout)


def test_the_evaluate_command_prints_the_loss_of_held_out_and_other_samples_and_draws_nothing(
    evaluated, recorded, tmp_path
):
    folder, file = run_folder(evaluated[0]), tmp_path / "numbers.json"
    done = here(evaluate.main, folder, "--limit", "0", "--json", file)
    assert done.returncode == 0, done.stderr
    losses = json.loads(file.read_text())["losses"]["image"]
    assert losses["held_out"]["loss"] == pytest.approx(recorded[6]["held_out_loss"], rel=1e-6)
    assert losses["held_out"]["is_held_out"]
    assert not losses["trained_on"]["is_held_out"]
    assert (losses["held_out"]["samples"], losses["trained_on"]["samples"]) == (2, 14)
    for name, part in (("held out", losses["held_out"]), ("trained on", losses["trained_on"])):
        assert (
            f"{name:<11} {part['loss']:.4f} +- {part['standard_error']:.4f}, samples: {part['samples']}" in done.stdout
        )
        assert " ".join(f"{value:5.3f}" for value in part["curve"]) in done.stdout
    assert not (folder / "samples").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--limit", "0", "--loss-samples", "0"], "nothing is evaluated with --limit 0 --loss-samples 0"),
        (["--limit", "-1"], "limit=-1 must not be negative; 0 leaves it out"),
        (["--batch", "0"], "batch=0 must be at least 1"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(tmp_path, flags, said):
    done = here(evaluate.main, tmp_path, *flags)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_step_is_evaluated_by_its_number_or_as_the_last_of_the_run_alone():
    run = RunConfig(steps=10, evaluate_every=4, log_every=100, checkpoint_every=100)
    assert [number for number in range(1, 11) if due_after(run, number, stopping=number == 10).evaluating] == [4, 8, 10]
    assert not due_after(run, 5, stopping=True).evaluating  # a request to stop should not wait for it
    assert due_after(run, 4, stopping=False).logging
    assert not any(due_after(RunConfig(steps=10, log_every=3), 10, stopping=False))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"run.evaluate_every=0 must be at least 1, or None for never"):
        RunConfig(evaluate_every=0)
    with pytest.raises(ValueError, match=r"run.evaluate_samples=0 must be at least 1"):
        RunConfig(evaluate_samples=0)
