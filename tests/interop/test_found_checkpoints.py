"""Checkpoints as they are found: with prefixes, in pieces, quantised, or something else than a model."""

import contextlib
import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lumina_jax.interop.converted import read_model
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.names import check_whole, network
from lumina_jax.interop.sources import _theirs, open_weights
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.tensors import ComputedTensors
from tests.interop.checkpoints import GOLDEN, WEIGHTS, checkpoint, run, tensors_of
from tests.interop.test_malformed import expect_error
from tests.weights.pickled import save_pickled
from tests.weights.test_files import write
from tests.weights.test_hub import snapshot as snapshot

FILE = WEIGHTS["lumina"]


def named(*names):
    shapes = dict.fromkeys(names, ((1,), np.dtype(np.float32)))
    return ComputedTensors(shapes, lambda name: np.zeros(1, np.float32))


def words(source, layout="lumina"):
    return [f"{source}", f"{source.parent}/out", "--from", layout, "--to", "jax"]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "prefix", ["module.", "model.diffusion_model.", "model.", "_orig_mod.", "module._orig_mod.", "ema."]
)
def test_what_stands_before_every_name_is_removed_and_said(tmp_path, capsys, prefix):
    source = checkpoint(tmp_path / "source", "nextdit")
    plain = tensors_of(source, "lumina")
    save_file({f"{prefix}{name}": value for name, value in plain.items()}, source / FILE)
    assert_same(tensors_of(run(source, tmp_path / "back", "lumina", "lumina"), "lumina"), plain)
    said = capsys.readouterr().out
    rest = prefix.replace("_orig_mod.", "")
    assert not rest or f"names: the prefix {rest!r} was removed" in said
    assert ("torch.compile" in said) == ("_orig_mod." in prefix)


def test_prefixes_of_a_model_of_diffusers_are_removed_too(tmp_path):
    source = checkpoint(tmp_path / "source", "diffusers_luminanext", layout="diffusers")
    plain = tensors_of(source, "diffusers")
    save_file({f"module.{name}": value for name, value in plain.items()}, source / WEIGHTS["diffusers"])
    assert_same(tensors_of(run(source, tmp_path / "ours", "diffusers", "jax"), "jax"),
                tensors_of(run(checkpoint(tmp_path / "plain", "diffusers_luminanext", layout="diffusers"),
                               tmp_path / "other", "diffusers", "jax"), "jax"))  # fmt: skip


def test_wrappers_within_names_are_removed(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "nextdit")
    plain = tensors_of(source, "lumina")
    wrapped = {name.replace("layers.1.", "layers.1._fsdp_wrapped_module._orig_mod."): v for name, v in plain.items()}
    save_file(wrapped, source / FILE)
    assert_same(tensors_of(run(source, tmp_path / "back", "lumina", "lumina"), "lumina"), plain)
    assert "names: the components that torch.compile or FSDP inserted in" in capsys.readouterr().out


def test_what_lies_beside_the_network_is_left_out_and_said(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "nextdit")
    plain = tensors_of(source, "lumina")
    whole = {f"model.diffusion_model.{name}": value for name, value in plain.items()}
    save_file(whole | {"vae.encoder.conv_in.bias": np.ones(3, np.float32)}, source / FILE)
    assert_same(tensors_of(run(source, tmp_path / "back", "lumina", "lumina"), "lumina"), plain)
    assert "skipped: 1 tensors that do not belong to the network, such as vae.encoder" in capsys.readouterr().out


def test_several_networks_in_one_file_are_not_mixed(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    plain = tensors_of(source, "lumina")
    save_file(
        {f"{prefix}.{name}": value for name, value in plain.items() for prefix in ("model", "ema")}, source / FILE
    )
    expect_error(words(source), r"several networks.*'ema\.', 'model\.'")


@given(prefix=st.text("abc.", max_size=6), rest=st.lists(st.sampled_from(["x", "layers.0.y", "z.w"]), unique=True))
def test_a_network_under_any_prefix_is_the_network(prefix, rest):
    prefix = prefix and f"{prefix}."
    names = ["final_layer.linear.weight", *rest]
    found, _ = network(named(*(f"{prefix}{name}" for name in names)), "lumina", "it")
    assert list(found) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blocks.attention.query.kernel"], "these are parameters of lumina_jax; use --from jax"),
        (["time_caption_embed.timestep_embedder.linear_1.weight", "a", "b", "c"], "of diffusers; use --from diffusers"),
        (["encoder.conv_in.weight"], "of an autoencoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "of a language model"),
        (["weight"], "but weight; check --from"),
        (["final_layer.linear.weight", "context_refiner.0.attention.qkv.weight"], r"is a Lumina-Image 2\.0"),
    ],
)
def test_tensors_of_another_network_are_called_what_they_are(tmp_path, names, message):
    """Without a config.json too, where the number of heads used to be asked for."""
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, tmp_path / "model.safetensors")
    expect_error([f"{tmp_path}/model.safetensors", f"{tmp_path}/out", "--from", "lumina", "--to", "jax"], message)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.layers.0.attn1.to_q.lora_A.weight",
        "transformer.layers.0.attn1.to_q.lora.down.weight",
        "lora_unet_layers_0_attention_wq.lora_down.weight",
        "base_model.model.layers.0.attention.wq.lora_B.default.weight",
        "layers.0.attention.wq.lora_magnitude_vector",
        "lycoris_layers_0_attention_wq.hada_w1_a",
        "lycoris_layers_0_attention_wq.lokr_w2",
        "layers.0.attention.wq.dora_scale",
    ],
)
def test_a_lora_is_called_one_with_what_to_do(tmp_path, name):
    save_file({name: np.zeros((2, 2), np.float32)}, tmp_path / "lora.safetensors")
    for layout in ("lumina", "jax"):
        (tmp_path / "config.json").write_text(json.dumps({"model": {"layers": 1, "heads": 1, "width": 8}}))
        words = [f"{tmp_path}/lora.safetensors", f"{tmp_path}/out", "--from", layout, "--to", "jax"]
        expect_error(words, "contains a LoRA .*, which is a change to a model; first merge it")


