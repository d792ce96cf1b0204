"""Training on arrays in memory, and saving what was trained."""

import dataclasses

import jax
import numpy as np
import pytest

from lumina_jax.commands.convert import main as convert
from lumina_jax.commands.sample import main as sample
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.trained import open_run, save
from lumina_jax.trainer import Trainer
from lumina_jax.training.state import create_state
from lumina_jax.training.step import train_step
from tests.training.tiny import label_config, packed_batch


def squares(labels):
    """Dark and light pictures of 8 x 8 pixels."""
    return np.where(np.array(labels) == 0, -0.8, 0.8)[:, None, None, None] * np.ones((len(labels), 8, 8, 3))


@pytest.fixture(scope="module")
def config():
    made = label_config(data={"image_size": 8, "caption_dropout": 0.25}, optimizer={"ema_warmup": True})
    return dataclasses.replace(made, model=dataclasses.replace(made.model, classes=2, width=32, patch_size=2))


@pytest.fixture(scope="module")
def trainer(config):
    made = Trainer(config)
    made.losses = [made.step(squares([0, 1] * 4), [0, 1] * 4) for _ in range(40)]
    return made


def test_steps_lower_the_loss_and_are_counted(trainer):
    assert trainer.steps == trainer.pipeline.step == 40
    assert np.mean(trainer.losses[-5:]) < 0.5 * np.mean(trainer.losses[:5]), trainer.losses


def test_pictures_show_what_the_labels_say(trainer):
    dark, light = trainer.pipeline.pictures(["0", "1"])
    assert dark.size == (8, 8)
    assert np.asarray(dark).mean() < 90 < 165 < np.asarray(light).mean()


def test_a_step_is_that_of_a_run_on_the_same_batch(config):
    trainer = Trainer(config)
    pictures, labels = squares([0, 1]), [0, 1]
    given = trainer._batch(pictures, labels, None)
    batch = packed_batch(2)._replace(tokens=given[0], condition=given[1], present=given[2])
    mesh = make_mesh(devices=jax.devices()[:1])
    state, metrics = train_step(config, mesh)(create_state(config, mesh), batch)
    assert trainer.step(pictures, labels) == float(metrics.loss)
    jax.tree.map(np.testing.assert_array_equal, trainer.parameters, state.parameters)


def test_labels_are_dropped_in_their_share_and_others_at_the_next_step(config):
    trainer = Trainer(config)
    labels = trainer._conditions([0] * 400)
    assert set(np.unique(labels)) == {0, 2}
    assert 0.15 < np.mean(labels == 2) < 0.35
    assert np.array_equal(labels, Trainer(config)._conditions([0] * 400))
    trainer.step(squares([0, 1]), [0, 1])
    assert not np.array_equal(labels, trainer._conditions([0] * 400))


def test_a_pipeline_that_was_asked_for_before_further_steps_still_draws(config):
    trainer = Trainer(config)
    before = trainer.pipeline
    trainer.step(squares([0, 1]), [0, 1])
    assert trainer.pipeline is before
    assert len(before.pictures(["0"])) == 1


def test_a_saved_model_is_opened_drawn_converted_and_started_from(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")  # else the command starts this program again
    folder = save(trainer.pipeline, tmp_path / "runs" / "squares")
    opened = open_run(folder)
    assert (opened.step, opened.config.run.name) == (40, "squares")
    np.testing.assert_array_equal(opened(["1"], seed=3)[0], trainer.pipeline(["1"], seed=3)[0])
    assert sample([str(folder), "0", "1"]) == 0
    assert (folder / "samples" / "40" / "seed-0" / "sheet.png").is_file()
    convert([str(folder), str(tmp_path / "theirs"), "--from", "jax", "--to", "jax"])
    converted = open_run(tmp_path / "theirs", config=opened.config)
    assert converted.step == 0
    np.testing.assert_array_equal(converted(["1"], seed=3)[0], opened(["1"], seed=3)[0])
    further = Trainer(opened.config, opened.parameters)
    jax.tree.map(np.testing.assert_array_equal, further.parameters, opened.parameters)
    further.step(squares([0, 1]), [0, 1])
    assert len(opened(["1"])) == 1  # its parameters were copied, not used up


def test_a_folder_that_holds_a_model_is_not_overwritten(trainer, tmp_path):
    save(trainer.pipeline, tmp_path / "squares")
    with pytest.raises(ValueError, match="squares holds a model already; name another folder"):
        save(trainer.pipeline, tmp_path / "squares")


@pytest.mark.parametrize(
    ("samples", "labels", "reason"),
    [
        (np.zeros((2, 8, 8, 4)), [0, 1], r"must be floats \[batch height width 3\].*are float64 \[2, 1, 8, 8, 4\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1], r"are uint8 .*; pixels go from -1 to 1"),
        (np.zeros((2, 7, 8, 3)), [0, 1], r"multiples of patch_size=2"),
        (np.zeros((2, 8, 8, 3)), [0], r"each of the 2 samples needs a caption or label, but there are 1"),
        (np.zeros((0, 8, 8, 3)), [], r"each of the 0 samples"),
        (np.zeros((1, 8, 8, 3)), [2], r"a label from 0 to 1"),
    ],
)
def test_arrays_that_the_model_cannot_learn_are_refused(trainer, samples, labels, reason):
    with pytest.raises(ValueError, match=reason):
        trainer.step(samples, labels)


def test_one_text_is_not_taken_for_a_list_of_prompts(trainer):
    with pytest.raises(ValueError, match=r"prompts must be a list, but '10' is one text; write \['10'\]"):
        trainer.pipeline("10")
