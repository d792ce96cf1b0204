"""The text encoder that the package carries: its files, their types, and that the name always means them."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lumina_jax.encoders.bert import bert_config, bert_name, load_bert
from lumina_jax.encoders.published import DEFAULT_OPTIONS, LoadOptions
from lumina_jax.encoders.text import SHIPPED_ENCODERS, text_encoder
from lumina_jax.run import shipped_models

FOLDER = SHIPPED_ENCODERS["minilm"]
NEEDED = {"README.md", "LICENSE-Apache-2.0.txt", "config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture(scope="module")
def shipped():
    return text_encoder(FOLDER, 8)


def test_its_folder_holds_what_is_needed_with_card_and_licence_and_no_more():
    assert {file.name for file in FOLDER.iterdir()} == NEEDED
    assert "Apache License" in (FOLDER / "LICENSE-Apache-2.0.txt").read_text()
    card = (FOLDER / "README.md").read_text()
    for words in ("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", "float16", "tools/ship_encoder.py"):
        assert words in card


def test_its_weights_are_float16_and_all_of_them_are_used():
    config = bert_config(FOLDER, DEFAULT_OPTIONS)
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert len(names) == 5 + 16 * 6
    assert [name for name in names if bert_name(name, config) is None] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_parameters_have_the_type_that_was_asked_for(dtype):
    network = load_bert(FOLDER, LoadOptions(dtype=jnp.dtype(dtype)))
    assert network.words.dtype == network.layers.up.kernel.dtype == dtype


def test_its_name_means_these_files_whatever_is_in_the_folder_of_the_call(shipped, tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert text_encoder("minilm", 8).fingerprint == shipped.fingerprint


def test_a_copy_with_weights_in_float32_has_a_cache_of_its_own(shipped, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    weights = load_file(FOLDER / "model.safetensors")
    save_file({name: value.astype(np.float32) for name, value in weights.items()}, tmp_path / "model.safetensors")
    copy = text_encoder(tmp_path, 8)
    np.testing.assert_array_equal(copy.encode(["red heart"]).features, shipped.encode(["red heart"]).features)
    assert copy.fingerprint != shipped.fingerprint


def test_it_is_no_model_that_draws():
    assert "minilm" not in shipped_models()
