"""CLAP's text encoder and encoders in series: against the definition in numpy, and what the others read."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.encoders.text import text_encoder
from tests.encoders.test_bert import numpy_bert
from tests.weights.pickled import save_pickled

GOLDEN = Path(__file__).parents[1] / "golden"
BERT, T5 = GOLDEN / "bert_tiny", GOLDEN / "t5_tiny"
WIDTH, TOKENS = 24, 8
CAPTIONS = ["red heart", "", "night"]


def projection():
    random = np.random.default_rng(0)
    weights = {"linear1.weight": (WIDTH, 24), "linear2.weight": (WIDTH, WIDTH)}
    weights |= {"layer_norm.weight": (WIDTH,), "layer_norm.bias": (WIDTH,)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in weights.items()}


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """The published layout: the checkpoint of both halves, and beside it what is BERT's."""
    folder = tmp_path_factory.mktemp("clap")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(BERT / name, folder)
    base = {f"base.{name}": value for name, value in load_file(BERT / "model.safetensors").items()}
    text = base | {f"projection.{name}": value for name, value in projection().items()}
    text |= {"base.pooler.dense.bias": np.ones(24, np.float32), "base.embeddings.position_ids": np.arange(16)[None]}
    state = {f"caption_encoder.{name}": value for name, value in text.items()}
    state |= {"audio_encoder.base.bn0.weight": np.ones(64, np.float32), "logit_scale": np.float32([3])}
    save_pickled(folder / "CLAP_weights_2022.pth", {"epoch": 20, "model": state})
    return folder


def expected(captions, encoder, *, padded):
    """Features of the real tokens of each caption, or of all when padding is seen."""
    ids, mask = encoder.tokenize(captions)
    rows = list(ids) if padded else [row[real] for row, real in zip(ids, mask)]
    weights = {name: value.astype(np.float64) for name, value in projection().items()}
    features = []
    for x in numpy_bert(BERT, rows):
        y = x @ weights["linear1.weight"].T
        curved = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        z = y + curved @ weights["linear2.weight"].T
        centred = z - z.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        features.append(normed * weights["layer_norm.weight"] + weights["layer_norm.bias"])
    return features


@pytest.mark.parametrize("padded", [False, True])
def test_every_token_is_projected_and_padding_is_seen_when_asked_for(clap, padded):
    encoder = text_encoder(clap, TOKENS, see_padding=padded)
    encoded = encoder.encode(CAPTIONS)
    assert encoder.width == WIDTH
    for caption, row, segments in zip(expected(CAPTIONS, encoder, padded=padded), *encoded):
        assert segments.tolist() == [1] * len(caption) + [0] * (TOKENS - len(caption))
        np.testing.assert_allclose(row[: len(caption)], caption, rtol=1e-4, atol=1e-5)
    assert padded == bool(encoded.segment_ids.all())
    assert encoder.fingerprint != text_encoder(clap, TOKENS, see_padding=not padded).fingerprint


def test_encoders_joined_by_a_comma_give_all_tokens_one_after_another(clap):
    joined = text_encoder(f"{clap},{T5}", TOKENS)
    one, two = text_encoder(clap, TOKENS), text_encoder(T5, TOKENS)
    assert (joined.width, joined.max_tokens) == (WIDTH, 2 * TOKENS)
    structured = "<night & all>"
    read = {"red heart": ("red heart", "red heart"), "": ("", ""), structured: (structured, structured)}
    read[f"red heart {structured}"] = ("red heart", structured)
    encoded = joined.encode(list(read))
    parts = [one.encode([first for first, _ in read.values()]), two.encode([second for _, second in read.values()])]
    np.testing.assert_array_equal(encoded.features, np.concatenate([part.features for part in parts], axis=1))
    np.testing.assert_array_equal(encoded.segment_ids, np.concatenate([part.segment_ids for part in parts], axis=1))
    with pytest.raises(ValueError, match=r"must be a list of captions"):
        joined.encode("night")


def test_what_cannot_be_joined_or_read_is_refused(clap, tmp_path):
    with pytest.raises(ValueError, match=r"must have the same width, but have \[24, 384\]"):
        text_encoder(f"{clap},minilm", TOKENS)
    with pytest.raises(ValueError, match="only has the last state"):
        text_encoder(f"{clap}:penultimate", TOKENS)
    shutil.copytree(clap, tmp_path / "two")
    shutil.copy(tmp_path / "two" / "CLAP_weights_2022.pth", tmp_path / "two" / "CLAP_weights_2023.pth")
    with pytest.raises(ValueError, match=r"CLAP_weights_2022.pth, CLAP_weights_2023.pth; keep one"):
        text_encoder(tmp_path / "two", TOKENS)
    (tmp_path / "two" / "CLAP_weights_2023.pth").unlink()
    save_pickled(tmp_path / "two" / "CLAP_weights_2022.pth", {"model": {"x": np.ones(2, np.float32)}})
    with pytest.raises(ValueError, match=r"must hold caption_encoder.projection.linear1.weight"):
        text_encoder(tmp_path / "two", TOKENS)
    config = json.loads((clap / "config.json").read_text())
    shutil.copy(clap / "CLAP_weights_2022.pth", tmp_path / "two")
    (tmp_path / "two" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"unknown base.encoder.layer.2"):
        text_encoder(tmp_path / "two", TOKENS)
