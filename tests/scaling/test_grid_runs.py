"""Grids that are trained: the lines of their runs, what is never run twice, and what a kill leaves behind.

python -m pytest -n 0 -s -m slow tests/scaling/test_grid_runs.py        KILLS=5 in the environment: only so many
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lumina_jax.aot.flops import step_flops
from lumina_jax.aot.plan import batch_load
from lumina_jax.commands.scaling import run as command
from lumina_jax.scaling.grid import read_grid
from lumina_jax.scaling.progress import GridProgress
from lumina_jax.scaling.results import read_result, settings_digest, write_tables
from lumina_jax.scaling.sizes import with_size
from tests.scaling.tiny_grid import LARGE, SMALL, tiny_grid
from tests.training.processes import ENVIRONMENT, ROOT, here
from tests.training.tiny import label_config

CONFIG = label_config(data={"emoji_names": 8})
KILLS = int(os.environ.get("KILLS", "30"))


def written(folder, grid):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").write_text(grid.to_json())
    return folder / "grid.json"


def steps_of(size, count):
    """A budget for this number of steps."""
    config = with_size(CONFIG, size)
    return (count + 0.5) * step_flops(config.model, batch_load(config)).total


def lines(folder):
    return [json.loads(line) for line in (folder / "RUNS.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A grid of one size and two seeds, trained in this process."""
    folder = tmp_path_factory.mktemp("trained")
    grid = tiny_grid(recipes={"tiny": CONFIG}, budgets=(steps_of(SMALL, 4),), seeds=(0, 1))
    file = written(folder, grid)
    done = here(command.main, file, "--here")
    assert done.returncode == 0, done.stderr
    write_tables(grid, folder)
    return grid, file


def test_each_run_is_one_line_with_the_numbers_of_its_cell_and_its_held_out_loss(trained):
    grid, file = trained
    found = lines(file.parent)
    assert [line["seed"] for line in found] == [0, 1]
    for cell, line in zip(grid.cells, found):
        assert {name: line[name] for name in ("recipe", "parameters", "samples", "flops", "steps", "batch")} == {
            "recipe": "tiny", "parameters": cell.parameters, "samples": 16, "flops": cell.flops, "steps": 4, "batch": 4
        }  # fmt: skip
        assert line["curve"][-1] == [cell.flops, line["loss"]]
        assert [flops for flops, _ in line["curve"]] == [cell.flops / 2, cell.flops]
        assert line["held_out"]
        assert not {"seconds", "hours", "host"} & line.keys()
    assert found[0]["loss"] != found[1]["loss"]


def test_the_loss_of_a_line_is_that_of_the_averaged_parameters_in_the_checkpoint(trained):
    import lumina_jax

    grid, file = trained
    pipeline = lumina_jax.open_run(file.parent / "runs" / grid.cells[0].name)
    found = lumina_jax.held_out_loss(pipeline)
    line = lines(file.parent)[0]
    assert (line["loss"], line["middle_loss"]) == pytest.approx((found.loss, found.middle), rel=1e-6)


def test_a_grid_that_is_over_is_not_trained_again(trained):
    _, file = trained
    before = {path: path.stat().st_mtime_ns for path in file.parent.glob("runs/*/result.json")}
    done = here(command.main, file)
    assert done.returncode == 0, done.stderr
    assert "2 runs, of which 2 are over; 0 FLOPs are left" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in file.parent.glob("runs/*/result.json")} == before
    assert len(lines(file.parent)) == 2


def test_a_table_that_was_lost_is_made_again_in_the_order_of_the_grid(trained):
    _, file = trained
    table = file.parent / "RUNS.jsonl"
    before = table.read_bytes()
    table.write_text("")
    assert here(command.main, file).returncode == 0
    assert table.read_bytes() == before


def test_a_folder_that_was_trained_for_another_grid_is_refused(trained):
    grid, file = trained
    changed = dataclasses.replace(grid, recipes={"tiny": CONFIG.replace(flow={"times": "uniform"})})
    with pytest.raises(ValueError, match="was trained with other settings than those of the grid"):
        read_result(changed, changed.cells[0], file.parent)
    moved = dataclasses.replace(grid, recipes={"tiny": CONFIG.replace(mesh={"fsdp": None})})
    assert read_result(moved, moved.cells[0], file.parent) is not None


def test_the_runs_of_a_grid_write_metrics_jsonl_whatever_the_recipe_says(trained):
    grid, file = trained
    recipe = CONFIG.replace(run={"jsonl": False})
    silent = dataclasses.replace(grid, recipes={"tiny": recipe})
    assert silent.config(grid.cells[0], file.parent).run.jsonl
    assert settings_digest(recipe) == settings_digest(CONFIG), "as before there was run.jsonl"


