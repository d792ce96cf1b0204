"""Recorded runs of the authors' models: ours agree to the last digits, and would not if anything were changed."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from lumina_jax.commands.parity import comparisons, line
from lumina_jax.commands.parity import main as parity_command
from lumina_jax.interop.layouts import LAYOUTS, load_model, their_tensors
from lumina_jax.parity.golden import Comparison, Golden, compare
from lumina_jax.parity.models import released_class, released_model

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = [
    *("lumina_t2i", "lumina_t2i_noqk", "flagdit_imagenet", "nextdit", "nextdit_imagenet"),
    *("diffusers_luminanext", "audio_flagdit"),
]


@pytest.mark.parametrize("name", [*MODELS, "lumina_t2i_train"])
def test_every_recorded_case_agrees(name):
    failed = [row for row in comparisons(GOLDEN / f"{name}.safetensors") if not row.passed]
    assert not failed


@pytest.mark.parametrize("name", MODELS)
def test_weights_survive_the_way_there_and_back_bit_for_bit(name):
    golden = Golden(GOLDEN / f"{name}.safetensors")
    model, layout = released_model(golden), LAYOUTS[released_class(golden).layout]
    returned = their_tensors(layout, model.config, nnx.to_pure_dict(nnx.state(model)))
    assert returned.keys() == golden.parameters.keys()
    for key, value in golden.parameters.items():
        np.testing.assert_array_equal(returned[key], value)


@pytest.mark.parametrize("name", ["layers.1.attention.gate", "eol_token", "layers.0.attention.ky_norm.weight"])
def test_one_changed_weight_is_noticed(name):
    golden = Golden(GOLDEN / "lumina_t2i.safetensors")
    golden.parameters[name] = golden.parameters[name] + 0.05
    from lumina_jax.parity import models

    assert not all(row.passed for row in models.run(golden))


def test_missing_and_unknown_tensors_are_listed():
    golden = Golden(GOLDEN / "lumina_t2i.safetensors")
    golden.parameters["surprise"] = golden.parameters.pop("eol_token")
    golden.parameters["eol_token.x"] = golden.parameters["pad_token"]
    whole = Golden(GOLDEN / "lumina_t2i.safetensors")
    layout = LAYOUTS["lumina"]
    config = layout.read_config(whole.config, whole.parameters)
    with pytest.raises(ValueError, match=r"missing eol_token, unknown eol_token.x, surprise"):
        load_model(layout, config, golden.parameters)


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_survives_the_way_there_and_back(name):
    golden = Golden(GOLDEN / f"{name}.safetensors")
    layout = LAYOUTS[released_class(golden).layout]
    config = layout.read_config(golden.config, golden.parameters)
    assert layout.read_config(layout.write_config(config), golden.parameters) == config


@pytest.mark.parametrize("name", [name for name in MODELS if name != "diffusers_luminanext"])
def test_sizes_that_the_arguments_leave_out_are_read_off_the_tensors(name):
    golden = Golden(GOLDEN / f"{name}.safetensors")
    untold = {name: golden.config[name] for name in ("n_heads", "num_heads", "multiple_of") if name in golden.config}
    read_config = LAYOUTS["lumina"].read_config
    assert read_config(untold, golden.parameters) == read_config(golden.config, golden.parameters)


def test_a_text_query_that_is_a_copy_of_the_other_is_shared():
    golden = Golden(GOLDEN / "diffusers_luminanext.safetensors")
    layout = LAYOUTS["diffusers"]
    for name in [name for name in golden.parameters if ".attn2.to_q" in name or ".attn2.norm_q" in name]:
        golden.parameters[name] = golden.parameters[name.replace("attn2", "attn1")]
    model = load_model(layout, layout.read_config(golden.config, golden.parameters), golden.parameters)
    assert not model.config.own_text_query
    returned = their_tensors(layout, model.config, nnx.to_pure_dict(nnx.state(model)))
    assert returned.keys() == golden.parameters.keys()
    for key, value in golden.parameters.items():
        np.testing.assert_array_equal(returned[key], value)


def test_a_file_of_another_kind_fails_with_a_reason(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"not a golden file")
    rows = list(comparisons(file))
    assert [row.passed for row in rows] == [False]
    assert "not a golden file" in rows[0].note


def test_a_file_without_the_parameters_of_its_class_fails_with_the_name_of_one():
    [row] = comparisons(GOLDEN / "shards" / "t2i.safetensors")  # the parameters of two ranks, under other names
    assert not row.passed
    assert "must contain param/x_embedder.weight" in row.note


def test_the_command_fails_on_an_unknown_class(capsys, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    monkeypatch.setattr("lumina_jax.parity.golden.Golden.__init__", _another_class)
    assert parity_command([str(GOLDEN / "flagdit_imagenet.safetensors")]) == 1
    shown = capsys.readouterr().out
    assert "must begin with one of" in shown
    assert shown.splitlines()[1].split() == ["case", "difference", "allowed", "used"]


def test_the_table_has_headings_and_never_shows_a_passing_difference_above_its_tolerance():
    theirs = np.array([1e-3, 10.0])
    row = line(compare("fwd", [("y", theirs + np.array([1e-6, 8e-6]), theirs, 1e-6, 1e-6)]))
    assert row.split() == ["fwd", "1.00e-06", "1.00e-06", "99.9%", "PASS"]
    assert line(Comparison("crop", 0.0, 0.0, True)).split() == ["crop", "0.00e+00", "0.00e+00", "-", "PASS"]


def _another_class(golden, path):
    golden.cls, golden.calls = "someone else's model", {}
