"""From runs to predictions, and what is refused."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lumina_jax.commands.scaling import fit as command
from lumina_jax.commands.scaling import main
from lumina_jax.scaling.budget import sample_cost
from lumina_jax.scaling.fitting import fit_runs, untold
from lumina_jax.scaling.law import LossLaw
from lumina_jax.scaling.parabolas import budgets_of, isoflops
from lumina_jax.scaling.settings import FitSettings, budgets
from lumina_jax.scaling.table import cells_of
from tests.scaling.planted import CHINCHILLA, FLOPS, full_grid, isoflop_grid, planted_cells, planted_runs, write_runs

QUICK = {"bootstrap": 100, "noise": "relative"}


def runs_of(law=CHINCHILLA, grid=None, noise=0.003, seed=0, **settings):
    return planted_runs(law, grid or isoflop_grid(), np.random.default_rng(seed), noise, **settings)


def best_size(law, flops, per_sample=lambda size: FLOPS * size):
    """The size of the least loss for a budget, by search."""
    found = minimize_scalar(
        lambda log: law.loss(np.exp(log), flops / per_sample(np.exp(log))), bounds=(5, 40), options={"xatol": 1e-9}
    )
    return np.exp(found.x)


def test_the_best_size_is_that_of_a_search():
    cells = planted_cells(CHINCHILLA, full_grid(), np.random.default_rng(0), 0.0)
    cost = sample_cost(cells)
    assert (cost.coefficient, cost.exponent) == (pytest.approx(FLOPS), pytest.approx(1))
    for flops in (1e15, 1e21):
        assert float(cost.best_parameters(CHINCHILLA, flops)) == pytest.approx(best_size(CHINCHILLA, flops), rel=1e-5)


def test_flops_that_are_no_power_of_the_size_are_interpolated():
    cells = planted_cells(CHINCHILLA, full_grid(9), np.random.default_rng(0), 0.0)
    per_sample = lambda size: 6 * size + 3e4 * size**0.6  # noqa: E731
    cells.flops[:] = per_sample(cells.parameters) * cells.samples
    cost = sample_cost(cells)
    sizes = np.geomspace(1e6, 1e8, 50)
    np.testing.assert_allclose(cost.flops(sizes), per_sample(sizes), rtol=1e-3)
    flops = float(np.median(cells.flops))
    assert float(cost.best_parameters(CHINCHILLA, flops)) == pytest.approx(
        best_size(CHINCHILLA, flops, per_sample), rel=0.02
    )
    outside = cost.flops(np.array([2e8])) / cost.flops(np.array([1e8]))
    assert np.log2(outside) == pytest.approx(cost.exponent)


def test_flops_that_fall_with_the_size_are_refused():
    cells = planted_cells(CHINCHILLA, full_grid(), np.random.default_rng(0), 0.0)
    cells.flops[:] = cells.samples / cells.parameters
    with pytest.raises(ValueError, match=r"falls as N\^-1.00"):
        sample_cost(cells)


def test_parabolas_find_the_minimum_of_each_budget():
    grid = isoflop_grid(9, 4, width=2.0)
    cells = planted_cells(CHINCHILLA, grid, np.random.default_rng(0), 0.0)
    found = isoflops(cells, 100, seed=0)
    assert len(found.budgets) == 4
    for one in found.budgets:
        assert one.parameters == pytest.approx(best_size(CHINCHILLA, one.flops), rel=0.03)
        assert one.samples == pytest.approx(one.flops / FLOPS / one.parameters, rel=1e-6)
        assert one.loss == pytest.approx(CHINCHILLA.loss(one.parameters, one.samples), rel=1e-3)
    value, low, high = found.parameters.exponent
    assert value == pytest.approx(CHINCHILLA.b / (CHINCHILLA.a + CHINCHILLA.b), abs=0.01)
    assert low <= value <= high
    assert found.samples.exponent[0] == pytest.approx(1 - value)


def test_budgets_without_a_minimum_say_why():
    cells = planted_cells(CHINCHILLA, isoflop_grid(), np.random.default_rng(0), 0.0)
    small = cells.where(cells.parameters < 0.5 * np.sqrt(cells.flops / 120))
    assert not budgets_of(small)  # two sizes each
    grid = isoflop_grid(12, 3)
    cells = planted_cells(CHINCHILLA, grid, np.random.default_rng(0), 0.0)
    small = cells.where(cells.parameters < 0.5 * np.sqrt(cells.flops / 120))
    assert {one.why_not for one in budgets_of(small)} == {"the minimum lies above all sizes"}
    assert isoflops(small, 100, 0).parameters is None


def test_the_largest_budget_is_held_out_and_predicted():
    runs = runs_of()
    found = fit_runs(runs, FitSettings(hold_out="largest", predict=(1e19,), **QUICK))
    largest = max(run.flops for run in runs)
    assert (found.runs, len(found.held_out)) == (30, 5)
    assert found.fit.cells.flops.max() < largest / 2
    first = found.held_out[0]
    assert first.prediction.loss == min(one.prediction.loss for one in found.held_out)
    cell = cells_of(runs)
    chosen = (cell.parameters == first.prediction.parameters) & (cell.flops == first.prediction.flops)
    assert first.loss == cell.values[chosen][0]
    assert first.error == pytest.approx(first.prediction.loss / first.loss - 1)
    assert abs(first.error) < 0.02
    assert first.is_inside
    (predicted,) = found.predictions
    size = best_size(CHINCHILLA, 1e19)
    assert predicted.loss == pytest.approx(CHINCHILLA.loss(size, 1e19 / FLOPS / size), rel=0.02)
    assert predicted.low < predicted.curve[0] < predicted.loss < predicted.curve[1] < predicted.high
    low, high = predicted.parameters_range
    assert low < size < high
    assert predicted.flops == pytest.approx(FLOPS * predicted.parameters * predicted.samples)


GRID = full_grid()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (runs_of(grid=tuple(one[GRID[0] == GRID[0].min()] for one in GRID)), "A and a cannot be told: .*have 1"),
        (
            runs_of(grid=tuple(one[GRID[0] <= np.unique(GRID[0])[1]] for one in GRID)),
            "A and a cannot be told: .*have 2",
        ),
        (runs_of(grid=tuple(one[GRID[1] == GRID[1].min()] for one in GRID)), "B and b cannot be told: .*samples"),
        (runs_of(grid=full_grid(3, 2)), "B and b cannot be told"),
        (runs_of(grid=tuple(one[:6] for one in isoflop_grid(3, 3))), "at least 7 cells.*there are 6"),
        (runs_of(grid=(np.geomspace(1e6, 1e8, 9), 20 * np.geomspace(1e6, 1e8, 9))), r"told apart: .*N\^1.00"),
    ],
    ids=["one size", "two sizes", "one number of samples", "two numbers", "six cells", "one line"],
)
def test_tables_that_cannot_tell_a_parameter_are_refused_by_its_name(runs, message):
    with pytest.raises(ValueError, match=message):
        fit_runs(runs, FitSettings(**QUICK))


@pytest.mark.parametrize(
    ("law", "names"), [(LossLaw(2.0, 0.0, 0.3, 400.0, 0.3), "Aa"), (LossLaw(2.0, 400.0, 0.3, 0.0, 0.3), "Bb")]
)
def test_parameters_of_an_absent_term_cannot_be_told(law, names):
    found = fit_runs(runs_of(law, noise=0.01), FitSettings(**QUICK))
    assert untold(found.confidence) == tuple(names) == tuple(found.as_json()["untold"])
    assert any(line.endswith("cannot be told") and line.startswith(f"  {names[1]} ") for line in command.lines(found))
    assert untold(fit_runs(runs_of(), FitSettings(**QUICK)).confidence) == ()


def test_no_best_model_is_predicted_where_the_loss_does_not_fall():
    rising = [
        run.model_copy(update={"loss": run.loss * run.parameters**0.05})
        for run in runs_of(LossLaw(2.0, 0.0, 0.3, 400.0, 0.3))
    ]
    with pytest.raises(ValueError, match="no best model for 1e\\+19 FLOPs can be told: A is 0"):
        fit_runs(rising, FitSettings(predict=(1e19,), **QUICK))


def test_a_loss_below_the_floor_is_refused_and_named():
    runs = runs_of()
    wrong = [run.model_copy(update={"loss": 0.4}) if run.parameters == runs[16].parameters else run for run in runs]
    with pytest.raises(ValueError, match=r"far below the floor.*1.30766e.07 parameters.* has 0.4"):
        fit_runs(wrong, FitSettings(**QUICK))
    assert fit_runs(wrong, FitSettings(huber=0.01, **QUICK)).fit.law.E > 0.4


def test_a_run_that_diverged_is_noted():
    runs = runs_of()
    wrong = [run.model_copy(update={"loss": 9.0}) if run.parameters == runs[16].parameters else run for run in runs]
    found = fit_runs(wrong, FitSettings(**QUICK))
    assert any(f"{runs[16].parameters:g} parameters" in note and "--huber" in note for note in found.notes)
    assert not fit_runs(runs, FitSettings(**QUICK)).notes


def test_budgets_of_a_flag_are_positive_numbers():
    assert budgets("1e21,2e22") == (1e21, 2e22)
    for text in ("", "x", "1e21,", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match="1e21,1e22"):
            budgets(text)


@pytest.mark.parametrize("wrong", [{"bootstrap": 10}, {"seed": -1}, {"huber": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitSettings(**wrong)


def test_the_command_prints_and_writes_every_number(tmp_path, capsys):
    file = write_runs(tmp_path / "runs.jsonl", runs_of() + runs_of(recipe="other"))
    words = ["fit", f"{file}", "--recipe", "planted", "--predict", "1e18,1e19", "--hold-out", "largest"]
    assert main([*words, "--bootstrap", "100", "--json", f"{tmp_path / 'fit.json'}"]) == 0
    found = json.loads((tmp_path / "fit.json").read_text())
    for name in "EAaBb":
        assert found[name]["low"] <= getattr(CHINCHILLA, name) <= found[name]["high"]
    assert [one["flops"] for one in found["predictions"]] == [1e18, 1e19]
    assert {"parameters", "samples", "loss", "low", "high"} <= found["predictions"][0].keys()
    assert {"predicted", "loss", "low", "high", "error", "inside", "cells"} <= found["held_out"].keys()
    assert found["parabolas"]["parameters"]["exponent"].keys() == {"value", "low", "high"}
    printed = capsys.readouterr().out
    assert "held out: " in printed
    assert f"{found['a']['value']:<12.5g}" in printed


def test_the_command_asks_for_one_of_several_recipes(tmp_path, capsys):
    file = write_runs(tmp_path / "runs.jsonl", runs_of() + runs_of(recipe="other"))
    with pytest.raises(SystemExit):
        main(["fit", f"{file}"])
    assert "choose one with --recipe" in capsys.readouterr().err


def test_a_full_grid_has_no_budgets_for_parabolas():
    found = fit_runs(runs_of(grid=full_grid()), FitSettings(**QUICK))
    assert "IsoFLOP parabolas: no budget has runs of 3 sizes" in list(command.lines(found))
