"""Models of which some heads have no text: what the authors' layout and that of diffusers keep of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.interop.export import plan_export, write_export
from lumina_jax.interop.sources import WeightSource, open_weights
from lumina_jax.pruning.heads import pruned
from lumina_jax.weights.modules import named_parameters
from lumina_jax.weights.tensors import ComputedTensors
from tests.interop.checkpoints import WEIGHTS, run, tensors_of
from tests.models.random_models import random_parameters
from tests.pruning.test_heads import FLAG, predicted

MODELS = {
    "lumina": FLAG.replace(nextframe=False, heads=8, kv_heads=4, pad_token=True, channels=3, layers=2),
    "diffusers": FLAG.replace(
        block="next", rope_axes=2, nextline=False, nextframe=False, final_shift=False, pad_token=True, layers=2
    ),
}


def saved(folder, config, parameters):
    """A folder in our layout."""
    named = {name: np.asarray(value) for name, value in named_parameters(parameters).items()}
    tensors = ComputedTensors({name: (x.shape, x.dtype) for name, x in named.items()}, named.__getitem__)
    write_export(plan_export(WeightSource(config, tensors, "a test"), "jax"), folder, shard_bytes=None)
    return folder


@pytest.mark.parametrize("layout", ["lumina", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_a_pruned_model_comes_back_from_a_pytorch_layout_with_the_same_weights(layout, tmp_path, capsys):
    there_and_back(layout, tmp_path, capsys)


def there_and_back(layout, tmp_path, capsys):
    """A model converted from our layout to another and back, and what it was."""
    small, model = pruned(random_parameters(MODELS[layout]), MODELS[layout], MODELS[layout].heads // 2)
    ours = saved(tmp_path / "ours", model, small)
    theirs = run(ours, tmp_path / "theirs", "jax", layout)
    assert "added: closed gates of" in capsys.readouterr().out
    again = run(theirs, tmp_path / "again", layout, "jax")
    assert "heads in each layer attend to the text" in capsys.readouterr().out
    found = read_model(again)
    assert found.text_heads == model.text_heads
    parameters = load_parameters(again, found)
    assert named_parameters(parameters).keys() == named_parameters(small).keys()
    jax.tree.map(np.testing.assert_array_equal, parameters, small)
    return found, parameters, model, small


@pytest.mark.slow
@pytest.mark.parametrize("layout", MODELS)
def test_a_pruned_model_that_comes_back_draws_the_same_bit_for_bit(layout, tmp_path, capsys):
    found, parameters, model, small = there_and_back(layout, tmp_path, capsys)
    ran = {"compute_dtype": "float32", "remat": "none", "attention": "xla"}
    np.testing.assert_array_equal(predicted(found.replace(**ran), parameters), predicted(model, small))


@pytest.mark.slow
def test_the_authors_layout_has_all_heads_with_closed_gates_and_the_same_outputs(tmp_path):
    config = MODELS["lumina"]
    small, model = pruned(random_parameters(config), config, 4)
    tensors = tensors_of(run(saved(tmp_path / "ours", model, small), tmp_path / "theirs", "jax", "lumina"), "lumina")
    width = config.width // config.heads
    for layer in range(config.layers):
        attention = f"layers.{layer}.attention"
        assert tensors[f"{attention}.gate"].shape == (8,)
        assert not tensors[f"{attention}.gate"][4:].any()
        assert tensors[f"{attention}.wv_y.weight"].shape == tensors[f"{attention}.wk_y.weight"].shape == (16, 6)
        assert not tensors[f"{attention}.wv_y.weight"][2 * width :].any()
        assert tensors[f"{attention}.wk_y.weight"].any(axis=1).all()  # the norm of the keys is over all heads
    # Whoever reads these tensors and knows of no pruned models computes the same.
    tensors["layers.0.attention.wv_y.weight"][-1] = 1e-3
    changed = tmp_path / "changed" / WEIGHTS["lumina"]
    changed.parent.mkdir()
    save_file(tensors, changed)
    (changed.parent / "config.json").write_bytes((tmp_path / "theirs/config.json").read_bytes())
    whole = open_weights(changed.parent, "lumina")
    assert whole.config.text_heads is None
    back = run(changed.parent, tmp_path / "whole", "lumina", "jax")
    parameters = load_parameters(back, read_model(back))
    ran = read_model(back).replace(compute_dtype="float32", remat="none", attention="xla")
    wanted = predicted(model, small)
    np.testing.assert_allclose(predicted(ran, parameters), wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_new_model_whose_gates_are_all_zero_is_not_pruned(tmp_path):
    config = MODELS["lumina"]
    parameters = random_parameters(config)
    parameters["blocks"]["text"]["gate"] = jnp.zeros_like(parameters["blocks"]["text"]["gate"])
    theirs = run(saved(tmp_path / "ours", config, parameters), tmp_path / "theirs", "jax", "lumina")
    assert open_weights(theirs, "lumina").config.text_heads is None
