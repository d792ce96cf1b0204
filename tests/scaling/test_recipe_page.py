"""The factors of docs/recipe.md repeat from the runs that are recorded beside it."""

import math
import re
from pathlib import Path

import jax
import pytest

from lumina_jax.aot.flops import step_flops
from lumina_jax.aot.plan import batch_load
from lumina_jax.config_files import load_config
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.parametrization import ParameterRule, parameter_rules
from lumina_jax.scaling.comparison import compare
from lumina_jax.scaling.recipes import read_recipes, recipe_configs
from lumina_jax.scaling.sizes import parse_size, with_size
from lumina_jax.scaling.table import read_runs

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "docs/scaling/ladder"
PAGE = (ROOT / "docs/recipe.md").read_text()
NEWTON_SCHULZ = 5


def rows(heading):
    """The cells of each row of the tables under a heading of the page whose second cell is a recipe, by that recipe."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {cells[1].strip("`"): cells for cells in found if re.fullmatch(r"`[\w.]+`", cells[1])}


def shown(value, low, high):
    """A factor and its interval; above 1,000 there is no bound."""
    return f"{value:.2f} ({low:.2f} to {'no bound' if high > 1000 else f'{high:.2f}'})"


@pytest.fixture(scope="module")
def runs():
    """Runs by recipe: those of this study, and the recorded ones of the four recipes below them."""
    return by_recipe(ROOT / "docs/scaling/recipes/RUNS.jsonl", STUDY / "RUNS.jsonl")


@pytest.fixture(scope="module")
def all_runs():
    """These, and those of one change at a time, among which are further seeds of the study."""
    return by_recipe(ROOT / "docs/scaling/recipes/RUNS.jsonl", STUDY / "RUNS.jsonl", STUDY / "levers.jsonl")


@pytest.fixture(scope="module")
def longer_runs():
    """These, and longer ones."""
    names = ("RUNS.jsonl", "levers.jsonl", "longer.jsonl")
    return by_recipe(ROOT / "docs/scaling/recipes/RUNS.jsonl", *(STUDY / name for name in names))


def by_recipe(*files):
    found = {}
    for run in (run for file in files for run in read_runs(file)):
        found.setdefault(run.recipe, []).append(run)
    return found


def of_width(runs, width):
    return [run for run in runs if run.model_extra["width"] == width]


def test_the_factors_of_the_ladder_repeat_from_the_recorded_runs(runs, all_runs):
    table = rows("By held-out loss")
    assert list(table) == ["dit", "sit", "flag_dit", "next_dit", "muon", "muon_constant"]
    runs = runs | {"muon_constant": all_runs["muon_constant"]}
    for recipe in list(table)[1:]:
        whole = compare(runs[recipe], runs["dit"], "middle_loss")
        cells = table[recipe]
        assert cells[2].strip("*") == shown(*whole.factor), recipe
        million = compare(of_width(runs[recipe], 104), of_width(runs["dit"], 104), "middle_loss")
        assert cells[3].strip("*") == shown(*million.factor), recipe


def test_the_factors_of_a_constant_rate_repeat_from_the_recorded_runs(all_runs):
    part = PAGE.split("## A constant rate\n")[1].split("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \| `(\w+)` \| \**([^|*]*?)\** \|$", part, re.MULTILINE)
    assert len(table) == 5
    for recipe in ("dit_constant", "next_constant", "muon_constant"):
        for one, other in zip(*(sorted_by_budget(all_runs[recipe], seed) for seed in (0, 1)), strict=True):
            assert f"{one:.3f}, {other:.3f}" in part, recipe
    for recipe, against, factor in table:
        found = compare(of_width(all_runs[recipe], 64), of_width(all_runs[against], 64), "middle_loss")
        assert factor == shown(*found.factor), (recipe, against)


def section(heading):
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].replace("**", "")


def test_the_factors_of_longer_runs_repeat_from_the_recorded_runs(longer_runs):
    ours, theirs = longer_runs["muon_constant"], longer_runs["dit"]
    for size, width in (("the best of each recipe", None), ("300K", 64), ("1M", 104), ("3M", 160)):
        of, against = (runs if width is None else of_width(runs, width) for runs in (ours, theirs))
        found = compare(of, against, "middle_loss")
        (low, at_low), *_, (high, at_high) = found.at
        ends = f"{at_high:.2f} at {high:.3f} | {at_low:.2f} at {low:.3f}"
        assert f"| {size} | {shown(*found.factor)} | {ends} |" in section("Longer runs")
    by_all_times = compare(ours, theirs, "loss")
    assert shown(*by_all_times.factor) in section("Longer runs")
    lowest = [compare(of_width(ours, width), of_width(theirs, width), "loss").at[0][1] for width in (64, 104, 160)]
    assert "{:.2f}, {:.2f} and {:.2f} at the lowest loss".format(*lowest) in section("Longer runs")


def test_longer_runs_have_the_recorded_losses(longer_runs):
    cells = {}
    for recipe in ("dit", "muon", "muon_constant"):
        for run in longer_runs[recipe]:
            if run.budget >= 6e11 and run.model_extra["width"] >= 64:
                cells.setdefault((recipe, run.parameters, run.budget), {})[run.seed] = run.metric("middle_loss")
    assert len(cells) > 20
    for cell, losses in cells.items():
        assert f"| {', '.join(f'{losses[seed]:.3f}' for seed in sorted(losses))} |" in section("Longer runs"), cell


def test_the_factors_of_longer_runs_by_frechet_distance_repeat_from_the_recorded_runs():
    drawn = by_recipe(STUDY / "longer_pictures.jsonl")
    for size, width in (("the best of each recipe", None), ("300K", 64), ("1M", 104), ("3M", 160)):
        of, against = (
            runs if width is None else of_width(runs, width) for runs in (drawn["muon_constant"], drawn["dit"])
        )
        found = compare(of, against, "frechet")
        (low, at_low), *_, (high, at_high) = found.at
        ends = f"{at_high:.2f} at {high:.1f} | {at_low:.2f} at {low:.1f}"
        assert f"| {size} | {shown(*found.factor)} | {ends} |" in section("Longer runs")
    for run in [*drawn["dit"], *drawn["muon_constant"]]:
        assert run.metric("drawn") == 390
        assert f"{run.metric('frechet'):.1f} ({run.metric('kernel'):.3f})" in section("Longer runs")


def sorted_by_budget(runs, seed):
    """The losses of the middle times of a seed, of models smaller than 1M."""
    chosen = [run for run in runs if run.seed == seed and run.model_extra["width"] != 104]
    return [run.metric("middle_loss") for run in sorted(chosen, key=lambda run: run.budget)]


def at_3e11(runs, recipe):
    """The losses of the middle times after 3e11 FLOPs, by seed, of models smaller than 1M."""
    chosen = [run for run in runs[recipe] if run.budget == 3e11 and run.model_extra["width"] != 104]
    return {run.seed: run.metric("middle_loss") for run in chosen}


def test_each_change_has_the_losses_of_its_recorded_runs(all_runs):
    table = rows("One change at a time")
    assert len(table) > 20
    for recipe, (_, _, against, losses, difference) in table.items():
        ours, theirs = at_3e11(all_runs, recipe), at_3e11(all_runs, against.strip("`"))
        assert losses == ", ".join(f"{ours[seed]:.3f}" for seed in (0, 1)), recipe
        mean = sum(ours[seed] - theirs[seed] for seed in (0, 1)) / 2
        assert difference.strip("*") == f"{round(mean, 3) + 0.0:+.3f}", recipe


def test_the_factors_by_frechet_distance_repeat_from_the_recorded_runs():
    drawn = {}
    for run in read_runs(STUDY / "pictures.jsonl"):
        drawn.setdefault(run.recipe, []).append(run)
    found = compare(drawn["muon"], drawn["dit"], "frechet")
    assert shown(*found.factor) in PAGE
    for run in [*drawn["dit"], *drawn["muon"]]:
        assert run.metric("drawn") == 192
        assert f"{run.metric('frechet'):.1f}" in PAGE


def test_the_retrained_baseline_has_the_losses_of_the_recorded_one(runs):
    recorded = {(run.parameters, run.budget, run.seed): run for run in runs["dit"]}
    again = [run for run in read_runs(STUDY / "pictures.jsonl") if run.recipe == "dit"]
    for run in again:
        before = recorded[(run.parameters, run.budget, run.seed)]
        assert run.metric("middle_loss") == pytest.approx(before.metric("middle_loss"), rel=1e-4)
        assert (run.samples, run.flops) == (before.samples, before.flops)


def muon_products(model):
    """Multiplications and additions of Newton-Schulz iterations in a step: A = X X', B = b A + c A A, a X + B X."""
    _, variables, *_ = abstract_model(model)
    rules = parameter_rules(variables, model)
    is_rule = lambda node: isinstance(node, ParameterRule)  # noqa: E731
    total = 0
    for rule, value in zip(jax.tree.leaves(rules, is_leaf=is_rule), jax.tree.leaves(variables), strict=True):
        if rule.matrix is not None:
            *stack, one, other = value.shape
            small, large = sorted((one, other))
            total += math.prod(stack) * NEWTON_SCHULZ * (4 * small**2 * large + 2 * small**3)
    return total


def test_the_products_of_muon_that_no_count_contains_are_what_the_page_says():
    config = recipe_configs(load_config("emoji_scaling"), read_recipes(STUDY / "recipes.yaml"))["muon"]
    for word, size in (("100K", "1x40"), ("300K", "2x64"), ("1M", "3x104")):
        whole = with_size(config, parse_size(size, config.model))
        share = muon_products(whole.model) / step_flops(whole.model, batch_load(whole)).total
        assert f"{share:.0%} at {word}" in PAGE.replace(" %", "%")
