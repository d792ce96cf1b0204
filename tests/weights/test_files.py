"""Files of tensors: types of 8 bits, indices, variants, and files that are something else."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lumina_jax.weights import files
from lumina_jax.weights.files import FLOAT8, TensorFiles
from lumina_jax.weights.indices import is_plain
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import Rule, to_ours
from lumina_jax.weights.streams import Restacked
from lumina_jax.weights.tensors import JoinedTensors, Renamed


def write(path, tensors):
    """A safetensors file of any types: for each name the type, the shape and the bytes."""
    header, end, content = {}, 0, b""
    for name, (stored, shape, values) in tensors.items():
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [end, end + len(values)]}
        end, content = end + len(values), content + values
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


@pytest.mark.parametrize("stored", FLOAT8)
def test_every_value_of_8_bits_is_read_exactly_as_bfloat16(tmp_path, stored):
    everything = np.arange(256, dtype=np.uint8)
    path = write(
        tmp_path / "a.safetensors", {"other": ("F32", [1], bytes(4)), "a": (stored, [2, 128], bytes(range(256)))}
    )
    tensors = TensorFiles(path)
    expected = everything.view(FLOAT8[stored]).astype(np.float64).reshape(2, 128)
    assert tensors.dtype("a") == tensors["a"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensors["a"].astype(np.float64), expected)
    np.testing.assert_array_equal(tensors.part("a", 1).astype(np.float64), expected[1])
    assert tensors.notes == [f"stored as {stored}, read as bfloat16, which represents the values exactly"]


@pytest.mark.parametrize("scale", ["a.scale_weight", "a.weight_scale", "a.weight_scale_inv", "scaled_fp8"])
def test_values_of_8_bits_with_a_scale_are_refused(tmp_path, scale):
    path = write(tmp_path / "a.safetensors", {"a.weight": ("F8_E4M3", [2], b"89"), scale: ("F32", [1], bytes(4))})
    with pytest.raises(ValueError, match=rf"a.weight is stored as F8_E4M3 with a separate scale \({scale}\)"):
        TensorFiles(path)["a.weight"]


@pytest.mark.parametrize("stored", ["I8", "U8", "I64", "BOOL", "C64"])
def test_other_types_are_no_weights_in_any_way_of_reading(tmp_path, stored):
    sizes = {"I64": 8, "C64": 8}
    path = write(tmp_path / "a.safetensors", {"a": (stored, [1], bytes(sizes.get(stored, 1)))})
    with pytest.raises(ValueError, match=f"a is stored as {stored}, but weights must be one of F64, F32"):
        TensorFiles(path).dtype("a")
    with pytest.raises(ValueError, match=f"a is stored as {stored}, but weights must be one of F64, F32"):
        Restacked(TensorFiles(path), [Rule("a", "b")], layers=1)


def test_a_type_that_numpy_does_not_know_is_no_weight(tmp_path):
    path = write(tmp_path / "a.safetensors", {"a": ("F8_E8M0", [1], b"8")})
    for read in (TensorFiles(path).dtype, TensorFiles(path).__getitem__, lambda name: TensorFiles(path).part(name, 0)):
        with pytest.raises(ValueError, match="a is stored as F8_E8M0, but weights must be one of F64, F32"):
            read("a")


@pytest.mark.parametrize("stored", [np.int8, np.int64, np.bool_])
def test_integers_are_never_taken_as_the_values_of_a_parameter(stored):
    with pytest.raises(ValueError, match=f"a is stored as {np.dtype(stored)}, but weights must be one of float64"):
        to_ours({"a": np.ones(3, stored)}, [Rule("a", "b")], layers=1)


def test_whether_a_tensor_is_there_is_told_without_reading_it(tmp_path, monkeypatch):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    tensors = TensorFiles(tmp_path)
    views = ((tensors, "a"), (Renamed(tensors, str.upper), "A"), (JoinedTensors([tensors]), "a"))
    monkeypatch.setattr(files, "_open", None)
    for view, name in views:
        assert name in view
        assert "other" not in view
        assert None not in view


def an_index(folder, names, pattern="model.safetensors.index.json"):
    (folder / pattern).write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\\b", "a\0", "a\n"]
)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sub").mkdir()
    for path in (tmp_path / "secret.safetensors", tmp_path / "model" / "sub" / "a.safetensors"):
        save_file({"a": np.ones(3, np.float32)}, path)
    an_index(tmp_path / "model", {"a": name})
    with pytest.raises(ValueError, match="may only list files in the same folder"):
        TensorFiles(tmp_path / "model")


@given(st.text(max_size=12))
def test_a_plain_name_stays_in_its_folder(name):
    if is_plain(name):
        assert (Path("/models/one") / name).resolve().parent == Path("/models/one")


def test_a_link_in_the_folder_may_lead_elsewhere_as_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model-1.safetensors").symlink_to("../blobs/0123")
    an_index(tmp_path / "snapshot", {"a": "model-1.safetensors"})
    np.testing.assert_array_equal(TensorFiles(tmp_path / "snapshot")["a"], np.ones(3))
    index = tmp_path / "snapshot" / "model.safetensors.index.json"
    np.testing.assert_array_equal(TensorFiles(index)["a"], np.ones(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "model.safetensors.index.json has wrong values"),
        ('{"weight_map": ["a"]}', "weight_map: .*object"),
        ('{"weight_map": {"a": 1}}', "weight_map.a: .*string, but got 1"),
        ('{"weight_map": {}}', "lists no file"),
        ("{", "must be JSON"),
        ('{"weight_map": {"a": "b.safetensors"}}', "lacks b.safetensors"),
    ],
)
def test_an_index_that_is_none_is_refused_with_the_key(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        TensorFiles(tmp_path)


def test_the_usual_file_is_taken_where_variants_lie_beside_it(tmp_path):
    for number, name in enumerate(["model.fp16", "model", "model.non_ema"]):
        save_file({"a": np.full(1, number, np.float32)}, tmp_path / f"{name}.safetensors")
    assert TensorFiles(tmp_path)["a"] == 1
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"2 files: model.fp16.safetensors, model.non_ema.safetensors; name the file"):
        TensorFiles(tmp_path)
    assert TensorFiles(tmp_path / "model.fp16.safetensors")["a"] == 0


def test_the_index_of_a_variant_is_used_where_it_is_the_only_one(tmp_path):
    name = "model.fp16-00001-of-00001.safetensors"
    save_file({"a": np.ones(1, np.float16)}, tmp_path / name)
    an_index(tmp_path, {"a": name}, "model.safetensors.index.fp16.json")
    assert TensorFiles(tmp_path)["a"] == 1


OTHERS = {
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 132\n",
    "a GGUF file": b"GGUF\x03\0\0\0",
    "a web page": b"<!DOCTYPE html><html>",
    "empty": b"",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "compressed by gzip": b"\x1f\x8b\x08",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(("name", "read"), [("a.safetensors", TensorFiles), ("a.pth", PickledTensors)])
def test_a_file_that_holds_no_tensors_is_called_what_it_is(tmp_path, kind, name, read):
    (tmp_path / name).write_bytes(OTHERS[kind])
    with pytest.raises(ValueError, match=rf"{name} is .*{kind}"):
        read(tmp_path / name)


def test_a_checkpoint_under_the_name_of_another_kind_is_called_what_it_is(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"is a safetensors file; rename it to \.safetensors"):
        PickledTensors(tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"if it is a PyTorch checkpoint, rename it to \.pth"):
        TensorFiles(tmp_path / "b.safetensors")
