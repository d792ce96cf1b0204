"""The recipes that the project offers for a grid."""

from pathlib import Path

import pytest

from lumina_jax.config_files import load_config
from lumina_jax.scaling.recipes import read_recipes, recipe_configs
from lumina_jax.training.state import parameter_count

FILE = Path(__file__).parents[2] / "configs" / "recipes.yaml"


@pytest.mark.slow
def test_recipes_of_a_grid_differ_in_their_model_or_objective_and_each_can_be_built():
    configs = recipe_configs(load_config("emoji_scaling"), read_recipes(FILE))
    assert {"flag_dit", "next_dit", "dit", "sit"} <= configs.keys()
    assert len({(config.model, config.flow) for config in configs.values()}) == len(configs)
    assert all(parameter_count(config.model) > 1e6 for config in configs.values())


def test_the_baseline_of_a_grid_is_dit_with_ddpm_as_published():
    recipes = read_recipes(FILE)
    (config,) = recipe_configs(load_config("emoji_scaling"), {"dit": recipes["dit"]}).values()
    model, flow = config.model, config.flow
    assert (model.norm_kind, model.position_kind, model.qk_norm, model.predict_sigma) == ("layer", "sine", False, True)
    assert (flow.path, flow.prediction, flow.times) == ("ddpm", "noise", "uniform")
