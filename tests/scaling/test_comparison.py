"""The factor of compute between two recipes, planted and found."""

import json

import numpy as np
import pytest

from lumina_jax.commands.scaling import main
from lumina_jax.scaling.comparison import compare, frontier
from lumina_jax.scaling.law import LossLaw
from lumina_jax.scaling.table import Cells, cells_of
from tests.scaling.planted import CHINCHILLA, full_grid, isoflop_grid, planted_runs, random_law, write_runs

LINE = np.geomspace(1e6, 1e8, 6), 20 * np.geomspace(1e6, 1e8, 6)
"""A frontier alone: parameters and samples grow together."""


def two_recipes(saving, grid=None, noise=0.005, law=CHINCHILLA, seed=0):
    random = np.random.default_rng(seed)
    grid = isoflop_grid() if grid is None else grid
    cheap = planted_runs(law, grid, random, noise, recipe="cheap", saving=saving)
    return cheap, planted_runs(law, grid, random, noise, recipe="plain")


def test_the_frontier_holds_cells_that_no_cheaper_cell_beats():
    flops = np.array([4.0, 1.0, 2.0, 2.05, 8.0])
    loss = np.array([0.5, 0.9, 0.7, 0.6, 0.55])
    cells = Cells(flops, flops, flops, loss, np.ones(5, int), flops)
    np.testing.assert_array_equal(frontier(cells).flops, [1.0, 2.05, 4.0])  # 2.0 and 2.05 are one budget
    np.testing.assert_array_equal(frontier(cells, -1.0).values, [-0.9])


def test_a_run_of_few_steps_that_costs_less_than_its_budget_is_no_frontier():
    """As with models so large that they take 11 steps, which cost 7 % less than the budget."""
    cheap, plain = two_recipes(0.4, LINE)
    large = {"parameters": 1e10, "samples": 5.0, "loss": 30.0}
    short = [
        run.model_copy(update=large | {"budget": run.flops, "flops": 0.93 * run.flops})
        for run in (min(runs, key=lambda run: run.flops) for runs in (cheap, plain))
    ]
    alone, beside = compare(cheap, plain, draws=100), compare([*cheap, short[0]], [*plain, short[1]], draws=100)
    assert beside.factor == alone.factor
    for budget in (None, "large", 1e30):  # nothing that says what it was allowed
        unknown = short[0].model_copy(update={"budget": budget})
        assert unknown.budget == unknown.flops


@pytest.mark.parametrize("saving", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("grid", [isoflop_grid(), full_grid(), LINE], ids=["budgets", "full", "frontier"])
def test_a_planted_factor_is_found(grid, saving):
    found = compare(*two_recipes(saving, grid), draws=100)
    value, low, high = found.factor
    assert low <= saving <= high
    assert value == pytest.approx(saving, rel=0.15)
    assert high / low < 4


def test_the_factor_of_the_other_direction_is_the_inverse():
    cheap, plain = two_recipes(0.4, LINE)
    one, other = compare(cheap, plain, draws=100).factor, compare(plain, cheap, draws=100).factor
    assert other[0] == pytest.approx(1 / one[0], rel=1e-3)
    assert other[1] == pytest.approx(1 / one[2], rel=0.05)


def test_factors_at_single_losses_are_those_of_the_frontiers():
    found = compare(*two_recipes(0.4, LINE, noise=0.0), draws=100)
    assert len(found.at) == 5
    np.testing.assert_allclose([factor for _, factor in found.at], 0.4, rtol=1e-6)
    losses = cells_of(two_recipes(0.4, LINE, noise=0.0)[0]).values
    assert found.losses == (losses.min(), losses.max())


def test_a_metric_of_which_more_is_better_is_compared():
    cheap, plain = two_recipes(0.4, LINE, noise=0.002)
    with_recall = [[run.model_copy(update={"recall": 1 - run.loss / 20}) for run in runs] for runs in (cheap, plain)]
    with_recall = [[type(run)(**run.model_dump()) for run in runs] for runs in with_recall]
    found = compare(*with_recall, metric="recall", better="higher", draws=100)
    assert found.factor[1] <= 0.4 <= found.factor[2]
    assert found.factor[0] == pytest.approx(0.4, rel=0.1)
    assert 0 < found.losses[0] < found.losses[1] < 1


def test_losses_that_do_not_overlap_are_refused():
    cheap, _ = two_recipes(0.5, LINE)
    _, plain = two_recipes(0.5, tuple(1e4 * one for one in LINE))
    with pytest.raises(ValueError, match=r"ranges of loss must overlap, but are .* of cheap and .* of plain"):
        compare(cheap, plain)


def test_too_few_cells_are_refused():
    cheap, plain = two_recipes(0.5, tuple(one[:2] for one in LINE))
    with pytest.raises(ValueError, match="at least 6 cells on both frontiers together, but there are 4"):
        compare(cheap, plain)
    with pytest.raises(ValueError, match="at least 2 budgets at which cheap improves"):
        compare([run.model_copy(update={"loss": 3 - run.loss / 2}) for run in cheap], plain)


def test_the_command_writes_the_factor(tmp_path, capsys):
    cheap, plain = two_recipes(0.4, LINE)
    file = write_runs(tmp_path / "runs.jsonl", cheap + plain)
    words = ["compare", f"{file}", "--of", "cheap", "--against", "plain", "--bootstrap", "100"]
    assert main([*words, "--json", f"{tmp_path / 'factor.json'}"]) == 0
    found = json.loads((tmp_path / "factor.json").read_text())
    assert found["factor"]["low"] <= 0.4 <= found["factor"]["high"]
    assert found["range"]["low"] < found["range"]["high"]
    assert ": less compute" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--of", "cheap", "--against", "cheap"], "different recipes"),
        (["--of", "other", "--against", "plain"], "--of must be one of cheap, plain"),
        (["--of", "cheap", "--against", "plain", "--metric", "fid"], "column 'fid'"),
        (["--of", "cheap", "--against", "plain", "--bootstrap", "3"], "bootstrap=3"),
    ],
)
def test_wrong_flags_of_the_command_are_refused(tmp_path, capsys, words, message):
    cheap, plain = two_recipes(0.4, LINE)
    file = write_runs(tmp_path / "runs.jsonl", cheap + plain)
    with pytest.raises(SystemExit):
        main(["compare", f"{file}", *words])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("grid", [isoflop_grid(), full_grid(), LINE], ids=["budgets", "full", "frontier"])
def test_a_planted_factor_is_inside_its_interval_as_often_as_stated(grid, noise):
    random, inside = np.random.default_rng(0), []
    for seed in range(40):
        saving = random.uniform(0.1, 0.9)
        law: LossLaw = random_law(random, grid, least=0.1)
        _, low, high = compare(*two_recipes(saving, grid, noise, law, seed), draws=200).factor
        inside.append(low <= saving <= high)
    print(noise, np.mean(inside))
    assert np.mean(inside) >= 0.9
