"""Captions to features: independence of batch mates, fingerprints, packing, and refusals."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.encoders.text import BATCH, text_encoder
from lumina_jax.tokens import TextFeatures, pack_text
from tests.compiled import compiled

GOLDEN = Path(__file__).parent.parent / "golden" / "bert_tiny"


@pytest.fixture(scope="module")
def encoder():
    return text_encoder(GOLDEN, 10)


def test_features_do_not_depend_on_the_rest_of_the_batch(encoder):
    alone = encoder.encode(["red heart"])
    crowd = [f"blue circle {'s ' * (n % 9)}" for n in range(2 * BATCH + 3)]
    for index in (0, BATCH - 1, BATCH, 2 * BATCH + 3):
        together = encoder.encode([*crowd[:index], "red heart", *crowd[index:]])
        np.testing.assert_allclose(together.features[index], alone.features[0], atol=4e-6)
        np.testing.assert_array_equal(together.segment_ids[index], alone.segment_ids[0])
    assert np.abs(together.features[0] - alone.features[0]).max() > 0.1


def test_padding_changes_nothing(encoder):
    short = text_encoder(GOLDEN, 5).encode(["red heart"])
    longer = encoder.encode(["red heart"])
    assert short.segment_ids.tolist() == [[1, 1, 1, 1, 0]]
    np.testing.assert_allclose(longer.features[0, :4], short.features[0, :4], atol=4e-6)
    assert not longer.features[0, 4:].any()


def test_a_long_caption_keeps_its_opening_and_closing_token(encoder):
    np.testing.assert_allclose(encoder.encode(["red " * 50]).features, encoder.encode(["red " * 8]).features, atol=1e-6)
    assert text_encoder(GOLDEN, 2).encode(["red heart"]).segment_ids.tolist() == [[1, 1]]


def test_the_network_compiles_once_for_any_number_of_captions(caplog):
    encoder = text_encoder(GOLDEN, 9)
    with compiled(caplog) as programs:
        for count in (1, 3, BATCH, BATCH + 1):
            encoder.encode(["red"] * count)
    assert programs.count("__call__") == 1


def test_no_captions_give_no_rows(encoder):
    features, segment_ids = encoder.encode([])
    assert features.shape == (0, 10, 24)
    assert segment_ids.shape == (0, 10)


def test_a_caption_in_the_place_of_a_list_is_refused(encoder):
    with pytest.raises(ValueError, match="must be a list of captions"):
        encoder.encode("red heart")


def test_weights_tokenizer_and_length_each_change_the_fingerprint(tmp_path, encoder):
    fingerprints = {encoder.fingerprint, text_encoder(GOLDEN, 9).fingerprint}
    for name, old, new in (("tokenizer.json", b'"blue"', b'"blux"'), ("model.safetensors", None, None)):
        folder = tmp_path / name
        shutil.copytree(GOLDEN, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(old, new) if old else data[:-1] + bytes([data[-1] ^ 1]))
        fingerprints.add(text_encoder(folder, 10).fingerprint)
    assert len(fingerprints) == 4
    assert text_encoder(GOLDEN, 10).fingerprint == encoder.fingerprint


def test_captions_of_a_row_are_packed_one_after_another():
    a, b = np.full((2, 3), 1.0, np.float32), np.full((3, 3), 2.0, np.float32)
    packed = pack_text([[a, b], [b], []], row_tokens=6)
    assert isinstance(packed, TextFeatures)
    assert packed.segment_ids.tolist() == [[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0], [0] * 6]
    assert packed.features[:, :, 0].tolist() == [[1, 1, 2, 2, 2, 0], [2, 2, 2, 0, 0, 0], [0] * 6]


def test_packing_refuses_what_does_not_fit():
    a = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="row 1 have 8 tokens, but row_tokens=6"):
        pack_text([[a], [a, a]], row_tokens=6)
    with pytest.raises(ValueError, match="no captions"):
        pack_text([[]], row_tokens=6)
    with pytest.raises(ValueError, match=r"one width, but have \[3, 4\]"):
        pack_text([[a], [np.ones((4, 4), np.float32)]], row_tokens=6)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'minilm-l12' must be one of \['minilm'\], an existing folder, or"):
        text_encoder("minilm-l12", 16)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        text_encoder(folder, 16)


def test_an_unknown_architecture_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    (folder / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(ValueError, match=r"model_type='abacus' .* must be one of \['bert', 'clip', .*'t5'\]"):
        text_encoder(folder, 16)


@pytest.mark.parametrize(("max_tokens", "bound"), [(1, "at least 2"), (17, "at most the 16 positions")])
def test_an_impossible_length_is_refused(max_tokens, bound):
    with pytest.raises(ValueError, match=f"max_tokens={max_tokens} must be {bound}"):
        text_encoder(GOLDEN, max_tokens)


def test_loading_minilm_does_not_import_transformers():
    code = (
        "import sys; from lumina_jax.encoders.text import text_encoder; text_encoder('minilm', 16); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
