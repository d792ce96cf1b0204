"""The BERT port against an independent numpy implementation, and against transformers."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lumina_jax.encoders.bert import load_bert
from lumina_jax.encoders.text import SHIPPED_ENCODERS, text_encoder

GOLDEN = Path(__file__).parent.parent / "golden" / "bert_tiny"
MAKER = Path(__file__).parent.parent.parent / "tools" / "make_bert_golden.py"


def numpy_bert(folder, captions):
    """The encoder in float64, one caption at a time and without padding: nothing that the port relies on."""
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    erf = np.vectorize(math.erf)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    features = []
    for ids in captions:
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}"
            q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
            mixed = []
            for head in np.split(np.arange(x.shape[1]), heads):
                weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(len(head)))
                mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
            attended = linear(np.concatenate(mixed, -1), f"{at}.attention.output.dense")
            x = norm(x + attended, f"{at}.attention.output.LayerNorm")
            hidden = linear(x, f"{at}.intermediate.dense")
            hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
            x = norm(x + linear(hidden, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        features.append(x)
    return features


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def check_against_expected(folder):
    with safe_open(folder / "expected.safetensors", framework="numpy") as file:
        meta = json.loads(file.metadata()["meta"])
        expected = {name: file.get_tensor(name) for name in ("token_ids", "mask", "features")}
    encoded = text_encoder(folder, meta["max_tokens"]).encode(meta["captions"])
    np.testing.assert_array_equal(encoded.segment_ids, expected["mask"])
    real = expected["mask"].astype(bool)
    assert relative_error(encoded.features[real], expected["features"][real]) < 1e-5
    assert not encoded.features[~real].any()


def test_minilm_equals_an_independent_implementation_in_float64():
    captions = ["red heart, noto style", "", "a café at night", "very " * 60 + "long"]
    encoder = text_encoder("minilm", 16)
    encoded = encoder.encode(captions)
    folder = SHIPPED_ENCODERS["minilm"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = [tokenizer.encode(caption).ids for caption in captions]
    ids = [row if len(row) <= 16 else [*row[:15], row[-1]] for row in ids]
    expected = numpy_bert(folder, ids)
    assert [len(row) for row in expected] == encoded.segment_ids.sum(axis=1).tolist() == [8, 2, 6, 16]
    for features, row in zip(encoded.features, expected):
        assert relative_error(features[: len(row)], row) < 1e-5
        assert not features[len(row) :].any()


def test_tiny_bert_equals_transformers():
    check_against_expected(GOLDEN)


@pytest.mark.torch
def test_a_fresh_random_bert_equals_transformers(tmp_path):
    spec = importlib.util.spec_from_file_location("make_bert_golden", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    maker.main(tmp_path, seed=7)
    assert (tmp_path / "model.safetensors").read_bytes() != (GOLDEN / "model.safetensors").read_bytes()
    check_against_expected(tmp_path)


def test_the_layers_are_stacked_and_every_parameter_names_its_dimensions():
    model = load_bert(GOLDEN)
    assert model.layers.query.kernel.shape == (3, 24, 24)
    for path, variable in jax.tree.leaves_with_path(model, is_leaf=lambda node: hasattr(node, "get_metadata")):
        stacked = "layers" in jax.tree_util.keystr(path)
        assert len(variable.get_metadata()["axes"]) == len(variable.shape) - stacked


def test_a_padded_token_reaches_no_real_token():
    model = load_bert(GOLDEN)
    mask = jnp.array([[True, True, True, False, False]])
    forward = jax.jit(type(model).__call__)
    one = forward(model, jnp.array([[2, 8, 3, 0, 0]]), mask)
    other = forward(model, jnp.array([[2, 8, 3, 9, 5]]), mask)
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert np.abs(one - other).max() > 0.1


def changed_copy(folder, rename):
    """The golden encoder with its tensors renamed, or dropped where the new name is None."""
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {rename(name): value for name, value in tensors.items() if rename(name) is not None}
    renamed["cls.predictions.bias"] = np.zeros(17, np.float32)
    save_file(renamed, folder / "model.safetensors")
    return folder


def test_prefixed_names_and_the_first_names_of_norms_are_read(tmp_path):
    def rename(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    check_against_expected(changed_copy(tmp_path / "model", rename))


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    lost = "encoder.layer.1.output.dense.bias"
    folder = changed_copy(tmp_path / "model", lambda name: "adapter.bias" if name == lost else name)
    with pytest.raises(ValueError, match=rf"model.safetensors .* missing {lost}, unknown adapter.bias"):
        load_bert(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"num_hidden_layers": 2}, "unknown encoder.layer.2"),
        ({"intermediate_size": 48}, r"layers.down.kernel the shape \(3, 40, 24\), .* requires \(3, 48, 24\)"),
        ({"layer_norm_eps": None}, "lacks layer_norm_eps"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        load_bert(folder)


def test_missing_and_damaged_weights_are_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is not a readable safetensors file"):
        load_bert(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"must have model.safetensors or .*, but its only weights are: "):
        load_bert(folder)
