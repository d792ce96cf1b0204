"""Steps, batches, rates and hours of the cells of a grid, by hand; and what a plan refuses."""

import json

import pytest

from lumina_jax.aot.flops import step_flops
from lumina_jax.aot.plan import batch_load
from lumina_jax.chips import CHIPS, parse_topology
from lumina_jax.commands.scaling import plan as command
from lumina_jax.scaling.grid import read_grid
from lumina_jax.scaling.machine import assumed, machine_of, on_pod, pod_of
from lumina_jax.scaling.plan import PlanRules, budget_word, notes, planned_cells
from lumina_jax.scaling.sizes import ModelSize, sized
from lumina_jax.training.state import parameter_count
from tests.scaling.tiny_grid import LARGE, SMALL, cells_of, cost
from tests.training.processes import here
from tests.training.tiny import label_config

CONFIG = label_config()


def flops_by_hand(layers, width=16, mlp=48, rows=4, tokens=16, classes_width=16, values=192):
    """Products of a training step of the tiny model, whose heads fill its width: forward, and twice that backward, but
    once for the noised patches and for the sinusoids of time, which need no gradient."""
    attention = 4 * 2 * width * width + 2 * 2 * tokens * width
    forward = layers * rows * tokens * (attention + 3 * 2 * width * mlp)
    adaln = rows * 2 * classes_width * width * (layers * 6 + 2)
    time = rows * 2 * classes_width
    return (
        3 * forward + 3 * adaln + 2 * time * 256 + 3 * time * classes_width
        + rows * tokens * 2 * width * (2 * values + 3 * values)
    )  # fmt: skip


def test_a_cell_counted_by_hand():
    """4 pictures of 4 x 4 patches of 8 x 8 x 3 values in a step; a budget of 10.5 steps."""
    step = flops_by_hand(layers=2)
    (cell,), short = cells_of({"tiny": CONFIG}, sizes=[LARGE], budgets=[10.5 * step], seeds=[3])
    assert (cell.steps, cell.batch, cell.samples, cell.seed) == (10, 4, 40, 3)
    assert cell.flops == 10 * step
    assert cell.hours == pytest.approx(10 * step / 0.5e12 / 3600)
    assert cell.parameters == parameter_count(sized(CONFIG.model, LARGE))
    assert (cell.rate, cell.warmup) == (CONFIG.optimizer.learning_rate, 0)
    assert short == []


def test_a_grid_holds_every_size_budget_seed_and_recipe_in_the_order_of_budgets_and_parameters():
    recipes = {"one": CONFIG, "two": CONFIG.replace(flow={"times": "uniform"})}
    cells, _ = cells_of(recipes, sizes=[LARGE, SMALL], budgets=[4e7, 2e7], seeds=[0, 1])
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 2 * 2 * 2
    keys = [(cell.budget, cell.parameters) for cell in cells]
    assert keys == sorted(keys)
    assert all(0 <= cell.budget - cell.flops < cell.flops / cell.steps for cell in cells)


def test_batch_and_rate_follow_the_rules():
    wide = ModelSize(layers=2, width=64, heads=8)
    cells, _ = cells_of(
        {"tiny": CONFIG}, sizes=[LARGE, wide], budgets=[1e9, 16e9],
        batch_power=0.5, width_power=1.0, batch_rate_power=0.5,
    )  # fmt: skip
    found = {(cell.size.width, cell.budget): (cell.batch, cell.rate) for cell in cells}
    rate = CONFIG.optimizer.learning_rate
    assert found == {
        (16, 1e9): (4, rate),
        (64, 1e9): (4, rate / 4),
        (16, 16e9): (16, 2 * rate),
        (64, 16e9): (16, rate / 2),
    }
    steps = {(cell.size.width, cell.budget): cell.steps for cell in cells}
    load = batch_load(CONFIG.replace(data={"batch_rows": 16}))
    assert steps[64, 16e9] == int(16e9 / step_flops(sized(CONFIG.model, wide), load).total)


def test_a_warmup_is_at_most_a_tenth_of_a_run():
    config = CONFIG.replace(optimizer={"warmup_steps": 5})
    cells, _ = cells_of({"tiny": config}, budgets=[2.05e7, 4e8])
    assert [cell.warmup for cell in cells] == [min(5, cell.steps // 10) for cell in cells]
    assert cells[0].warmup < 5 == cells[1].warmup


def test_short_runs_are_left_out_by_name_and_budgets_below_a_step_refused():
    cells, short = cells_of({"tiny": CONFIG}, sizes=[SMALL, LARGE], budgets=[2e7, 2e8], least_steps=10)
    assert len(cells) == 2
    assert short == ["tiny-1x16-2e7-s0", "tiny-2x16-2e7-s0"]
    with pytest.raises(ValueError, match="must allow at least one step, but 1e5 FLOPs are less"):
        cells_of({"tiny": CONFIG}, budgets=[1e5])
    with pytest.raises(ValueError, match="no run has 1000 steps"):
        cells_of({"tiny": CONFIG}, least_steps=1000)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"data": {"samples_per_row": 2, "row_tokens": 40}}, {}, "each row must hold one sample"),
        ({"run": {"init_from": "runs/other"}}, {}, "start from random parameters"),
        ({}, {"budgets": [2e7, 2e7]}, "--budgets must differ, but 2e7"),
        ({}, {"sizes": [SMALL, SMALL]}, "--sizes must differ, but 1x16"),
        ({}, {"seeds": []}, "--seeds must name at least one"),
        ({}, {"budgets": [-1.0]}, "a budget must be a positive number"),
        ({}, {"batch_power": 2.0}, "batch_power=2.0 must be between 0 and 1"),
    ],
)
def test_what_no_grid_can_hold_is_refused(changes, kind, said):
    with pytest.raises(ValueError, match=said):
        cells_of({"tiny": CONFIG.replace(**changes)}, **kind)


