"""Weights through the command: every way there and back is exact, and what is written is what its readers expect."""

import hashlib
import json
import re

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lumina_jax.commands.convert import main as command
from lumina_jax.commands.parity import comparisons
from lumina_jax.config import Config
from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.interop.layouts import LAYOUTS, load_model
from lumina_jax.interop.shards import MergedShards, sharded_axis
from lumina_jax.interop.sources import open_weights
from lumina_jax.models.precision import parameter_types
from lumina_jax.parity.golden import Golden
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.modules import named_parameters
from tests.interop.checkpoints import GOLDEN, LUMINA, WEIGHTS, checkpoint, run, tensors_of
from tests.weights.pickled import save_pickled


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("name", LUMINA)
def test_the_way_to_ours_and_back_to_the_authors_is_exact(tmp_path, name):
    source = checkpoint(tmp_path / "source", name)
    ours = run(source, tmp_path / "ours", "lumina", "jax")
    back = run(ours, tmp_path / "back", "jax", "lumina")
    assert_same(tensors_of(back, "lumina"), tensors_of(source, "lumina"))
    again = open_weights(back, "lumina")
    assert again.config == read_model(ours)


def test_the_way_from_diffusers_to_ours_and_back_is_exact(tmp_path):
    source = checkpoint(tmp_path / "source", "diffusers_luminanext", layout="diffusers")
    ours = run(source, tmp_path / "ours", "diffusers", "jax")
    back = run(ours, tmp_path / "back", "jax", "diffusers")
    assert_same(tensors_of(back, "diffusers"), tensors_of(source, "diffusers"))
    assert_same(tensors_of(run(back, tmp_path / "twice", "diffusers", "jax"), "jax"), tensors_of(ours, "jax"))


def test_the_way_from_the_authors_over_diffusers_and_back_is_exact(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    theirs = run(source, tmp_path / "theirs", "lumina", "diffusers")
    back = run(theirs, tmp_path / "back", "diffusers", "lumina")
    assert_same(tensors_of(back, "lumina"), tensors_of(source, "lumina"))
    ours = run(theirs / "transformer", tmp_path / "ours", "diffusers", "jax")
    assert_same(tensors_of(ours, "jax"), tensors_of(run(source, tmp_path / "direct", "lumina", "jax"), "jax"))


def test_the_network_of_an_audio_model_is_taken_from_its_checkpoint_of_lightning(tmp_path):
    golden = Golden(GOLDEN / "audio_flagdit.safetensors")
    state = {f"model.diffusion_model.{name}": value for name, value in golden.parameters.items()}
    state |= {"scale_factor": np.float32([0.4]), "first_stage_model.encoder.conv_in.bias": np.ones(3, np.float32)}
    folder = tmp_path / "audio_generation"
    folder.mkdir()
    save_pickled(folder / "119.ckpt", {"epoch": 119, "state_dict": state, "loops": {"fit_loop": None}})
    (folder / "config.json").write_text(json.dumps(golden.config))
    ours = run(folder, tmp_path / "ours", "lumina", "jax")
    direct = run(checkpoint(tmp_path / "plain", "audio_flagdit"), tmp_path / "direct", "lumina", "jax")
    assert_same(tensors_of(ours, "jax"), tensors_of(direct, "jax"))
    assert read_model(ours).time_scale == 1000  # their network reads t in thousandths


def test_converted_parameters_are_those_of_the_model_on_any_mesh(tmp_path):
    golden = Golden(GOLDEN / "lumina_t2i.safetensors")
    layout = LAYOUTS["lumina"]
    model = load_model(layout, layout.read_config(golden.config, golden.parameters), golden.parameters)
    folder = run(checkpoint(tmp_path / "source", "lumina_t2i"), tmp_path / "ours", "lumina", "jax")
    parameters = load_parameters(folder, read_model(folder))
    expected = nnx.to_pure_dict(nnx.state(model))
    assert jax.tree.structure(parameters) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, parameters, expected)
    here = jax.tree.map(lambda leaf: jax.sharding.SingleDeviceSharding(jax.devices()[0]), expected)
    loaded = load_parameters(folder, read_model(folder), here, dtype=jax.numpy.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}
    types = parameter_types(read_model(folder), "bfloat16")
    loaded = load_parameters(folder, read_model(folder), here, dtype=types)
    chex.assert_trees_all_equal(loaded, jax.tree.map(lambda x, dtype: x.astype(dtype), parameters, types))


