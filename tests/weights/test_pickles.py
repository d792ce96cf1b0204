"""Files of PyTorch read without PyTorch: the same values, and never a call of what is in them."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.weights.pickles import PickledTensors, read_arguments
from tests.weights.pickled import save_legacy, save_pickled

GOLDEN = Path(__file__).parents[1] / "golden/pickled"


def archive(path, value, members=()):
    """A file as torch.save lays it out, of anything."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, protocol=2))
        file.writestr("archive/byteorder", "little")
        for name, data in members:
            file.writestr(f"archive/data/{name}", data)
    return path


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def test_every_tensor_is_read_bit_for_bit():
    tensors, expected = PickledTensors(GOLDEN / "state.pth"), load_file(GOLDEN / "expected.safetensors")
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors.shape(name) == value.shape
        assert tensors.dtype(name) == value.dtype
        assert tensors[name].tobytes() == value.tobytes(), name
        for index in range(value.shape[0] if value.ndim else 0):
            assert tensors.part(name, index).tobytes() == value[index].tobytes(), (name, index)
    assert tensors["brain"].dtype == ml_dtypes.bfloat16


def test_the_tensors_under_one_name_of_a_training_run_are_read(tmp_path):
    """A dictionary around that of the golden file, spliced from its pickle, as Lightning writes one."""

    def text(name):
        return b"X" + len(name).to_bytes(4, "little") + name.encode()

    with zipfile.ZipFile(GOLDEN / "state.pth") as file:
        parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    inner = parts["data.pkl"][2:-1]  # without the opcodes that begin and end a pickle
    around = b"\x80\x02}(" + text("epoch") + b"K\x03" + text("state_dict") + inner + b"u."
    members = [(name.removeprefix("data/"), data) for name, data in parts.items() if name.startswith("data/")]
    path, expected = archive(tmp_path / "run.ckpt", around, members), load_file(GOLDEN / "expected.safetensors")
    tensors = PickledTensors(path, within="state_dict")
    assert set(tensors) == set(expected)
    assert all(tensors[name].tobytes() == value.tobytes() for name, value in expected.items())
    assert set(PickledTensors(GOLDEN / "state.pth", within="state_dict")) == set(expected)
    with pytest.raises(ValueError, match="must contain only named tensors, but epoch"):
        PickledTensors(path)


def test_a_slice_reads_what_it_picks():
    tensors = PickledTensors(GOLDEN / "state.pth")
    np.testing.assert_array_equal(tensors.part("whole", (slice(1, 3), slice(None))), tensors["whole"][1:3])


def test_the_arguments_of_a_script_are_read_and_only_there():
    arguments = read_arguments(GOLDEN / "model_args.pth")
    assert arguments["model"] == "NextDiT_2B_GQA_patch2"
    assert arguments["qk_norm"] is True
    assert arguments["sizes"] == [256, 512]
    with pytest.raises(ValueError, match=r"contains code.*argparse\.Namespace"):
        PickledTensors(GOLDEN / "model_args.pth")


@pytest.mark.parametrize("read", [PickledTensors, read_arguments])
@pytest.mark.parametrize(
    ("function", "arguments"), [(os.system, ("touch {}",)), (eval, ("open('{}', 'w')",)), (os.mkdir, ("{}",))]
)
def test_code_is_named_and_never_run(tmp_path, read, function, arguments):
    mark = tmp_path / "called"
    call = Call(function, *(text.format(mark) for text in arguments))
    file = archive(tmp_path / "bad.pth", {"weight": call})
    with pytest.raises(ValueError, match=f"contains code.*{function.__name__}"):
        read(file)
    assert not mark.exists()


def test_code_hidden_in_arguments_is_named(tmp_path):
    file = archive(tmp_path / "bad.pth", argparse.Namespace(model="x", lr=Call(os.getcwd)))
    with pytest.raises(ValueError, match=r"contains code.*getcwd"):
        read_arguments(file)


@pytest.mark.parametrize(
    "value", [[1, 2], {"weight": 3}, {"model": OrderedDict()}, {}, b"\x80\x02K\x01.", b"\x80\x02q"]
)
def test_what_holds_no_named_tensors_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"bad\.pth"):
        PickledTensors(archive(tmp_path / "bad.pth", value))


def test_the_format_before_the_zip_is_read_bit_for_bit_with_its_strides(tmp_path):
    dense = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    state = {"dense": dense, "turned": dense.transpose(3, 2, 0, 1), "half": np.ones(3, np.float16)}
    state["one"] = np.array(7, np.int64)
    tensors = PickledTensors(save_legacy(tmp_path / "old.pth", state))
    assert set(tensors) == set(state)
    for name, value in state.items():
        assert tensors.dtype(name) == value.dtype
        np.testing.assert_array_equal(tensors[name], value)
    np.testing.assert_array_equal(tensors.part("turned", 1), state["turned"][1])


