"""The names that a configuration offers are those that the mathematics knows."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.config import sample as config_sample
from lumina_jax.config.flow import LossWeightName, PathName, PredictionName, TimesName
from lumina_jax.config.sample import EVEN_GRID, DiffusionName, LastStepName, SolverName
from lumina_jax.flow import paths, sde, timesteps
from lumina_jax.flow.ancestral import ANCESTRAL
from lumina_jax.flow.dpm_solver import DPM_SOLVERS
from lumina_jax.flow.losses import WEIGHTINGS
from lumina_jax.flow.solvers import SOLVERS


def test_every_solver_can_be_chosen_under_one_name():
    aliases = {"heun2": "heun", "fixed_adams": "implicit_adams"}
    assert all(SOLVERS[alias] == SOLVERS[name] for alias, name in aliases.items())
    others = sde.STOCHASTIC.keys() | ANCESTRAL.keys() | DPM_SOLVERS.keys()
    assert set(get_args(SolverName)) == (SOLVERS.keys() - aliases.keys()) | others
    assert set(config_sample.ANCESTRAL) == ANCESTRAL.keys()
    assert set(EVEN_GRID) == {name for name in get_args(SolverName) if name in SOLVERS and SOLVERS[name].method is None}


@pytest.mark.parametrize("solver", EVEN_GRID)
def test_a_solver_of_even_steps_refuses_a_shift_of_the_times(solver):
    settings = SampleConfig(solver=solver)
    with pytest.raises(ValueError, match=r"sample\.time_shift=4\.0 makes them uneven"):
        dataclasses.replace(settings, time_shift=4.0)


@pytest.mark.parametrize(
    ("offered", "known"),
    [
        (PathName, paths.PATHS),
        (PredictionName, paths.PREDICTIONS),
        (DiffusionName, paths.DIFFUSIONS),
        (LossWeightName, WEIGHTINGS),
    ],
)
def test_every_path_prediction_diffusion_and_weight_is_known_under_the_name_of_the_configuration(offered, known):
    assert set(get_args(offered)) == set(known)


def test_times_and_last_steps_of_a_configuration_are_known():
    draws, velocity = np.full(3, 0.5, np.float32), lambda t, x, args: x
    for name in get_args(TimesName):
        assert ((found := timesteps.times_from(draws, distribution=name)) > 0).all()
        assert (found < 1).all()
    for name in get_args(LastStepName):
        end = sde.integrate(
            velocity, draws, np.float32([0, 0.5]), path=paths.path("linear"), solver="euler_maruyama", form="sigma",
            last_step=name, noise=np.zeros((1, 3), np.float32),
        )  # fmt: skip
        assert np.isfinite(end).all()
