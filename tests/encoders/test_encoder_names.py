"""What `text_encoder` makes of a name: folders, repositories, states, joined encoders, tokenizers, meshes."""

import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumina_jax.config import Config, ModelConfig, TextConfig
from lumina_jax.encoders import text
from lumina_jax.encoders.configured import encoder_of
from lumina_jax.encoders.published import SpecialTokens, read_weights
from lumina_jax.encoders.stored import stored_weights
from lumina_jax.encoders.text import JointTextEncoder, digest_of_files, text_encoder
from lumina_jax.encoders.tokenizer import CaptionTokenizer
from lumina_jax.weights import hub
from lumina_jax.weights.pickles import PickledTensors

GOLDEN = Path(__file__).parent.parent / "golden"
CLIP, T5, LLAMA = GOLDEN / "clip_tiny", GOLDEN / "t5_tiny", GOLDEN / "llama_tiny"


def copied(source, folder):
    return Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("expected.safetensors")))


def test_a_configuration_chooses_encoder_length_and_type():
    model = ModelConfig(text_width=24, layers=1, heads=1, width=24)
    config = Config(model=model, text=TextConfig(encoder=f"{CLIP}:penultimate", max_tokens=9, dtype="bfloat16"))
    chosen = encoder_of(config)
    assert chosen.fingerprint == text_encoder(f"{CLIP}:penultimate", 9, dtype="bfloat16").fingerprint
    assert chosen.fingerprint != text_encoder(f"{CLIP}:penultimate", 9).fingerprint


def test_a_state_that_no_encoder_has_is_refused():
    with pytest.raises(ValueError, match=r"'.*clip_tiny:pooled' must end in :last or :penultimate"):
        text_encoder(f"{CLIP}:pooled", 16)


def test_joined_encoders_give_their_features_side_by_side():
    names = (f"{CLIP}:penultimate", f"{CLIP}:last")
    joint = text_encoder("+".join(names), 10)
    one, other = (text_encoder(name, 10) for name in names)
    assert isinstance(joint, JointTextEncoder)
    assert joint.width == 48
    features, segment_ids = joint.encode(["red heart", ""])
    expected, segments = one.encode(["red heart", ""])
    np.testing.assert_array_equal(features, np.concatenate([expected, other.encode(["red heart", ""])[0]], axis=-1))
    np.testing.assert_array_equal(segment_ids, segments)
    assert joint.fingerprint != text_encoder("+".join(reversed(names)), 10).fingerprint
    with pytest.raises(ValueError, match="must be a list of captions"):
        joint.encode("red heart")


def test_encoders_that_cut_captions_differently_are_not_joined(tmp_path):
    with pytest.raises(ValueError, match=r"must have the same tokens, but these differ on ''"):
        text_encoder(f"{CLIP}+{T5}", 10)
    folder = copied(CLIP, tmp_path / "clip")
    words = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(words.replace('"blue"', '"blux"'))
    joint = text_encoder(f"{CLIP}+{folder}", 10)
    joint.encode(["red heart"])
    with pytest.raises(ValueError, match=r"differ on 'a blue circle'"):
        joint.encode(["red heart", "a blue circle"])


def test_a_repository_that_is_not_downloaded_is_answered_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_snapshots", lambda repository: (None, []))
    command = r"first with: hf download meta-llama/Llama-2-7b-hf --include config.json --include '\*.safetensors\*' "
    with pytest.raises(ValueError, match=command + r"--include 'token\*'"):
        text_encoder("meta-llama/Llama-2-7b-hf", 16)
    with pytest.raises(ValueError, match=r"hf download a/pipe .*'text_encoder_2/\*.*' --include 'tokenizer_2/\*'"):
        text_encoder("a/pipe/text_encoder_2:penultimate", 16)


