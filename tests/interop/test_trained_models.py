"""What our configurations train can be taken to PyTorch, or its configuration says why not."""

import ast
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import Config, DataConfig, ModalityConfig, ModelConfig, PictureConfig
from lumina_jax.config_files import load_config
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.export import plan_export
from lumina_jax.interop.fitting import reasons_against
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.sources import WeightSource
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.trained import open_run
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.weights.tensors import ComputedTensors
from tests.interop.checkpoints import run, tensors_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
EXCUSE, FIRST_LINES = "No PyTorch layout holds the trained model: ", 4
SMALL = ModelConfig(
    layers=2, heads=2, width=16, channels=3, text_width=12, mlp_multiple_of=8, compute_dtype="float32", remat="none"
)


def abstract_source(config):
    """The parameters of a model that is never built."""
    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in parameter_shapes(config).items()}
    return WeightSource(
        config, ComputedTensors(shapes, lambda name: np.broadcast_to(np.float32(0), shapes[name][0])), "a test"
    )


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_configuration_exports_to_pytorch_or_says_why_not(file):
    model = dataclasses.replace(load_config(file).model, layers=2)
    able = [layout for layout, reason in reasons_against(model).items() if not reason]
    beginning = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[:FIRST_LINES]
    assert any(line.startswith(EXCUSE) for line in beginning) == (not able)
    source = abstract_source(model)
    for layout in LAYOUTS:
        if layout not in able:
            with pytest.raises(ValueError, match="needs"):
                plan_export(source, layout)
            continue
        names = [tensor.name for tensor in plan_export(source, layout).plan]
        assert len(names) == len(set(names))
        assert ("pad_token" in names) == LAYOUTS[layout].has_pad_token(model)


def trained(folder, **changes):
    """The folder of a run with one checkpoint."""
    config = Config(
        model=dataclasses.replace(SMALL, **changes), data=DataConfig(media=PictureConfig(image_size=8))
    ).replace(run={"root": str(folder), "name": "mine"})
    abstract = nnx.to_pure_dict(abstract_model(config.model)[1])
    ema = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), abstract)
    checkpoints = Checkpoints(folder / "mine/checkpoints")
    checkpoints.save(3, {"ema": ema}, {}, config.to_json())
    checkpoints.close()
    (folder / "mine/config.json").write_text(config.to_json())
    return folder / "mine"


def test_a_model_of_pictures_with_our_defaults_is_exported_from_its_run(tmp_path, capsys):
    """Its [nextframe] token, which no picture has, is left out; the embedding of padding is added."""
    theirs = run(trained(tmp_path), tmp_path / "tuned", "jax", "lumina")
    said = capsys.readouterr().out
    assert "removed: nextframe_token" in said
    assert "added: pad_token" in said
    assert "trained with flow.path=linear, flow.prediction=velocity, data.media=pictures, data.image_size=8" in said
    tensors = tensors_of(theirs, "lumina")
    assert "nextframe_token" not in tensors
    assert tensors["eol_token"].shape == tensors["pad_token"].shape == (16,)
    with pytest.raises(ValueError, match=r"needs block='next'.*; choose --to lumina"):
        run(tmp_path / "mine", tmp_path / "pipe", "jax", "diffusers")
    whole = run(tmp_path / "mine", tmp_path / "whole", "jax", "jax")
    assert "nextframe_token" in tensors_of(whole, "jax")
    with pytest.raises(
        ValueError, match=r"step 1000 must be one of the checkpoints in .*mine/checkpoints, which are 3"
    ):
        run(tmp_path / "mine", tmp_path / "out", "jax", "lumina", step=1000)
    with pytest.raises(ValueError, match=r"step 1000 must be one of the checkpoints in"):
        open_run(tmp_path / "mine", step=1000)


def test_a_next_dit_of_a_run_is_exported_to_both_layouts(tmp_path):
    folder = trained(tmp_path, block="next", final_shift=False, nextline=False, nextframe=False, rope_axes=2)
    for layout in LAYOUTS:
        assert "pad_token" in tensors_of(run(folder, tmp_path / layout, "jax", layout), layout)


@pytest.mark.parametrize("field", ["nextframe", "text_layers", "others"])
def test_parameters_that_a_layout_has_no_name_for_are_never_left_out(field):
    others = {"others": (ModalityConfig(name="other", patch_size=2, channels=1),), "text_layers": 1, "nextframe": True}
    config = dataclasses.replace(SMALL, nextframe=False)
    plan_export(abstract_source(config), "lumina")
    with pytest.raises(ValueError, match=f"{field}=.* choose --to jax"):
        plan_export(abstract_source(dataclasses.replace(config, **{field: others[field]})), "lumina")
