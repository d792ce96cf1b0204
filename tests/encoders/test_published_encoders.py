"""LLaMA, Gemma, CLIP and T5 against transformers, through the folders that a user would have."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lumina_jax.encoders.t5 import distance_buckets
from lumina_jax.encoders.text import text_encoder

GOLDEN = Path(__file__).parent.parent / "golden"
MAKER = Path(__file__).parent.parent.parent / "tools" / "make_text_encoder_goldens.py"
USUAL = {"llama": "last", "gemma": "penultimate", "clip": "last", "t5": "last"}


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def expected_of(folder):
    with safe_open(folder / "expected.safetensors", framework="numpy") as file:
        meta = json.loads(file.metadata()["meta"])
        return meta, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def error_of(name, folder, state, *, dtype="float32"):
    """The largest relative error of the encoder `name` at real tokens, against a state that `folder` expects."""
    meta, expected = expected_of(folder)
    encoded = text_encoder(name, meta["max_tokens"], dtype=dtype).encode(meta["captions"])
    np.testing.assert_array_equal(encoded.segment_ids, expected["mask"])
    real = expected["mask"].astype(bool)
    assert not encoded.features[~real].any()
    return relative_error(encoded.features[real], expected[state][real])


def copy_with(folder, kind, *, config=None, rename=lambda name: name, extra=None):
    """The golden encoder with settings changed, tensors renamed, or dropped where the new name is None, and added."""
    shutil.copytree(GOLDEN / f"{kind}_tiny", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    tensors = load_file(folder / "model.safetensors")
    renamed = {rename(name): tensor for name, tensor in tensors.items() if rename(name) is not None}
    save_file({**renamed, **(extra or {})}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", USUAL)
def test_both_states_equal_those_of_transformers(kind):
    folder = GOLDEN / f"{kind}_tiny"
    for state in ("last", "penultimate"):
        assert error_of(f"{folder}:{state}", folder, state) < 1e-5
    meta, expected = expected_of(folder)
    assert relative_error(expected["last"], expected["penultimate"]) > 0.1
    usual, chosen = (text_encoder(name, meta["max_tokens"]) for name in (folder, f"{folder}:{USUAL[kind]}"))
    assert usual.fingerprint == chosen.fingerprint
    np.testing.assert_array_equal(usual.encode(["red"]).features, chosen.encode(["red"]).features)


def without_gate(name):
    return None if "wi_1" in name else name.replace("wi_0", "wi")


def test_the_other_feed_forward_of_clip_and_t5_equals_transformers(tmp_path):
    clip = copy_with(tmp_path / "clip", "clip", config={"hidden_act": "gelu"})
    assert error_of(clip, clip, "last_other") < 1e-5 < error_of(clip, clip, "last")
    t5 = copy_with(tmp_path / "t5", "t5", config={"feed_forward_proj": "relu"}, rename=without_gate)
    assert error_of(t5, t5, "last_other") < 1e-5 < error_of(t5, t5, "last")


def test_a_decoder_is_read_under_bare_names_with_what_older_files_hold_besides(tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    older = {"rope_parameters": None, "rope_scaling": None, "rope_theta": 30.0, "num_key_value_heads": 2}
    bare = copy_with(
        tmp_path / "llama", "llama", config=older, rename=lambda name: name.removeprefix("model."), extra=extra
    )
    assert error_of(bare, bare, "last") < 1e-5
    older = {"rope_parameters": None, "rope_theta": 30.0, "hidden_act": "gelu", "hidden_activation": None}
    extra = {"lm_head.weight": np.ones((17, 24), np.float32)}
    prefixed = copy_with(tmp_path / "gemma", "gemma", config=older, rename=lambda name: f"model.{name}", extra=extra)
    assert error_of(prefixed, prefixed, "penultimate") < 1e-5


def test_the_text_half_of_a_whole_clip_is_read(tmp_path):
    text = json.loads((GOLDEN / "clip_tiny" / "config.json").read_text())
    del text["hidden_act"]  # the default of the format
    whole = {"model_type": "clip", "text_config": text, "vision_config": {"hidden_size": 8}}
    extra = {"vision_model.embeddings.class_embedding": np.ones(8, np.float32), "logit_scale": np.ones((), np.float32)}
    folder = copy_with(tmp_path / "whole", "clip", config=whole, extra=extra)
    assert error_of(folder, folder, "last") < 1e-5
    text = {**text, "hidden_act": "gelu"}
    folder = copy_with(tmp_path / "older", "clip", config={**whole, "text_config": {}, "text_config_dict": text})
    assert error_of(folder, folder, "last_other") < 1e-5


def test_the_words_of_t5_are_found_under_either_name_and_its_decoder_is_left_alone(tmp_path):
    shared = load_file(GOLDEN / "t5_tiny" / "model.safetensors")["shared.weight"]
    extra = {"encoder.embed_tokens.weight": shared, "decoder.final_layer_norm.weight": np.ones(24, np.float32)}
    both = copy_with(tmp_path / "both", "t5", extra=extra)
    assert error_of(both, both, "last") < 1e-5
    one = copy_with(tmp_path / "one", "t5", rename=lambda name: name.replace("shared", "encoder.embed_tokens"))
    assert error_of(one, one, "last") < 1e-5


@pytest.mark.parametrize(("kind", "last_layer"), [("gemma", "layers.2."), ("t5", "encoder.block.2.")])
def test_what_comes_after_the_penultimate_state_is_not_read(tmp_path, kind, last_layer):
    def rename(name):
        return None if last_layer in name or name in ("norm.weight", "encoder.final_layer_norm.weight") else name

    folder = copy_with(tmp_path / "model", kind, rename=rename)
    assert error_of(f"{folder}:penultimate", folder, "penultimate") < 1e-5
    with pytest.raises(ValueError, match=rf"missing .*{last_layer}"):
        text_encoder(f"{folder}:last", 16)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rotary positions .'llama3'.,",
        ),
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
            "rotary positions .'linear'.,",
        ),
        ("llama", {"attention_bias": True}, "has attention_bias=True, but this network only supports False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu', but this network only supports 'silu'"),
        ("llama", {"eos_token_id": [2, 3]}, r"one token each, but are 1 and \[2, 3\]"),
        ("llama", {"rms_norm_eps": None}, "lacks rms_norm_eps"),
        ("llama", {"num_hidden_layers": 2}, "unknown layers.2"),
        ("llama", {"num_key_value_heads": 4}, r"the shape \(3, 24, 12\), but the configuration requires \(3, 24, 24\)"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ("clip", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj='gated-silu'"),
        ("t5", {"feed_forward_proj": "relu"}, r"missing .*DenseReluDense.wi.weight.* unknown .*wi_0"),
    ],
)
def test_a_configuration_of_another_network_is_refused(tmp_path, kind, config, message):
    folder = copy_with(tmp_path / "model", kind, config=config)
    with pytest.raises(ValueError, match=message):
        text_encoder(f"{folder}:last", 16)


def test_the_state_before_a_single_layer_is_refused(tmp_path):
    folder = copy_with(tmp_path / "model", "gemma", config={"num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"needs at least 2 layers, but the network has 1; use .*:last"):
        text_encoder(folder, 16)


def test_captions_are_as_long_as_the_positions_at_most_and_t5_has_no_limit():
    with pytest.raises(ValueError, match=r"max_tokens=21 must be at most the 20 positions"):
        text_encoder(GOLDEN / "llama_tiny", 21)
    assert text_encoder(GOLDEN / "t5_tiny", 64).encode(["red " * 70]).segment_ids.sum() == 64
    with pytest.raises(ValueError, match="max_tokens=1 must be at least 2"):
        text_encoder(GOLDEN / "t5_tiny", 1)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_bfloat16_halves_the_parameters_and_stays_close(kind):
    folder = GOLDEN / f"{kind}_tiny"
    assert 1e-4 < error_of(folder, folder, USUAL[kind], dtype="bfloat16") < 0.1
    network = text_encoder(folder, 16, dtype="bfloat16")._hidden_states.args[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype(jnp.bfloat16)}
    assert text_encoder(folder, 16).fingerprint != text_encoder(folder, 16, dtype="bfloat16").fingerprint


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_text_encoder_goldens", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 2, "model_class": "LlamaModel"}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 10}),
        ("gemma", {}),
        ("gemma", {"num_key_value_heads": 4, "model_class": "GemmaForCausalLM"}),
        ("clip", {"hidden_act": "quick_gelu"}),
        ("clip", {"hidden_act": "gelu", "model_class": "CLIPTextModel"}),
        ("t5", {"feed_forward_proj": "relu"}),
        ("t5", {"feed_forward_proj": "gated-gelu", "model_class": "T5ForConditionalGeneration"}),
        ("t5", {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}),
    ],
)
def test_a_fresh_random_encoder_equals_transformers(maker, tmp_path, kind, changes):
    maker.write(tmp_path, kind, seed=7, **changes)
    for state in ("last", "penultimate"):
        error = error_of(f"{tmp_path}:{state}", tmp_path, state)
        print(f"{kind} {changes} {state}: {error:.1e}")
        assert error < 1e-5


@pytest.mark.torch
def test_the_distance_buckets_are_those_of_transformers():
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    after = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    for buckets, most in ((32, 128), (8, 12), (16, 100)):
        expected = T5Attention._relative_position_bucket(after, True, buckets, most)
        np.testing.assert_array_equal(distance_buckets(300, buckets=buckets, max_distance=most), expected.numpy())
