"""The smallest grid that can be trained: two sizes of the tiny run on labels, at two budgets."""

import dataclasses

from lumina_jax.aot.flops import Load
from lumina_jax.scaling.grid import Machine, ScalingGrid
from lumina_jax.scaling.machine import Cost
from lumina_jax.scaling.plan import PlanRules, planned_cells
from lumina_jax.scaling.sizes import ModelSize
from tests.training.tiny import label_config

MACHINE = Machine(name="a machine", flops=1e12, utilisation=0.5)
SMALL, LARGE = ModelSize(layers=1, width=16, heads=2), ModelSize(layers=2, width=16, heads=2)


def cost(config, load: Load, step_flops):
    return Cost(step_flops / (MACHINE.flops * MACHINE.utilisation), 1e6)


def cells_of(recipes, sizes=(SMALL,), budgets=(2e7,), seeds=(0,), **rules):
    return planned_cells(recipes, sizes, budgets, seeds, PlanRules(**rules), cost)


def tiny_grid(recipes=None, curve=2, cores=None, **kind):
    recipes = recipes or {"tiny": label_config()}
    cells, _ = cells_of(recipes, **kind)
    rules = dataclasses.asdict(PlanRules())
    return ScalingGrid(
        source="tiny", machine=MACHINE, rules=rules, curve=curve, cores=cores, recipes=recipes, cells=tuple(cells)
    )
