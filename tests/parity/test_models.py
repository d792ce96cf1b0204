"""Recorded runs of the authors' models: ours agree to the last digits, and would not if anything were changed."""

from pathlib import Path

import numpy as np
import pytest

from lumina_jax.commands.parity import comparisons
from lumina_jax.commands.parity import main as parity_command
from lumina_jax.interop.lumina import to_lumina
from lumina_jax.parity.golden import Golden
from lumina_jax.parity.models import released_model

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = ["lumina_t2i", "lumina_t2i_noqk", "flagdit_imagenet"]


@pytest.mark.parametrize("name", [*MODELS, "lumina_t2i_train"])
def test_every_recorded_case_agrees(name):
    failed = [row for row in comparisons(GOLDEN / f"{name}.safetensors") if not row.passed]
    assert not failed


@pytest.mark.parametrize("name", MODELS)
def test_weights_survive_the_way_there_and_back_bit_for_bit(name):
    golden = Golden(GOLDEN / f"{name}.safetensors")
    returned = to_lumina(released_model(golden))
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
    from lumina_jax.interop.lumina import from_lumina, model_config

    whole = Golden(GOLDEN / "lumina_t2i.safetensors")
    config = model_config(whole.config, whole.parameters)
    with pytest.raises(ValueError, match=r"missing \['eol_token'\], unknown \['eol_token.x', 'surprise'\]"):
        from_lumina(config, golden.parameters)


def test_a_file_of_another_kind_fails_with_a_reason(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"not a golden file")
    rows = list(comparisons(file))
    assert [row.passed for row in rows] == [False]
    assert "no golden file" in rows[0].note


def test_the_command_fails_on_an_unknown_class(capsys, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    monkeypatch.setattr("lumina_jax.parity.golden.Golden.__init__", _another_class)
    assert parity_command([str(GOLDEN / "flagdit_imagenet.safetensors")]) == 1
    assert "is not a class that can be compared" in capsys.readouterr().out


def _another_class(golden, path):
    golden.cls, golden.calls = "someone else's model", {}