def test_a_run_that_diverges_is_over_and_stands_in_a_table_of_its_own(tmp_path):
    config = CONFIG.replace(optimizer={"learning_rate": 1e18, "clip_norm": None})
    grid = tiny_grid(recipes={"wild": config}, budgets=(steps_of(SMALL, 4),))
    file = written(tmp_path, grid)
    done = here(command.main, file, "--here")
    assert done.returncode == 0, done.stderr
    done = here(command.main, file)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RUNS.jsonl").exists()
    (line,) = map(json.loads, (tmp_path / "FAILED.jsonl").read_text().splitlines())
    assert "must be finite, but at step" in line["failed"]
    assert "loss" not in line
    assert "which are in no fit: wild-1x16" in done.stdout


def test_parts_of_a_grid_are_chosen_by_whole_words_of_their_names(tmp_path):
    grid = tiny_grid(recipes={"tiny": CONFIG}, sizes=(SMALL, LARGE), budgets=(2e7, 2e8), seeds=(0, 1))
    file = written(tmp_path, grid)

    def names(*words):
        done = here(command.main, file, "--dry", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[1:]

    assert names("--only", "1x16", "--but", "2e8") == ["tiny-1x16-2e7-s0", "tiny-1x16-2e7-s1"]
    assert len(names("--but", "tiny-2x16-2e8-s1")) == 7
    refused = here(command.main, file, "--dry", "--only", "x16")
    assert refused.returncode == 1
    assert "'x16' must be a part of the name of a run, such as tiny-1x16-2e7-s0" in refused.stderr
    assert "leave no run" in here(command.main, file, "--only", "1x16", "--but", "tiny").stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no grid"),
        ("{}", "source: field required"),
        ("[", "must be JSON"),
        ("twice", "each run of a grid needs its own name, but tiny-1x16-2e7-s0 comes twice"),
        ("recipe", "the recipes of the cells must be among"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, said):
    file, grid = tmp_path / "grid.json", json.loads(tiny_grid().to_json())
    if text == "twice":
        text = json.dumps(grid | {"cells": grid["cells"] * 2})
    if text == "recipe":
        text = json.dumps(grid | {"cells": [grid["cells"][0] | {"recipe": "other"}]})
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_grid(file)


def test_progress_counts_flops_and_judges_the_time_left_by_the_hours_of_the_plan(capsys):
    first, second = tiny_grid(recipes={"tiny": CONFIG}, budgets=(2e7, 6e7)).cells
    first, second = dataclasses.replace(first, hours=1.0), dataclasses.replace(second, hours=3.0)
    clock = iter([0.0, 100.0, 200.0])
    progress = GridProgress([first, second], clock=lambda: next(clock))
    progress.ended(first, True)
    assert "1 of 2 runs" in (said := capsys.readouterr().out)
    assert "5:00 left" in said  # 100 seconds for 1 of 4 hours
    progress.shown({second: second.steps // 3})
    assert f"{second.name} {second.steps // 3}/{second.steps}" in capsys.readouterr().out


def started(file, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "lumina_jax", "scaling", "run", str(file), *words],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_grid_killed_again_and_again_gives_the_lines_of_an_undisturbed_one(tmp_path):
    moments = random.Random(int(os.environ.get("SEED", "0")))
    grid = tiny_grid(
        recipes={"tiny": CONFIG},
        sizes=(SMALL, LARGE),
        budgets=(steps_of(LARGE, 40), steps_of(LARGE, 120)),
        seeds=(0, 1),
    )
    whole, broken = written(tmp_path / "whole", grid), written(tmp_path / "broken", grid)
    said, _ = (process := started(whole, "--jobs", "1")).communicate(timeout=1800)
    assert process.returncode == 0, said
    for number in range(KILLS):
        process = started(broken)
        time.sleep(moments.uniform(1, 20))
        how = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        if process.poll() is None:
            process.send_signal(how)
        said, _ = process.communicate(timeout=300)
        assert "another run" not in said
        over = len(list((tmp_path / "broken").glob("runs/*/result.json")))
        print(f"{number + 1} of {KILLS}: {how.name}, {over} of {len(grid.cells)} runs are over", flush=True)
        if over == len(grid.cells):
            break
    said, _ = (process := started(broken)).communicate(timeout=1800)
    assert process.returncode == 0, said
    assert (tmp_path / "broken/RUNS.jsonl").read_bytes() == (tmp_path / "whole/RUNS.jsonl").read_bytes()
    assert len(lines(tmp_path / "broken")) == len(grid.cells)
