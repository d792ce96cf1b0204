"""Safetensors files written piece by piece: what the library itself reads back, in any cut."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from lumina_jax.weights import writer
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.writer import Planned, total_bytes, write_tensors


def values():
    generator = np.random.default_rng(0)
    made = {
        "half": generator.normal(size=(3,)).astype(np.float16),
        "brain": generator.normal(size=(5, 3)).astype(ml_dtypes.bfloat16),
        "matrix": generator.normal(size=(4, 6)).astype(np.float32),
        "double": generator.normal(size=(2, 2, 2)),
        "number": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
    }
    return made


def plan_of(tensors, by_rows=()):
    def pieces(name):
        return iter(tensors[name]) if name in by_rows else iter([tensors[name]])

    return [Planned(name, value.shape, value.dtype, lambda name=name: pieces(name)) for name, value in tensors.items()]


@pytest.mark.parametrize("block", [8, 24, 2**20])
def test_what_is_written_in_pieces_is_read_whole(tmp_path, monkeypatch, block):
    monkeypatch.setattr(writer, "BLOCK", block)
    tensors = values()
    [written] = write_tensors(tmp_path, "model", plan_of(tensors, ("matrix", "double", "brain")), shard_bytes=None)
    assert written.path == tmp_path / "model.safetensors"
    with safe_open(written.path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        for name, value in tensors.items():
            assert file.get_tensor(name).dtype == value.dtype
            np.testing.assert_array_equal(file.get_tensor(name), value)


def test_numbers_lie_where_their_type_can_be_mapped(tmp_path):
    [written] = write_tensors(tmp_path, "model", plan_of(values()), shard_bytes=None)
    data = written.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    for name, entry in header.items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0, name


def test_a_transposed_view_is_written_in_its_own_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK", 40)
    matrix = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_tensors(tmp_path, "model", plan_of({"turned": matrix.T}), shard_bytes=None)
    np.testing.assert_array_equal(TensorFiles(tmp_path)["turned"], matrix.T)


def test_shards_hold_at_most_their_size_and_the_index_finds_every_tensor(tmp_path):
    tensors = {f"t{index}": np.full((10, 10), index, np.float32) for index in range(7)} | {
        "big": np.ones(300, np.float32)
    }
    write_tensors(tmp_path, "model", plan_of(tensors), shard_bytes=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total_bytes(plan_of(tensors)) == 7 * 400 + 1200
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{number:05}-of-00005.safetensors" for number in range(1, 6)]
    assert index["weight_map"]["t0"] == index["weight_map"]["t1"] != index["weight_map"]["t2"]
    found = TensorFiles(tmp_path)
    assert {name: found[name].tolist() for name in found} == {name: value.tolist() for name, value in tensors.items()}


@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_another_type_is_rounded_to_as_numpy_does(tmp_path, stored, asked):
    made = np.random.default_rng(1).normal(size=(5, 4)).astype(stored)
    write_tensors(tmp_path, "model", [Planned("a", (5, 4), np.dtype(asked), lambda: iter([made]))], shard_bytes=None)
    found = TensorFiles(tmp_path)["a"]
    assert found.dtype == asked
    np.testing.assert_array_equal(found, made.astype(asked))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_not_finite_are_named(tmp_path, value, dtype):
    matrix = np.ones((4, 4), dtype)
    matrix[3, 3] = value
    with pytest.raises(ValueError, match="bad contains values that are not finite"):
        write_tensors(tmp_path, "model", plan_of({"bad": matrix}), shard_bytes=None)


def test_values_beyond_the_range_of_the_type_are_named(tmp_path):
    large = np.full((2,), 3.4e38, np.float32)
    planned = Planned("large", (2,), np.dtype("bfloat16"), lambda: iter([large]))
    with pytest.raises(ValueError, match="large contains values outside the range of bfloat16"):
        write_tensors(tmp_path, "model", [planned], shard_bytes=None)


@pytest.mark.parametrize("rows", [3, 5])
def test_more_or_fewer_values_than_planned_are_an_error(tmp_path, rows):
    planned = Planned("a", (4, 2), np.dtype("float32"), lambda: iter(np.ones((rows, 2), np.float32)))
    with pytest.raises(ValueError, match=f"a must have 8 values, but has {2 * rows}"):
        write_tensors(tmp_path, "model", [planned], shard_bytes=None)


def test_memory_holds_a_piece_and_a_block_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK", 2**18)
    layers, side = 24, 512

    def pieces():
        for layer in range(layers):
            yield np.full((side, side), layer, np.float32).T

    plan = [Planned("stacked", (layers, side, side), np.dtype("float32"), pieces)]
    tracemalloc.start()
    write_tensors(tmp_path, "model", plan, shard_bytes=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * side * side * 4 + 2**20
    assert peak < total_bytes(plan) / 4