def test_a_plan_warns_of_averages_that_have_not_forgotten_the_first_parameters():
    slow = CONFIG.replace(optimizer={"ema_decay": 0.9999})
    cells, _ = cells_of({"slow": slow, "fast": CONFIG})
    (note,) = notes(cells, {"slow": slow, "fast": CONFIG})
    assert "100% of the average are first, random parameters" in note
    assert "slow-1x16" in note


def test_hours_on_a_chip_are_flops_over_its_peak_and_utilisation():
    machine = machine_of("v5p", 0.4, "bfloat16")
    found = assumed(machine)(CONFIG, batch_load(CONFIG), 1e15)
    assert found.step_seconds == pytest.approx(1e15 / (0.4 * CHIPS["v5p"].flops))
    with pytest.raises(ValueError, match="--device must be 'here' or one of v4"):
        machine_of("v9", 0.4, "bfloat16")


def test_on_a_topology_each_cell_gets_a_mesh_that_fits_and_hours_no_shorter_than_its_peak_allows():
    topology = parse_topology("v5e:2x2")
    pod, config = pod_of(topology, 1.0), CONFIG.replace(data={"batch_rows": 8})
    load = batch_load(config)
    step = step_flops(config.model, load).total
    found = on_pod(topology, pod, 0, print)(config, load, step)
    assert found.mesh is not None
    assert 8 % ((found.mesh.fsdp or 1) * (found.accumulate or 1)) == 0
    assert found.step_seconds >= step / (4 * CHIPS["v5e"].flops)
    huge = config.replace(model={"layers": 64, "width": 16384, "heads": 128})
    with pytest.raises(ValueError, match="no mesh of the 4 devices of v5e:2x2 holds a step of 8 samples"):
        on_pod(topology, pod, 0, print)(huge, load, step)


def test_budgets_are_written_shortly():
    assert [budget_word(budget) for budget in (1e12, 3e12, 1.25e13, 2e20)] == ["1e12", "3e12", "1.25e13", "2e20"]


def test_the_command_writes_a_grid_that_is_read_back(tmp_path):
    (tmp_path / "tiny.json").write_text(CONFIG.to_json())
    out, recipes = tmp_path / "study" / "grid.json", tmp_path / "recipes.yaml"
    recipes.write_text("uniform: --flow.times uniform\nplain:\n")
    done = here(
        command.main, tmp_path / "tiny.json", "--budgets", "2e7,4e7", "--sizes", "1x16,2x16", "--seeds", "0,1",
        "--recipes", recipes, "--recipe", "next: --model.block next", "--device", "v5e", "--out", out,
        "--optimizer.learning-rate", "2e-3", "--price", "1.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grid = read_grid(out)
    assert len(grid.cells) == 2 * 2 * 2 * 3
    assert f"{len(grid.cells)} runs, " in done.stdout
    assert "at 1.2 a device and hour" in done.stdout
    configs = {cell.recipe: grid.config(cell, tmp_path) for cell in grid.cells if cell.budget == 4e7}
    assert [configs[name].flow.times for name in ("uniform", "plain")] == ["uniform", "lognorm"]
    assert configs["next"].model.block == "next"
    assert {config.optimizer.learning_rate for config in configs.values()} == {2e-3}
    assert json.loads(out.read_text())["cells"][0]["budget"] == 2e7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--recipe", "a b"], "a recipe is NAME or 'NAME: FLAGS'"),
        (["--recipe", "wide: --model.width 32"], "'wide' sets model.width"),
        (["--recipe", "a", "--recipe", "a"], "the recipe 'a' is named twice"),
        (["--compile"], "--compile compiles for a topology"),
        (["--measure", "--device", "v5e"], "leave out --device and --topology"),
        (["--topology", "v5p:4x4"], "the torus of v5p has 3 axes"),
        (["--budgets", "many"], "--budgets must be numbers"),
        (["--seeds", "-1"], "--seeds must be whole numbers"),
        (["--out", "grid.txt"], "must be the name of a file that ends in .json"),
        (["--utilisation", "40"], "--utilisation=40.0 must be between 0.001 and 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_written(tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(CONFIG.to_json())
    given = ["--budgets", "2e7", "--sizes", "1x16", *(["--device", "v5e"] if "--measure" not in flags else []), *flags]
    done = here(command.main, "tiny.json", *given)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "grid.json").exists()


def test_the_cost_of_cells_is_asked_with_their_batch():
    asked = []

    def asking(config, load, step_flops):
        asked.append((config.data.batch_rows, load.rows))
        return cost(config, load, step_flops)

    planned_cells({"tiny": CONFIG}, [SMALL], [1e9, 16e9], [0], PlanRules(batch_power=0.5), asking)
    assert asked == [(4, 4), (16, 16)]
