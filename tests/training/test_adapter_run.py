"""A run that trains adapters: from weights, drawn from alone and as an adapter of its base, exported and merged."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.commands import convert, sample
from lumina_jax.config import FinetuneConfig
from lumina_jax.generation.sheets import sheet_writer
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.models.adapters import LowRank
from lumina_jax.trained import open_adapter, open_run, with_adapters
from lumina_jax.weights.modules import named_parameters
from tests.training.processes import here, training_here
from tests.training.tiny import label_config

LORA = {"parameters": ("attention", "feed_forward"), "rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs base and tuned, which trains adapters of it, in one folder."""
    root = tmp_path_factory.mktemp("runs")
    run = {"steps": 2, "checkpoint_every": 1, "log_every": 1}
    base = label_config(root, run={"name": "base", **run})
    done = training_here(base)
    assert done.returncode == 0, done.stderr
    start = {"name": "tuned", "init_from": str(root / "base"), "evaluate_every": 1, "sample_every": 2, **run}
    tuned = dataclasses.replace(label_config(root, run=start), finetune=FinetuneConfig(**LORA))
    done = training_here(tuned)
    assert done.returncode == 0, done.stderr
    assert "trains   adapters of 7 matrices" in done.stdout
    assert "warning" not in done.stdout + done.stderr
    return root, tuned


def drawn(pipeline):
    return pipeline(["1", "2"], seed=3)[0].astype(int)


@pytest.mark.slow
def test_a_run_of_adapters_draws_alone_as_its_base_with_the_adapter_and_as_merged_weights(runs, tmp_path):
    root, _ = runs
    base, alone = open_run(root / "base"), open_run(root / "tuned")
    adapter = open_adapter(root / "tuned", base.config.model)
    with_adapter = open_run(root / "base", adapters=[(root / "tuned", 1.0)])
    kernel = with_adapter.parameters["blocks"]["attention"]["query"]["kernel"]
    assert isinstance(kernel, LowRank)
    merged, ours = named_parameters(alone.parameters), named_parameters(base.parameters)
    for name, (a, b) in adapter.scaled().items():
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(merged[name], ours[name] + a @ b, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(merged[name], ours[name]) for name in ours if name not in adapter.factors)
    assert np.abs(drawn(alone) - drawn(with_adapter)).max() <= 1
    assert np.abs(drawn(alone) - drawn(base)).max() > 0
    words = ["--from", "jax", "--to", "jax"]
    done = here(convert.main, root / "base", tmp_path / "merged", *words, "--adapter", root / "tuned")
    assert done.returncode == 0, done.stderr
    done = here(convert.main, root / "tuned", tmp_path / "own", *words)
    assert done.returncode == 0, done.stderr
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "own"))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_sheet_shows_what_the_base_draws_beside_what_is_drawn_with_adapters(runs):
    root, tuned = runs
    assert (root / "tuned/samples/step_0000002.png").is_file()
    settings = tuned.replace(run={"sample_prompts": ("1", "2", "3"), "name": "shown"})
    pipelines = open_run(root / "base"), open_run(root / "base", adapters=[(root / "tuned", 40.0)])
    shown = SimpleNamespace(image=lambda step, name, pixels: setattr(shown, "pixels", pixels))
    sheet_writer(settings, None, shown)(1, pipelines[1].parameters, pipelines[0].parameters)
    drawn = [one(["1", "2", "3"], settings.sample, seed=settings.run.seed) for one in pipelines]
    pictures = [picture[0] for pair in zip(*drawn) for picture in pair]
    captions = ["1 (base)", "1", "2 (base)", "2", "3 (base)", "3"]
    np.testing.assert_array_equal(shown.pixels, contact_sheet(pictures, captions, columns=4))
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.slow
def test_another_strength_of_an_adapter_compiles_nothing(runs):
    root, _ = runs
    pipeline = open_run(root / "base", adapters=[(root / "tuned", 0.5), (root / "tuned", 0.25)])
    adapter = open_adapter(root / "tuned", pipeline.config.model)
    first = drawn(pipeline)
    draw = pipeline._compiled(None).draw
    assert draw._cache_size() == 1
    pipeline.parameters = with_adapters(pipeline.parameters, [(adapter, 40.0), (adapter, -1.0)], "base")
    assert np.abs(drawn(pipeline) - first).max() > 0
    pipeline.parameters = with_adapters(pipeline.parameters, [(adapter, 1.0), (adapter, -1.0)], "base")
    np.testing.assert_array_equal(drawn(pipeline), drawn(open_run(root / "base")))
    assert draw._cache_size() == 1


@pytest.mark.slow
def test_adapters_are_refused_for_other_weights_and_a_resumed_run_for_other_settings(runs, tmp_path):
    root, tuned = runs
    other = label_config(tmp_path, run={"name": "other", "steps": 1, "seed": 5})
    assert training_here(other).returncode == 0
    done = here(sample.main, tmp_path / "other", "1", "--adapter", f"{root / 'tuned'}:0.8")
    assert done.returncode == 1
    assert "adapters change the weights they were trained for, whose fingerprint is" in done.stderr
    done = here(sample.main, root / "base", "1", "--adapter", f"{root / 'tuned'}:0.8", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    done = training_here(tuned.replace(finetune={"alpha": 8.0}, run={"steps": 3}))
    assert "finetune.alpha was 4.0 and is 8.0" in done.stderr
    done = training_here(tuned.replace(run={"steps": 3, "init_from": str(tmp_path / "other")}))
    assert "adapters change the weights they were trained for" in done.stderr
    done = training_here(tuned.replace(run={"steps": 3}))
    assert done.returncode == 0, done.stderr
    assert "continuing from step 2 of 3" in done.stdout
    done = training_here(tuned.replace(run={"name": "new", "init_from": ""}))
    assert "finetune trains some parameters of trained weights, but there are none" in done.stderr