def test_a_downloaded_repository_is_read_and_so_are_the_folders_of_a_pipeline_in_it(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_snapshots", lambda repository: (tmp_path, []))
    copied(CLIP, tmp_path / "text_encoder_2")
    (tmp_path / "tokenizer_2").mkdir()
    (tmp_path / "text_encoder_2" / "tokenizer.json").rename(tmp_path / "tokenizer_2" / "tokenizer.json")
    encoder = text_encoder("a/pipe/text_encoder_2", 10)
    assert encoder.fingerprint == text_encoder(CLIP, 10).fingerprint
    np.testing.assert_array_equal(encoder.encode(["red"]).features, text_encoder(CLIP, 10).encode(["red"]).features)
    (tmp_path / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"missing tokenizer_2/\*; download it first"):
        text_encoder("a/pipe/text_encoder_2", 10)


def test_weights_in_several_files_are_read_by_their_index_and_a_missing_one_is_named(tmp_path):
    folder = copied(LLAMA, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    parts = text_encoder(folder, 10).encode(["red heart"]).features
    np.testing.assert_array_equal(parts, text_encoder(LLAMA, 10).encode(["red heart"]).features)
    assert [path.name for path in read_weights(folder).files] == ["model-0.safetensors", "model-1.safetensors"]
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-1.safetensors, which model.safetensors.index.json lists"):
        text_encoder(folder, 10)


def encoded_by(folder):
    return text_encoder(folder, 10).encode(["a red heart"]).features


def test_the_only_variant_of_weights_is_read_and_the_usual_one_wins(tmp_path):
    folder = copied(CLIP, tmp_path / "model")
    expected = encoded_by(folder)
    half = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.fp16.safetensors")
    assert [path.name for path in read_weights(folder).files] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    assert 0 < np.abs(encoded_by(folder) - expected).max() < 0.01
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.bf16.safetensors")
    with pytest.raises(ValueError, match=r"several variants .*: model.bf16.safetensors, model.fp16.saf.*rename"):
        text_encoder(folder, 10)


def test_weights_under_another_name_are_listed_with_what_they_are(tmp_path):
    folder = copied(CLIP, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF and so on")
    found = r"weights are: model.gguf, open_clip_model.safetensors; .* rename the file to use to model.safetensors"
    with pytest.raises(ValueError, match=found) as caught:
        text_encoder(folder, 10)
    assert "model.gguf is a GGUF file, whose" in str(caught.value)
    assert "open_clip_model.safetensors is" not in str(caught.value)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a git-LFS pointer"):
        text_encoder(folder, 10)


def test_weights_that_pytorch_saved_are_read_whole_and_in_several_files(tmp_path):
    torch_like = pytest.importorskip("torch")
    folder = copied(CLIP, tmp_path / "model")
    expected = encoded_by(folder)
    tensors = {name: torch_like.tensor(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch_like.save(tensors, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(encoded_by(folder), expected)
    (folder / "pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        torch_like.save({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    np.testing.assert_array_equal(encoded_by(folder), expected)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("outside", ["../../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\m.bin"])
def test_an_index_may_only_name_files_in_its_folder(tmp_path, outside, ending):
    folder = copied(CLIP, tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path.parent / "model.safetensors")
    index = {"weight_map": {"text_model.final_layer_norm.weight": outside}}
    (folder / f"model.{ending}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json may only list files in the same folder"):
        text_encoder(folder, 10)


def test_a_folder_without_a_tokenizer_is_told_which_files_would_do(tmp_path):
    folder = copied(LLAMA, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor one of tokenizer.model, spiece.model, "):
        text_encoder(folder, 10)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is not a readable tokenizer"):
        text_encoder(folder, 10)


def test_a_tokenizer_whose_damage_shows_only_when_it_is_used_is_refused_when_it_is_read(tmp_path):
    folder = copied(T5, tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["post_processor"]["special_tokens"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=rf"the tokenizer in {folder} failed on 'A red heart.' \(PanicException"):
        text_encoder(folder, 10)


@pytest.mark.parametrize("config", [5, [], {"tokenizer_class": 5}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}])
def test_files_that_transformers_cannot_read_are_an_error_that_names_the_folder(tmp_path, config):
    folder = copied(CLIP, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("[]")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"transformers cannot read the tokenizer in {folder}"):
        text_encoder(folder, 10)


def test_a_tokenizer_of_another_model_is_noticed(tmp_path):
    folder = copied(CLIP, tmp_path / "model")
    words = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(words.replace('"reds": 14', '"reds": 99'))
    encoder = text_encoder(folder, 10)
    encoder.encode(["red heart"])
    with pytest.raises(ValueError, match="returned token 99, but the vocabulary of the network has only 17"):
        encoder.encode(["reds"])


def test_marks_stand_around_a_caption_which_is_cut_at_its_end():
    tokens, mask = CaptionTokenizer(LLAMA, 4, SpecialTokens((1,), (2,)))(["red", "red red red", ""])
    assert tokens.tolist() == [[1, 7, 2, 0], [1, 7, 7, 7], [1, 2, 0, 0]]
    assert mask.sum(axis=1).tolist() == [3, 4, 2]


def test_a_tokenizer_of_older_files_is_read_by_transformers(tmp_path):
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = [*letters, "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    tokenizer = CaptionTokenizer(tmp_path, 6, None)
    tokens, mask = tokenizer(["Red a", "red " * 9])
    assert tokens[mask.any(axis=1)].tolist() == [[54, 53, 26, 55, 0, 0], [54, 53, 53, 53, 53, 55]]
    assert [file.name for file in tokenizer.files] == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert CaptionTokenizer(tmp_path, 6, SpecialTokens((9,), ()))(["red"])[0].tolist() == [[9, 53, 0, 0, 0, 0]]


def test_a_large_file_is_told_by_header_size_and_both_ends(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3 * 100, np.uint8)}, file)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    monkeypatch.setattr(text, "LARGE_FILE", header + 300)
    monkeypatch.setattr(text, "HASHED_BYTES", 100)

    def digest(index):
        data = bytearray(file.read_bytes())
        data[index] ^= 1
        (tmp_path / "changed").write_bytes(data)
        return digest_of_files([tmp_path / "changed"])

    assert len({digest(index) for index in (10, header, header + 99, header + 200, header + 299)}) == 5
    assert digest(header + 150) == digest_of_files([file])
    monkeypatch.setattr(text, "LARGE_FILE", header + 301)
    assert digest(header + 150) != digest_of_files([file])


SHARDED = """
import jax, numpy as np
from lumina_jax.encoders.text import text_encoder
from lumina_jax.parallel.mesh import make_mesh

captions = ["red heart, noto style", "", "a heart in a circle"]
for folder, mesh in (("llama", make_mesh(fsdp=4, tensor=2)), ("t5", make_mesh(fsdp=2))):
    folder = f"{GOLDEN}/{folder}_tiny"
    alone, spread = text_encoder(folder, 10), text_encoder(folder, 10, mesh=mesh)
    kernel = spread._hidden_states.args[0].layers.up.kernel[...]
    assert kernel.addressable_shards[0].data.size * mesh.shape["fsdp"] * mesh.shape["tensor"] == kernel.size
    one, other = alone.encode(captions), spread.encode(captions)
    np.testing.assert_array_equal(one.segment_ids, other.segment_ids)
    # Products of fewer rows are summed in another order: up to 1.3e-6 even where no parameter is cut.
    assert np.abs(one.features - other.features).max() < 3e-6 * np.abs(one.features).max()
    assert alone.fingerprint == spread.fingerprint
"""


@pytest.mark.slow
def test_an_encoder_over_eight_devices_equals_one_on_a_single_device():
    code = SHARDED.replace("{GOLDEN}", str(GOLDEN))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_files_of_pytorch_are_read_alone_by_their_index_and_after_safetensors(tmp_path):
    state = GOLDEN / "pickled" / "state.pth"
    expected = PickledTensors(state)
    shutil.copy(state, tmp_path / "pytorch_model.fp16.bin")
    assert stored_weights(tmp_path, ("model", "pytorch_model")).files == [tmp_path / "pytorch_model.fp16.bin"]
    shutil.copy(state, tmp_path / "part-1.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(expected, "part-1.bin")}))
    stored = stored_weights(tmp_path, ("model", "pytorch_model"))
    assert (stored.path, stored.files) == (index, [tmp_path / "part-1.bin"])
    assert stored.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(stored[name], expected[name])
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(stored_weights(tmp_path, ("model", "pytorch_model"))) == ["a"]