QUANTISED = ["absmax", "quant_state.bitsandbytes__nf4", "SCB", "qweight", "scale_weight", "weight_scale_inv"]


@pytest.mark.parametrize("ending", QUANTISED)
def test_quantised_weights_are_called_so_before_names_are_compared(tmp_path, ending):
    source = checkpoint(tmp_path / "source", "nextdit")
    name = f"layers.0.attention.wq.{ending}"
    save_file(tensors_of(source, "lumina") | {name: np.ones(3, np.float32)}, source / FILE)
    expect_error(words(source), rf"contains quantised weights \({name}\); use the checkpoint that was not")


@pytest.mark.parametrize("name", ["nextdit", "lumina_t2i", "audio_flagdit", "diffusers_luminanext"])
def test_no_released_model_is_taken_for_a_lora(name):
    from lumina_jax.parity.golden import Golden

    check_whole(Golden(GOLDEN / f"{name}.safetensors").parameters, name)


def test_weights_of_8_bits_are_converted_exactly(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", "nextdit")
    small = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors_of(source, "lumina").items()}
    write(source / FILE, {name: ("F8_E4M3", list(value.shape), value.tobytes()) for name, value in small.items()})
    found = tensors_of(run(source, tmp_path / "back", "lumina", "lumina"), "lumina")
    assert_same(found, {name: value.astype(ml_dtypes.bfloat16) for name, value in small.items()})
    assert "stored as F8_E4M3, read as bfloat16" in capsys.readouterr().out


def test_integers_of_a_file_of_pytorch_are_no_weights(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    tensors = tensors_of(source, "lumina")
    (source / FILE).unlink()
    tensors["layers.1.attention.wq.weight"] = tensors["layers.1.attention.wq.weight"].astype(np.int64)
    save_pickled(source / FILE.replace("safetensors", "pth"), tensors)
    expect_error(words(source),
                 r"layers\.1\.attention\.wq\.weight is stored as int64, but weights must be one of")  # fmt: skip


def test_a_model_in_several_files_of_pytorch_is_read_by_its_index(tmp_path):
    source = checkpoint(tmp_path / "source", "diffusers_luminanext", layout="diffusers")
    folder, tensors = source / "transformer", tensors_of(source, "diffusers")
    expected = tensors_of(run(source, tmp_path / "whole", "diffusers", "jax"), "jax")
    (source / WEIGHTS["diffusers"]).unlink()
    halves = {f"part-{half}.bin": dict([*tensors.items()][half::2]) for half in range(2)}
    for name, half in halves.items():
        save_pickled(folder / name, half)
    weight_map = {name: file for file, half in halves.items() for name in half}
    index = folder / "diffusion_pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(tensors_of(run(source, tmp_path / "ours", "diffusers", "jax"), "jax"), expected)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../../secret.bin")}))
    expect_error(words(source, "diffusers"), "files in the same folder")


@pytest.mark.parametrize("ending", ["gguf", "safetensors", "pth"])
def test_a_folder_of_one_file_that_is_no_model_says_what_it_is(tmp_path, ending):
    (tmp_path / "source").mkdir()
    content = b"GGUF\3\0\0\0" if ending == "gguf" else b"version https://git-lfs.github.com/spec/v1\n"
    (tmp_path / f"source/model.{ending}").write_bytes(content)
    said = "GGUF" if ending == "gguf" else "a git-LFS pointer"
    expect_error(words(tmp_path / "source"), rf"model\.{ending} is .*{said}")


