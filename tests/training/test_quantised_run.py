"""A run that trains adapters of a quantised base, and samples that are drawn with quantised weights."""

import dataclasses

import jax
import numpy as np
import pytest

from lumina_jax.commands import convert, sample
from lumina_jax.config import FinetuneConfig
from lumina_jax.models.adapters import LowRank
from lumina_jax.models.quantised import FORMATS, Int8Weight, is_quantised
from lumina_jax.trained import open_run
from tests.training.processes import here, training_here
from tests.training.test_adapter_run import LORA, drawn
from tests.training.tiny import label_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs base and tuned, which trains adapters of it in int8, in one folder, and weights, converted from base."""
    root = tmp_path_factory.mktemp("runs")
    run = {"steps": 2, "checkpoint_every": 1, "log_every": 1}
    done = training_here(label_config(root, run={"name": "base", **run}))
    assert done.returncode == 0, done.stderr
    start = {"name": "tuned", "init_from": str(root / "base"), "evaluate_every": 1, "sample_every": 2, **run}
    settings = FinetuneConfig(**LORA, base="int8")
    tuned = dataclasses.replace(label_config(root, run=start), finetune=settings)
    done = training_here(tuned)
    assert done.returncode == 0, done.stderr
    assert "in int8" in done.stdout
    assert "warning" not in done.stdout + done.stderr
    done = here(convert.main, root / "base", root / "weights", "--from", "jax", "--to", "jax")
    assert done.returncode == 0, done.stderr
    return root, tuned


@pytest.mark.slow
def test_a_run_of_a_quantised_base_draws_as_its_base_in_int8_with_the_adapter(runs):
    root, _ = runs
    alone = open_run(root / "tuned", weights="int8")
    with_adapter = open_run(root / "base", weights="int8", adapters=[(root / "tuned", 1.0)])
    kernel = alone.parameters["blocks"]["attention"]["query"]["kernel"]
    assert isinstance(kernel, LowRank)
    assert isinstance(kernel.base, Int8Weight)
    np.testing.assert_array_equal(drawn(alone), drawn(with_adapter))
    assert np.abs(drawn(alone) - drawn(open_run(root / "base", weights="int8"))).max() > 0
    assert np.abs(drawn(alone) - drawn(open_run(root / "tuned"))).mean() < 3
    done = here(sample.main, root / "tuned", "1", "--weights", "int8", "--adapter", root / "tuned")
    assert "trained adapters of quantised weights, to which others cannot be added" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_quantised_alike_from_a_checkpoint_and_from_a_file(runs, kind):
    root, tuned = runs
    one = open_run(root / "base", weights=kind).parameters
    other = open_run(root / "weights", config=tuned.replace(finetune={"base": "float32"}), weights=kind).parameters
    assert sum(map(is_quantised, jax.tree.leaves(one, is_leaf=is_quantised))) > 5
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_run_of_a_quantised_base_resumes_and_refuses_other_weights(runs, tmp_path):
    root, tuned = runs
    done = training_here(label_config(tmp_path, run={"name": "other", "steps": 1, "seed": 5}))
    assert done.returncode == 0, done.stderr
    done = training_here(tuned.replace(run={"steps": 3, "init_from": str(tmp_path / "other")}))
    assert "adapters change the weights they were trained for, whose fingerprint is" in done.stderr
    done = training_here(tuned.replace(run={"steps": 3}, finetune={"base": "nf4"}))
    assert "finetune.base was 'int8' and is 'nf4'" in done.stderr
    done = training_here(tuned.replace(run={"name": "again", "init_from": str(root / "tuned")}))
    assert "finetune.base='int8' quantises whole weights" in done.stderr
    done = training_here(tuned.replace(run={"steps": 3}))
    assert done.returncode == 0, done.stderr
    assert "continuing from step 2 of 3" in done.stdout
