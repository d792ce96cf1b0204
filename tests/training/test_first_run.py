"""The output of a first run: a header, phases, sheets, and how to continue when it is complete."""

import json
from pathlib import Path

import pytest

from lumina_jax.training.jsonl import read_metrics
from tests.training.processes import training, training_here
from tests.training.tiny import label_config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that is told nothing of prompts, and what it said."""
    settings = label_config(
        tmp_path_factory.mktemp("first"), run={"steps": 4, "sample_every": 2, "profile": "2:3", "log_every": 1}
    )
    done = training(settings)
    assert done.returncode == 0, done.stderr
    return settings, done


def test_a_run_names_itself_and_its_phases_in_order(first):
    said = first[1].stdout
    header = ["run ", "model ", "devices ", "data ", "batch "]
    phases = ["compiling", "compiled in", "drawing a sheet", "step 4 of 4"]
    offsets = [f"\n{said}".find(f"\n{word}") for word in [*header, *phases]]
    assert -1 not in offsets
    assert offsets == sorted(offsets)
    assert "pictures/s" in said


def test_prompts_of_the_sheets_are_taken_from_the_data_and_saved(first):
    settings, _ = first
    folder = Path(settings.run.root) / "tiny"
    saved = json.loads((folder / "config.json").read_text())["run"]["sample_prompts"]
    assert len(set(saved)) == 8
    assert all(0 <= int(label) < settings.data.source.emoji_names for label in saved)
    assert [file.name for file in sorted((folder / "samples").iterdir())] == ["step_0000002.png", "step_0000004.png"]


def test_the_speed_is_logged_in_samples_and_the_trace_lies_in_the_run(first):
    folder = Path(first[0].run.root) / "tiny"
    assert all("samples_per_second" in line for line in read_metrics(folder))
    assert list((folder / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [2, 4])
def test_a_run_that_is_complete_says_so_and_how_to_go_on(first, steps):
    settings, _ = first
    before = (Path(settings.run.root) / "tiny" / "config.json").read_bytes()
    done = training_here(settings.replace(run={"steps": steps, "profile": ""}))
    assert done.returncode == 0, done.stderr
    assert f"is complete: its newest checkpoint is of step 4, and run.steps is {steps}" in done.stdout
    assert "larger --run.steps" in done.stdout
    assert (Path(settings.run.root) / "tiny" / "config.json").read_bytes() == before