def test_a_snapshot_of_the_hub_is_named_by_its_repository(tmp_path, snapshot):
    checkpoint(snapshot, "nextdit")
    direct = open_weights(snapshot, "lumina")
    assert direct.origin.startswith("owner/name at revision 012345678901 (consolidated.00-of-01.safetensors)")
    assert open_weights("owner/name", "lumina").origin == direct.origin
    link = snapshot / FILE
    blob = snapshot.parents[1] / "blob"
    link.rename(blob)
    link.symlink_to(blob)
    assert open_weights(link, "lumina").origin.startswith("owner/name at revision 012345678901,")
    expect_error(["other/name", f"{tmp_path}/out", "--from", "lumina", "--to", "jax"], "hf download other/name")


WRONG = {
    "n_layers: .*integer, but got 2.0": ("nextdit", {"n_layers": 2.0}),
    "n_layers: .*integer, but got 'two'": ("nextdit", {"n_layers": "two"}),
    "n_heads: .*integer, but got None": ("flagdit_imagenet", {"n_heads": None}),
    "n_heads: .*integer, but got True": ("flagdit_imagenet", {"n_heads": True}),
    "n_layers: .*less than or equal to 1048576": ("nextdit", {"n_layers": 10**30}),
    "norm_eps: .*greater than 0": ("nextdit", {"norm_eps": -1}),
    "norm_eps: .* but got nan": ("nextdit", {"norm_eps": float("nan")}),
    "multiple_of: .*greater than or equal to 1": ("nextdit", {"multiple_of": 0}),
    "qk_norm: .*boolean": ("nextdit", {"qk_norm": "yes"}),
    "num_layers: .*integer": ("diffusers_luminanext", {"num_layers": [2]}),
    "_class_name: .*string": ("diffusers_luminanext", {"_class_name": 3}),
    "ffn_dim_multiplier: .*number": ("diffusers_luminanext", {"ffn_dim_multiplier": {}}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_setting_of_another_type_is_refused_with_the_file_and_the_key(tmp_path, message):
    name, change = WRONG[message]
    layout = "diffusers" if name.startswith("diffusers") else "lumina"
    source = checkpoint(tmp_path / "source", name, layout=layout)
    file = (source / WEIGHTS[layout]).with_name("config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    expect_error(words(source, layout), rf"config\.json .*{message}")


CONTENTS = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=3)
KEYS = st.sampled_from(["n_layers", "n_heads", "dim", "qk_norm", "norm_eps", "ffn_dim_multiplier", None])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=CONTENTS, key=KEYS)
def test_any_configuration_is_read_or_refused(tmp_path, content, key):
    source = tmp_path / "source"
    if not source.exists():
        checkpoint(source, "nextdit")
    (source / "config.json").write_text(json.dumps({"n_heads": 4, "multiple_of": 32, key: content} if key else content))
    with contextlib.suppress(ValueError):  # any other error would be a traceback
        open_weights(source, "lumina")


def test_a_model_index_of_another_form_is_refused(tmp_path):
    parts = tmp_path / "parts"
    for name in ("vae", "text_encoder", "tokenizer"):
        (parts / name).mkdir(parents=True)
    (parts / "model_index.json").write_text('{"vae": "AutoencoderKL"}')
    source = checkpoint(tmp_path / "source", "nextdit")
    expect_error([f"{source}", f"{tmp_path}/out", "--from", "lumina", "--to", "diffusers", "--components", f"{parts}"],
                 r"model_index\.json .*vae: .*tuple|array")  # fmt: skip


def test_arguments_of_their_script_have_types_too(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    (source / "config.json").unlink()
    save_pickled(source / "model_args.pth", {"model": 3, "qk_norm": "yes"})
    expect_error(words(source), r"model_args\.pth .*model: .*string")


@pytest.mark.parametrize("shape", [(2**70, 16), (2**40, 16), (0, 16), (64, 2**40), ()])
def test_a_tensor_of_a_shape_that_no_model_has_is_refused(tmp_path, shape):
    """A file of PyTorch may repeat one number as often as it says, so that its size is no bound."""
    source = checkpoint(tmp_path / "source", "nextdit")
    tensors = tensors_of(source, "lumina")
    (source / FILE).unlink()
    file = save_pickled(source / FILE.replace("safetensors", "pth"), tensors)
    reader = PickledTensors(file)
    view = reader._views["x_embedder.weight"]
    reader._views["x_embedder.weight"] = view._replace(shape=shape, strides=(0,) * len(shape))
    with pytest.raises(ValueError, match=r"x_embedder|do not describe a valid model|does not have the tensors"):
        _theirs(LAYOUTS["lumina"], {"n_heads": 4}, reader, "it")


def test_a_folder_whose_name_is_no_text_is_converted(tmp_path):
    source = checkpoint(tmp_path / os.fsdecode(b"caf\xe9"), "nextdit")
    assert "Converted by" in (run(source, tmp_path / "out", "lumina", "jax") / "README.md").read_text()


def test_a_model_of_sounds_is_called_so(tmp_path):
    source = checkpoint(tmp_path / "source", "audio_flagdit")
    assert read_model(run(source, tmp_path / "ours", "lumina", "jax")).modality == "sound"