@pytest.mark.parametrize("subset", [{"blocks.mlp.up.kernel": (2, 64, 3)}, {"surprise": (3,)}, {"pad_token": None}])
def test_parameters_that_do_not_fit_the_configuration_are_named(tmp_path, subset):
    folder = run(checkpoint(tmp_path / "source", "lumina_t2i"), tmp_path / "ours", "lumina", "jax")
    tensors = tensors_of(folder, "jax")
    for name, shape in subset.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, folder / WEIGHTS["jax"])
    with pytest.raises(ValueError, match=next(iter(subset))):
        load_parameters(folder, read_model(folder))
    with pytest.raises(ValueError, match=next(iter(subset))):
        run(folder, tmp_path / "other", "jax", "lumina")


def test_a_small_shard_size_splits_the_files_and_changes_nothing(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    whole = run(source, tmp_path / "whole", "lumina", "diffusers")
    split = run(source, tmp_path / "split", "lumina", "diffusers", shard_gb=1e-4)
    files = sorted(split.glob("transformer/*.safetensors"))
    assert len(files) > 2
    assert re.fullmatch(rf"diffusion_pytorch_model-00001-of-{len(files):05}\.safetensors", files[0].name)
    assert_same(dict(TensorFiles(split / "transformer")), tensors_of(whole, "diffusers"))
    back = run(split, tmp_path / "back", "diffusers", "lumina", shard_gb=1e-4)
    assert_same(tensors_of(back, "lumina"), tensors_of(source, "lumina"))


def test_the_type_changes_only_when_that_is_asked_for(tmp_path):
    source = checkpoint(tmp_path / "source", "lumina_t2i_noqk")
    small = run(source, tmp_path / "small", "lumina", "jax", dtype="bfloat16")
    exact = run(small, tmp_path / "exact", "jax", "lumina")
    expected = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors_of(source, "lumina").items()}
    assert_same(tensors_of(exact, "lumina"), expected)
    wide = run(exact, tmp_path / "wide", "lumina", "lumina", dtype="float32")
    assert_same(tensors_of(wide, "lumina"), {name: value.astype(np.float32) for name, value in expected.items()})
    assert "rounded to bfloat16" in (small / "README.md").read_text()
    assert "rounded" not in (exact / "README.md").read_text()


def test_the_card_says_what_was_written(tmp_path):
    folder = run(checkpoint(tmp_path / "my-model", "nextdit"), tmp_path / "ours", "lumina", "jax")
    card = (folder / "README.md").read_text()
    count = sum(value.size for value in tensors_of(folder, "jax").values())
    assert f"{count:,} in" in card
    assert "my-model (consolidated.00-of-01.safetensors)" in card
    assert str(tmp_path) not in card
    assert hashlib.sha256((folder / WEIGHTS["jax"]).read_bytes()).hexdigest() in card


def test_a_pipeline_of_diffusers_names_its_parts_and_takes_those_that_are_given(tmp_path):
    parts = tmp_path / "parts"
    for name in ("vae", "text_encoder", "tokenizer"):
        (parts / name).mkdir(parents=True)
        (parts / name / "config.json").write_text(f'"{name}"')
    (parts / "model_index.json").write_text(json.dumps({"tokenizer": ["transformers", "Other"], "scheduler": []}))
    folder = run(checkpoint(tmp_path / "source", "nextdit"), tmp_path / "pipe", "lumina", "diffusers", components=parts)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LuminaPipeline"
    assert index["transformer"] == ["diffusers", "LuminaNextDiT2DModel"]
    assert index["tokenizer"] == ["transformers", "Other"]
    assert json.loads((folder / "scheduler/scheduler_config.json").read_text())["shift"] == 1.0
    assert (folder / "vae/config.json").read_text() == '"vae"'


def test_a_dry_run_shows_every_parameter_and_writes_nothing(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "nextdit")
    words = [str(source), str(tmp_path / "other"), "--from", "lumina", "--to", "diffusers", "--dry-run"]
    assert command(words) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "attention.wo.weight" in line)
    assert "layers.{layer}.attention.wo.weight -> blocks.attention.out.kernel -> layers.{layer}.attn2.to_out.0" in row
    assert "[2, 64, 64] float32" in row
    assert "axes (1, 0)" in row
    theirs = set(tensors_of(source, "lumina"))
    shown = {line.split(" ")[0].format(layer=layer) for line in lines for layer in range(2)}
    assert theirs <= shown
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_moving_average_of_the_authors_is_taken_unless_told_otherwise(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "nextdit")
    average = {name: value + 1 for name, value in tensors_of(source, "lumina").items()}
    save_file(average, source / "consolidated_ema.00-of-01.safetensors")
    assert_same(tensors_of(run(source, tmp_path / "a", "lumina", "lumina"), "lumina"), average)
    assert "the moving average (ema), as both are available" in capsys.readouterr().out
    trained = run(source, tmp_path / "b", "lumina", "lumina", weights="params")
    assert_same(tensors_of(trained, "lumina"), tensors_of(source, "lumina"))