def test_code_in_the_format_before_the_zip_is_named_and_never_run(tmp_path):
    mark = tmp_path / "called"
    file = save_legacy(tmp_path / "bad.pth", {"weight": Call(os.mkdir, str(mark))})
    with pytest.raises(ValueError, match=r"contains code.*mkdir"):
        PickledTensors(file)
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_in_the_format_before_the_zip_that_was_cut_off_is_refused(tmp_path, share):
    whole = save_legacy(tmp_path / "old.pth", {"a": np.ones(300, np.float32), "b": np.ones(9, np.float32)}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.pth is not a valid PyTorch file.*copy it again"):
        PickledTensors(tmp_path / "cut.pth")


def test_a_file_in_the_format_before_the_zip_of_another_machine_is_refused(tmp_path):
    state = {"a": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="another byte order"):
        PickledTensors(save_legacy(tmp_path / "big.pth", state, is_little=False))
    with pytest.raises(ValueError, match="protocol=7 must be 1001"):
        PickledTensors(save_legacy(tmp_path / "new.pth", state, protocol=7))


def test_a_pickle_of_something_else_is_called_so(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"a pickle that torch\.save did not write"):
        PickledTensors(tmp_path / "a.pth")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path, share):
    whole = (GOLDEN / "state.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="truncated"):
        PickledTensors(tmp_path / "cut.pth")


def test_a_storage_that_is_missing_or_short_is_found_before_it_is_read(tmp_path):
    with zipfile.ZipFile(GOLDEN / "state.pth") as file:
        described = file.read("state/data.pkl")
    with pytest.raises(ValueError, match="lacks the 48 bytes of weight"):
        PickledTensors(archive(tmp_path / "bad.pth", described))
    with pytest.raises(ValueError, match="lacks the 48 bytes of weight"):
        PickledTensors(archive(tmp_path / "bad.pth", described, [("0", b"1234")]))


def test_neither_a_folder_nor_any_other_file_is_taken_for_one(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    for path, reason in (
        (tmp_path, "folder"),
        (tmp_path / "none.pth", "missing"),
        (tmp_path / "text.pth", "not a PyTorch file"),
    ):
        with pytest.raises(ValueError, match=reason):
            PickledTensors(path)


@pytest.mark.torch
def test_what_pytorch_saves_is_read_bit_for_bit(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.randn(7, 6, 5)
    views = {
        "all": base, "turned": base.permute(2, 0, 1), "part": base[2:5, ::3, 1:], "row": base[3, :, 4],
        "bf16": base.bfloat16().transpose(0, 1), "half": base.half()[::2], "wide": base.double().mT,
        "repeated": base[:, :1].expand(7, 4, 5), "parameter": torch.nn.Parameter(base[0]), "scalar": base.sum(),
    }  # fmt: skip
    torch.save(OrderedDict(views), tmp_path / "views.pth")
    tensors = PickledTensors(tmp_path / "views.pth")
    for name, view in views.items():
        expected = view.detach().contiguous().reshape(-1).view(torch.uint8) if view.ndim else view.reshape(1)
        assert tensors[name].tobytes() == expected.numpy().tobytes(), name
        assert tensors.shape(name) == tuple(view.shape)
    torch.save(views, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = PickledTensors(tmp_path / "old.pth")
    assert all(old[name].tobytes() == tensors[name].tobytes() for name in views)


def test_a_type_that_only_pytorch_knows_is_called_so(tmp_path):
    described = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v3\n)Rs."
    with pytest.raises(ValueError, match="tensors of a type that only PyTorch supports, such as float8"):
        PickledTensors(archive(tmp_path / "a.pth", described))


def test_a_zip_that_pytorch_did_not_write_is_called_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("notes.txt", "mine")
    with pytest.raises(ValueError, match=r"is a zip file, but was not written by torch\.save"):
        PickledTensors(tmp_path / "a.pth")


def test_where_the_state_dict_of_a_training_run_lies_is_said(tmp_path):
    state = {"a": np.ones(2, np.float32)}
    save_pickled(tmp_path / "run.pth", {"model": state, "epoch": 3, "optimizer": {"state": {}}})
    with pytest.raises(ValueError, match=r"optimizer are not tensors; save 'model'"):
        PickledTensors(tmp_path / "run.pth")
