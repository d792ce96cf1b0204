"""The plan of a grid: how long each run of each size, budget, seed and recipe is, with which batch and rate.

In: a configuration, recipes, sizes, budgets in FLOPs, seeds and rules. Out: the cells of a `ScalingGrid`, sorted by
budget and parameters.

    steps  = floor(budget / FLOPs of a step)                                 (aot/flops.py; a step is one update)
    batch  = data.batch_rows x 2^round(batch_power x log2(budget / least budget))
    rate   = optimizer.learning_rate x (width / model.width)^-width_power x (batch / data.batch_rows)^batch_rate_power
    warmup = min(optimizer.warmup_steps, floor(steps / 10))

Every size and recipe gets the same budgets, so that the FLOPs of a run are at most a step below its budget.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from lumina_jax.aot.flops import step_flops
from lumina_jax.aot.plan import batch_load
from lumina_jax.config import Config
from lumina_jax.config.section import require, require_between
from lumina_jax.scaling.grid import GridCell
from lumina_jax.scaling.machine import Cost, Coster
from lumina_jax.scaling.sizes import ModelSize, with_size
from lumina_jax.training.state import parameter_count

FORGOTTEN = 0.05
"""The weight of the first parameters in the average at the end of a run, above which a note says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRules:
    """The rules by which batch, rate and length follow from size and budget."""

    batch_power: float = 0.0
    """Batches grow with this power of the budget; 0: all have data.batch_rows."""
    width_power: float = 0.0
    """The learning rate falls with this power of the width; 0: all have optimizer.learning_rate, as with muP."""
    batch_rate_power: float = 0.5
    """The learning rate grows with this power of the batch."""
    least_steps: int = 1
    """Runs with fewer steps are left out."""

    def __post_init__(self) -> None:
        require_between("batch_power", self.batch_power, 0, 1, "0.3 is usual")
        require_between("width_power", self.width_power, 0, 2, "1 is usual without muP")
        require_between("batch_rate_power", self.batch_rate_power, 0, 1, "0.5 is usual")
        require(self.least_steps >= 1, f"least_steps={self.least_steps} must be at least 1")


def planned_cells(
    recipes: Mapping[str, Config],
    sizes: Sequence[ModelSize],
    budgets: Sequence[float],
    seeds: Sequence[int],
    rules: PlanRules,
    cost: Coster,
) -> tuple[list[GridCell], list[str]]:
    """The cells of a grid, and the names of those that were left out because they are too short.

    Args:
      cost: what a run costs on the machine of the grid.

    Raises:
      ValueError: a recipe cannot be in a grid, a budget is too small for a step of a size, or sizes, budgets or seeds
        are the same or missing.
    """
    _check_distinct("--sizes", [str(size) for size in sizes])
    _check_distinct("--budgets", [budget_word(budget) for budget in budgets])
    _check_distinct("--seeds", list(map(str, seeds)))
    for name, config in recipes.items():
        check_config(name, config)
    for budget in budgets:
        require(math.isfinite(budget) and budget > 0, f"a budget must be a positive number of FLOPs, but is {budget}")
    cells: list[GridCell] = []
    short: list[GridCell] = []
    for recipe, config in recipes.items():
        for size in sizes:
            for cell in _of_size(recipe, with_size(config, size), config, size, budgets, seeds, rules, cost):
                (short if cell.steps < rules.least_steps else cells).append(cell)
    require(
        bool(cells),
        f"no run has {rules.least_steps} steps, but at most {max((cell.steps for cell in short), default=0)}; choose "
        "larger budgets, smaller sizes, a smaller data.batch_rows or smaller --least-steps",
    )
    return sorted(cells, key=lambda cell: (cell.budget, cell.parameters, cell.name)), [cell.name for cell in short]


def _of_size(
    recipe: str,
    config: Config,
    base: Config,
    size: ModelSize,
    budgets: Sequence[float],
    seeds: Sequence[int],
    rules: PlanRules,
    cost: Coster,
) -> Iterator[GridCell]:
    """The cells of one recipe and size; `config` has the size, and `base` is the recipe without it."""
    parameters, load = parameter_count(config.model), batch_load(config)
    for budget in budgets:
        batch = base.data.batch_rows * 2 ** round(rules.batch_power * math.log2(budget / min(budgets)))
        step = step_flops(config.model, dataclasses.replace(load, rows=batch)).total
        steps = math.floor(budget / step)
        require(
            steps >= 1,
            f"a budget must allow at least one step, but {budget_word(budget)} FLOPs are less than the {step:.3g} of "
            f"a step of {batch} samples of the size {size} ({recipe}); choose a larger budget, a smaller size or "
            "smaller data.batch_rows",
        )
        rate = base.optimizer.learning_rate
        rate *= (size.width / base.model.width) ** -rules.width_power
        rate *= (batch / base.data.batch_rows) ** rules.batch_rate_power
        found: Cost = cost(config.replace(data={"batch_rows": batch}), dataclasses.replace(load, rows=batch), step)
        for seed in seeds:
            yield GridCell(
                name=f"{recipe}-{size}-{budget_word(budget)}-s{seed}",
                recipe=recipe,
                size=size,
                budget=budget,
                seed=seed,
                steps=steps,
                batch=batch,
                rate=rate,
                warmup=min(base.optimizer.warmup_steps, steps // 10),
                parameters=parameters,
                samples=steps * batch,
                flops=steps * step,
                hours=steps * found.step_seconds / 3600,
                memory=found.memory,
                mesh=found.mesh,
                remat=found.remat,
                accumulate=found.accumulate,
            )


def check_config(recipe: str, config: Config) -> None:
    """Refuse a configuration whose runs cannot be counted or compared.

    Raises:
      ValueError: rows hold several samples, or the run starts from trained weights.
    """
    require(
        config.data.samples_per_row == 1,
        f"each row must hold one sample, so that FLOPs and samples of a run are known before it, but the recipe "
        f"{recipe!r} has data.samples_per_row={config.data.samples_per_row}; set it to 1",
    )
    require(
        not config.run.init_from,
        f"the runs of a grid start from random parameters, but the recipe {recipe!r} has "
        f"run.init_from={config.run.init_from!r}; leave it out",
    )


def notes(cells: Sequence[GridCell], recipes: Mapping[str, Config]) -> list[str]:
    """What somebody who is about to train these cells should know."""
    found = []
    for name, config in recipes.items():
        own, decay = [cell for cell in cells if cell.recipe == name], config.optimizer.ema_decay
        if own and not config.optimizer.ema_warmup:
            shortest = min(own, key=lambda cell: cell.steps)
            if decay**shortest.steps > FORGOTTEN:
                found.append(
                    f"the held-out loss is that of averaged parameters, and after the {shortest.steps} steps of "
                    f"{shortest.name} {decay**shortest.steps:.0%} of the average are first, random parameters; set "
                    "--optimizer.ema-warmup or a smaller --optimizer.ema-decay"
                )
    return found


def budget_word(budget: float) -> str:
    """1e12, 1.25e13."""
    mantissa, exponent = f"{budget:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _check_distinct(flag: str, values: Sequence[str]) -> None:
    require(bool(values), f"{flag} must name at least one")
    twice = sorted({value for value in values if values.count(value) > 1})
    require(not twice, f"{flag} must differ, but {', '.join(twice)} comes twice; leave one out")
