"""No output depends on the embedding of padding, so that a model which has none may be written with any."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lumina_jax.interop.converted import read_model
from lumina_jax.interop.sources import open_weights
from lumina_jax.parity.golden import Golden
from tests.interop.checkpoints import GOLDEN, checkpoint, run, tensors_of
from tests.interop.released import Released

VALUES = {"zeros": 0.0, "ones": 1.0, "large": 1e4}


@pytest.mark.parametrize("name", ["lumina_t2i", "nextdit"])
def test_the_authors_pictures_of_several_sizes_do_not_depend_on_the_embedding_of_padding(name):
    """Their code in numpy gives what theirs gave, padded rows included, and gives the same with any embedding."""
    golden = Golden(GOLDEN / f"{name}.safetensors")
    given = golden.inputs("list")
    arguments = (given["x"], given["t"], given["cap_feats"], given["cap_mask"])
    found = Released(golden.config, golden.parameters)(*arguments)
    assert len({picture.shape for picture in found}) > 2  # so some rows are padded
    for picture, expected in zip(found, golden.outputs("list")["y"]):
        np.testing.assert_allclose(picture, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    for value in VALUES.values():
        other = golden.parameters | {"pad_token": np.full_like(golden.parameters["pad_token"], value)}
        for picture, same in zip(found, Released(golden.config, other)(*arguments)):
            np.testing.assert_array_equal(picture, same)


def test_the_gradient_of_the_embedding_of_padding_was_zero_in_their_training():
    golden = Golden(GOLDEN / "lumina_t2i_train.safetensors")
    assert len({picture.shape for picture in golden.inputs("train")["x1"]}) > 1
    assert not golden.raw["grad/pad_token"].any()


@pytest.mark.parametrize(
    ("name", "layout"), [("lumina_t2i", "lumina"), ("nextdit", "lumina"), ("nextdit", "diffusers")]
)
def test_a_model_without_the_embedding_is_exported_with_zeros(tmp_path, capsys, name, layout):
    source = run(checkpoint(tmp_path / "source", name), tmp_path / "whole", "lumina", "jax")
    without_pad_token(source)
    theirs = run(source, tmp_path / "theirs", "jax", layout)
    assert "added: pad_token, the embedding of padding, filled with zeros" in capsys.readouterr().out
    assert "added: pad_token" in (theirs / "README.md").read_text()
    tensors = tensors_of(theirs, layout)
    np.testing.assert_array_equal(tensors["pad_token"], np.zeros(64, np.float32))
    assert tensors.keys() == tensors_of(run(tmp_path / "source", tmp_path / "all", "lumina", layout), layout).keys()
    again = run(theirs, tmp_path / "again", layout, "jax")
    assert read_model(again).pad_token
    expected = tensors_of(source, "jax")
    found = tensors_of(again, "jax")
    assert found.keys() == expected.keys() | {"pad_token"}
    assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_a_model_of_sounds_loses_the_embedding_that_theirs_does_not_have(tmp_path, capsys):
    source = run(checkpoint(tmp_path / "source", "audio_flagdit"), tmp_path / "ours", "lumina", "jax")
    config = json.loads((source / "config.json").read_text())
    config["model"]["pad_token"] = True
    (source / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(source, "jax")
    save_file(tensors | {"pad_token": np.ones(read_model(source).width, np.float32)}, source / "model.safetensors")
    theirs = run(source, tmp_path / "theirs", "jax", "lumina")
    assert "removed: pad_token" in capsys.readouterr().out
    assert tensors_of(theirs, "lumina").keys() == tensors_of(tmp_path / "source", "lumina").keys()
    assert open_weights(theirs, "lumina").config.modality == "sound"


def without_pad_token(folder):
    """As a model that was trained without it, which is our default."""
    config = json.loads((folder / "config.json").read_text())
    config["model"]["pad_token"] = False
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(folder, "jax")
    del tensors["pad_token"]
    save_file(tensors, folder / "model.safetensors")
    return folder