@pytest.mark.parametrize(("weights", "offset"), [(None, 1), ("params", 0)])
def test_a_run_is_exported_from_the_step_and_the_weights_that_are_asked_for(tmp_path, weights, offset):
    folder = run(checkpoint(tmp_path / "source", "flagdit_imagenet"), tmp_path / "ours", "lumina", "jax")
    config = Config(model=read_model(folder))
    parameters = load_parameters(folder, config.model)
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", keep=2)
    for step in (1, 2):
        ema = jax.tree.map(lambda leaf, step=step: leaf + step, parameters)
        checkpoints.save(step, {"parameters": parameters, "ema": ema}, {}, config.to_json())
    checkpoints.close()
    (tmp_path / "run/config.json").write_text(config.to_json())
    out = run(tmp_path / "run", tmp_path / "out", "jax", "jax", weights=weights, step=1)
    expected = {name: np.asarray(value) + offset for name, value in named_parameters(parameters).items()}
    assert_same(tensors_of(out, "jax"), expected)
    assert read_model(out) == config.model
    assert "run at step 1" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["t2i", "imagenet"])
def test_the_shards_of_two_ranks_are_merged_into_the_model_that_they_computed(tmp_path, name):
    golden = Golden(GOLDEN / "shards" / f"{name}.safetensors")
    source = tmp_path / "source"
    source.mkdir()
    for rank in range(2):
        prefix = f"rank/{rank}/"
        part = {key.removeprefix(prefix): value for key, value in golden.raw.items() if key.startswith(prefix)}
        save_file(part, source / f"consolidated.{rank:02}-of-02.safetensors")
    (source / "config.json").write_text(json.dumps(golden.config))
    merged = tensors_of(run(source, tmp_path / "whole", "lumina", "lumina"), "lumina")
    recorded = {key: value for key, value in golden.raw.items() if not key.startswith("rank/")}
    recorded |= {f"param/{key}": value for key, value in merged.items()}
    save_file(recorded, tmp_path / "merged.safetensors", {"meta": json.dumps(golden.meta)})
    [row] = comparisons(tmp_path / "merged.safetensors")
    assert row.passed, row


@pytest.mark.parametrize(("name", "count"), [("lumina_t2i_noqk", 4), ("lumina_t2i_noqk", 2)])
def test_a_model_cut_into_ranks_is_put_together_again(tmp_path, name, count):
    source = checkpoint(tmp_path / "source", name)
    whole = tensors_of(source, "lumina")
    for rank in range(count):
        part = {
            key: value if sharded_axis(key) is None else np.split(value, count, sharded_axis(key))[rank]
            for key, value in whole.items()
        }
        save_file({key: np.ascontiguousarray(value) for key, value in part.items()},
                  source / f"consolidated.{rank:02}-of-{count:02}.safetensors")  # fmt: skip
    (source / WEIGHTS["lumina"]).unlink()
    assert_same(tensors_of(run(source, tmp_path / "merged", "lumina", "lumina"), "lumina"), whole)


def test_shards_with_qk_norm_or_with_unequal_copies_are_refused(tmp_path):
    part = load_file(GOLDEN / "shards" / "t2i.safetensors")
    ranks = [{key[7:]: value for key, value in part.items() if key.startswith(f"rank/{rank}/")} for rank in range(2)]
    ranks[1]["eol_token"] = ranks[1]["eol_token"] + 1e-3
    save_shards(tmp_path, ranks)
    with pytest.raises(ValueError, match="eol_token must be the same in all shards"):
        MergedShards([TensorFiles(tmp_path / f"{rank}.safetensors") for rank in range(2)])
    for rank in ranks:
        rank["layers.0.attention.q_norm.weight"] = np.ones(16, np.float32)
    save_shards(tmp_path, ranks)
    with pytest.raises(ValueError, match="trained on 2 ranks cannot be converted exactly"):
        MergedShards([TensorFiles(tmp_path / f"{rank}.safetensors") for rank in range(2)])


def save_shards(folder, ranks):
    for number, rank in enumerate(ranks):
        save_file(rank, folder / f"{number}.safetensors")
