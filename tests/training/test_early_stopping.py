"""A run with a patience ends when its held-out loss stays above the lowest, whose checkpoint is kept and drawn from."""

import functools
from pathlib import Path

import jax
import pytest

from lumina_jax.commands.train import is_complete
from lumina_jax.config import RunConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.sources import open_source
from lumina_jax.held_out import evaluator
from lumina_jax.modalities import modalities_of_sources
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.feed import Feed
from lumina_jax.training.loop import restored_or_new, train_steps
from lumina_jax.training.step import train_step
from tests.training.tiny import label_config

LOSSES = [0.5, 0.4, 0.45, 0.41, 0.39, 0.42]
MESH = functools.cache(lambda: make_mesh(devices=jax.devices()[:1]))
RUN = {"log_every": 100, "checkpoint_every": 100, "evaluate_every": 1, "keep_checkpoints": 1, "patience": 2}


@functools.cache
def step():
    return train_step(label_config(), MESH())


def opened(settings):
    return Checkpoints(Path(settings.run.root) / "tiny/checkpoints", keep=settings.run.keep_checkpoints)


def trained(settings):
    """The last step of a run of these settings, whose losses are scripted, and its lowest loss."""
    stream = Stream(open_source(settings.data, settings.model), settings.data, settings.model, seed=0)
    with opened(settings) as checkpoints, stream:
        state = restored_or_new(settings, MESH(), checkpoints, stream)
        losses, feed = iter(LOSSES[int(state.step) :]), Feed(stream, MESH(), settings.data.batch_rows)
        state = train_steps(
            settings, state, step(), feed, checkpoints=checkpoints, writer=None,
            evaluate=lambda parameters: {"held_out_loss": next(losses), "held_out_loss_error": 9.0},
        )  # fmt: skip
        return int(state.step), checkpoints.lowest


def test_a_run_stops_early_and_keeps_the_checkpoint_of_the_lowest_loss_which_is_drawn_from(tmp_path, capsys):
    settings = label_config(tmp_path, run={**RUN, "steps": 6})
    assert trained(settings) == (4, (0.4, 2, 2))
    assert "stopping at step 4: the held-out loss was lowest, 0.4, at step 2" in capsys.readouterr().out
    checkpoints = opened(settings)
    assert (checkpoints.steps(), checkpoints.chosen(None), checkpoints.chosen(4)) == ([2, 4], 2, 4)
    assert is_complete(settings, checkpoints)
    assert "stopped early, at step 4: its held-out loss was lowest at 2" in capsys.readouterr().out
    patient = settings.replace(run={"patience": 3})
    assert not is_complete(patient, opened(settings))
    assert trained(patient) == (6, (0.39, 5, 1))
    assert opened(settings).steps() == [5, 6]


def test_a_run_that_continues_stops_where_it_would_have_stopped(tmp_path):
    settings = label_config(tmp_path, run={**RUN, "steps": 3})
    assert trained(settings) == (3, (0.4, 2, 1))
    assert trained(settings.replace(run={"steps": 6})) == (4, (0.4, 2, 2))


@pytest.mark.slow
def test_a_run_without_a_patience_draws_from_its_newest_checkpoint(tmp_path):
    settings = label_config(tmp_path, run={**RUN, "steps": 3, "patience": None})
    assert trained(settings)[0] == 3
    assert (opened(settings).steps(), opened(settings).chosen(None)) == ([3], 3)


def test_a_patience_needs_a_held_out_loss(tmp_path):
    with pytest.raises(ValueError, match=r"run.patience=2 must be at least 1 measurement, and run.evaluate_every"):
        RunConfig(patience=2)
    settings = label_config(tmp_path, data={"split": "all"}, run=RUN)
    with pytest.raises(ValueError, match="no sample of these data is held out"):
        evaluator(settings, MESH(), modalities_of_sources(settings), None, {})
